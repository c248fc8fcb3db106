#include "tokenizer/jinja/arguments.h"

#include <algorithm>

namespace qwen2::jinja {

Result<std::vector<const Value*>> bind(const Arguments& arguments,
                                       std::initializer_list<std::string_view> names) {
  if (arguments.positional.size() > names.size()) {
    return fail(ErrorKind::kInvalidArgument, "takes {} arguments, not {}", names.size(),
                arguments.positional.size());
  }
  std::vector<const Value*> out(names.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) out[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) return fail(ErrorKind::kInvalidArgument, "takes no argument '{}'", name);
    const Value*& slot = out[static_cast<size_t>(found - names.begin())];
    if (slot != nullptr) return fail(ErrorKind::kInvalidArgument, "got '{}' twice", name);
    slot = &value;
  }
  return out;
}

bool flag(const Value* value, bool fallback) {
  return value == nullptr ? fallback : is_true(*value);
}

Result<int64_t> whole_number(const Value* value, std::string_view name, int64_t fallback) {
  if (value == nullptr) return fallback;
  if (value->is_integer()) return value->as_integer();
  return fail(ErrorKind::kInvalidArgument, "'{}' must be an integer, not {}", name, type_name(*value));
}

Result<const Value*> needed(const Value* value, std::string_view name) {
  if (value == nullptr) return fail(ErrorKind::kInvalidArgument, "needs '{}'", name);
  return value;
}

Result<const MarkedText*> needed_text(const Value* value, std::string_view name) {
  if (value != nullptr && value->text() != nullptr) return value->text();
  if (value == nullptr) return fail(ErrorKind::kInvalidArgument, "needs '{}'", name);
  if (const Undefined* missing = value->get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  return fail(ErrorKind::kInvalidArgument, "'{}' must be a text, not {}", name, type_name(*value));
}

}  // namespace qwen2::jinja
