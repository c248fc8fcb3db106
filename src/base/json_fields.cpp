#include "base/json_fields.h"

#include <boost/json.hpp>
#include <cmath>
#include <limits>

#include "base/memory.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

// Longer texts are not shown in errors.
constexpr size_t kMostShown = 40;

// 0.5 and 20.0: not 5E-1, and not 20, which would pass for an integer.
std::string shown(double number) {
  const std::string text = fmt::format("{}", number);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string shown(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_double()) return shown(value.get_double());
  if (value.is_string() && value.get_string().size() > kMostShown) return "a long string";
  return json::serialize(value);
}

// What a type is called in errors.
template <class T>
std::string_view kind_of() {
  if constexpr (std::same_as<T, bool>) return "true or false";
  if constexpr (std::integral<T>) return "an integer";
  if constexpr (std::floating_point<T>) return "a number";
  if constexpr (OneOf<T, std::string, std::string_view>) return "a string";
  if constexpr (OneOf<T, json::object, JsonFields>) return "an object";
  return "an array";
}

// The range is named where it is the caller's, or where the number breaks that of the type.
template <JsonNumber T>
std::string kind_of(const json::value* value, T low, T high) {
  using Limits = std::numeric_limits<T>;
  const bool own = low != Limits::lowest() || high != Limits::max();
  const bool outside =
      value != nullptr && value->is_number() && (std::floating_point<T> || !value->is_double());
  return own || outside ? fmt::format("{} from {} to {}", kind_of<T>(), low, high)
                        : std::string(kind_of<T>());
}

template <JsonNumber T>
bool read_number(const json::value& value, T& target) {
  using Limits = std::numeric_limits<T>;
  json::error_code code;
  if constexpr (std::integral<T>) {
    if (!value.is_double()) target = value.to_number<T>(code);
    return !value.is_double() && !code;
  } else {
    const double number = value.to_number<double>(code);
    if (code || !(std::abs(number) <= double{Limits::max()})) return false;
    target = static_cast<T>(number);
    return true;
  }
}

template <class T>
bool read_value(const json::value& value, T& target) {
  if constexpr (JsonNumber<T>) {
    return read_number(value, target);
  } else if constexpr (std::same_as<T, bool>) {
    if (value.is_bool()) target = value.get_bool();
    return value.is_bool();
  } else if constexpr (OneOf<T, std::string, std::string_view>) {
    if (value.is_string()) target = std::string_view(value.get_string());
    return value.is_string();
  } else if constexpr (std::same_as<T, json::object>) {
    if (value.is_object()) target = value.get_object();
    return value.is_object();
  } else {
    static_assert(std::same_as<T, json::array>);
    if (value.is_array()) target = value.get_array();
    return value.is_array();
  }
}

const json::object& empty_object() {
  static const json::object empty;
  return empty;
}

std::string must_be(std::string_view expected, const json::value& value) {
  return fmt::format("must be {}, not {}", expected, shown(value));
}

std::string missing(std::string_view expected) {
  return fmt::format("is missing; {} was expected", expected);
}

}  // namespace

JsonFields::JsonFields() : JsonFields(empty_object(), "") {}

JsonFields::JsonFields(const json::object& object, std::string where)
    : JsonFields({std::shared_ptr<const void>(), &object}, std::move(where), "") {}

Result<JsonFields> JsonFields::parse(std::string_view text, std::string where) {
  json::error_code code;
  const auto root = std::make_shared<const json::value>(json::parse(text, code));
  const std::string subject = where.empty() ? "" : where + " ";
  if (code) {
    return fail(ErrorKind::kFormat, "{}{}not valid JSON: {}", subject, where.empty() ? "" : "is ",
                code.message());
  }
  const json::object* object = root->if_object();
  if (object == nullptr)
    return fail(ErrorKind::kFormat, "{}must be a JSON object, not {}", subject, shown(*root));
  return JsonFields({root, object}, std::move(where), "");
}

Result<JsonFields> JsonFields::read(const std::filesystem::path& file, size_t most_bytes) {
  QWEN2_TRY(const std::string text, read_text_file(file, most_bytes));
  return parse(text, fmt::format("'{}'", file.string()));
}

const json::value* JsonFields::value(std::string_view name) const {
  const json::value* value = object_->if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string JsonFields::path_of(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

std::unexpected<Error> JsonFields::error_at(std::string_view path, std::string_view problem,
                                            ErrorKind kind) const {
  return fail(kind, "{}{}'{}' {}", where_, where_.empty() ? "" : ": ", path, problem);
}

std::unexpected<Error> JsonFields::error(std::string_view name, std::string_view problem,
                                         ErrorKind kind) const {
  return error_at(path_of(name), problem, kind);
}

template <class T>
Status JsonFields::convert(const json::value& value, const std::string& path, T& target) const {
  if constexpr (std::same_as<T, JsonFields>) {
    const json::object* object = value.if_object();
    if (object == nullptr) return error_at(path, must_be(kind_of<T>(), value));
    target = JsonFields({object_, object}, where_, path);
  } else if (!read_value(value, target)) {
    return error_at(path, must_be(kind_of<T>(), value));
  }
  return {};
}

template <class T>
Status JsonFields::convert(const json::value& value, const std::string& path, std::vector<T>& target) const {
  const json::array* items = value.if_array();
  if (items == nullptr) return error_at(path, must_be(kind_of<std::vector<T>>(), value));
  target.clear();
  target.reserve(items->size());
  for (size_t i = 0; i < items->size(); ++i) {
    const json::value& item = (*items)[i];
    T& place = target.emplace_back();
    if constexpr (std::same_as<T, JsonFields>) {
      QWEN2_CHECK(convert(item, fmt::format("{}[{}]", path, i), place));
    } else if (!read_value(item, place)) {  // long lists of numbers need no path for each
      return error_at(fmt::format("{}[{}]", path, i), must_be(kind_of<T>(), item));
    }
  }
  return {};
}

template <JsonField T>
Status JsonFields::required(std::string_view name, T& target) const {
  if constexpr (JsonNumber<T>) {
    using Limits = std::numeric_limits<T>;
    return required(name, target, Limits::lowest(), Limits::max());
  } else {
    const json::value* found = value(name);
    if (found == nullptr) return error(name, missing(kind_of<T>()));
    return convert(*found, path_of(name), target);
  }
}

template <JsonNumber T>
Status JsonFields::required(std::string_view name, T& target, std::type_identity_t<T> low,
                            std::type_identity_t<T> high) const {
  const json::value* found = value(name);
  if (found == nullptr) return error(name, missing(kind_of(found, low, high)));
  T number{};
  if (!read_number(*found, number) || number < low || number > high)
    return error(name, must_be(kind_of(found, low, high), *found));
  target = number;
  return {};
}

template <JsonField T>
std::optional<T> JsonFields::find(std::string_view name) const {
  const json::value* found = value(name);
  T target{};
  return found != nullptr && convert(*found, path_of(name), target) ? std::optional(std::move(target))
                                                                    : std::nullopt;
}

// NOLINTBEGIN(bugprone-macro-parentheses): the arguments are types
#define QWEN2_JSON_FIELD(T)                                         \
  template Status JsonFields::required(std::string_view, T&) const; \
  template std::optional<T> JsonFields::find(std::string_view) const;
#define QWEN2_JSON_NUMBER(T) \
  QWEN2_JSON_FIELD(T)        \
  template Status JsonFields::required<T>(std::string_view, T&, T, T) const;
// NOLINTEND(bugprone-macro-parentheses)

QWEN2_JSON_NUMBER(int)
QWEN2_JSON_NUMBER(int64_t)
QWEN2_JSON_NUMBER(uint64_t)
QWEN2_JSON_NUMBER(float)
QWEN2_JSON_NUMBER(double)
QWEN2_JSON_FIELD(bool)
QWEN2_JSON_FIELD(std::string)
QWEN2_JSON_FIELD(std::string_view)
QWEN2_JSON_FIELD(json::object)
QWEN2_JSON_FIELD(json::array)
QWEN2_JSON_FIELD(JsonFields)
QWEN2_JSON_FIELD(std::vector<int>)
QWEN2_JSON_FIELD(std::vector<double>)
QWEN2_JSON_FIELD(std::vector<std::string>)
QWEN2_JSON_FIELD(std::vector<JsonFields>)

}  // namespace qwen2
