#include "tokenizer/jinja/template.h"

#include "tokenizer/jinja/functions.h"
#include "tokenizer/jinja/parser.h"

namespace qwen2::jinja {

Result<Template> Template::parse(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return fail(ErrorKind::kUnsupported, "the template has {} bytes, more than {}", source.size(),
                kMaxTemplateBytes);
  }
  QWEN2_TRY(Body body, jinja::parse(source));
  return Template(std::move(body));
}

Result<MarkedText> Template::render(std::vector<std::pair<std::string, Value>> variables, std::time_t now,
                                    const Limits& limits) const {
  Limits scaled = limits;
  for (const auto& [name, value] : variables) scaled.bytes += extent_of(value).weight * 64 * 32;
  Scope functions{nullptr, global_functions(now)};
  Scope globals{&functions, std::move(variables)};
  Interpreter interpreter(scaled, globals);
  return interpreter.run(*body_);
}

}  // namespace qwen2::jinja
