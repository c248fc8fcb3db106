#include "experiment/report_json.h"

#include <cmath>
#include <limits>

#include "base/memory.h"

namespace qwen2::report {

namespace json = boost::json;

namespace {

std::unexpected<Error> expected(const std::string& path, std::string_view what) {
  return fail(ErrorKind::kFormat, "{}: expected {}", path, what);
}

}  // namespace

Result<json::object> read_json_object(const std::filesystem::path& file) {
  QWEN2_TRY(const std::string text, read_text_file(file));
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error) return fail(ErrorKind::kFormat, "'{}': not JSON: {}", file.string(), error.message());
  if (!value.is_object()) return fail(ErrorKind::kFormat, "'{}': expected one JSON object", file.string());
  return std::move(value.as_object());
}

bool Fields::has(std::string_view name) const {
  const json::value* value = object_.if_contains(name);
  return value != nullptr && !value->is_null();
}

Result<std::string> Fields::text(std::string_view name) const {
  if (!has(name)) return expected(path(name), "a string");
  return text_or_empty(name);
}

Result<const json::array*> Fields::array(std::string_view name) const {
  if (!has(name)) return expected(path(name), "an array");
  return array_or_null(name);
}

Result<const json::object*> Fields::object(std::string_view name) const {
  if (!has(name)) return expected(path(name), "an object");
  return object_or_null(name);
}

Result<std::string> Fields::text_or_empty(std::string_view name) const {
  if (!has(name)) return std::string();
  const json::string* text = object_.at(name).if_string();
  if (text == nullptr) return expected(path(name), "a string");
  return std::string(*text);
}

Result<double> Fields::number_or_nan(std::string_view name) const {
  if (!has(name)) return std::numeric_limits<double>::quiet_NaN();
  const json::value& value = object_.at(name);
  if (!value.is_number()) return expected(path(name), "a number");
  return value.to_number<double>();
}

Result<int64_t> Fields::count_or_zero(std::string_view name) const {
  QWEN2_TRY(const double value, number_or_nan(name));
  if (std::isnan(value)) return 0;
  if (value < 0 || value > 1e15 || value != std::floor(value)) return expected(path(name), "a count");
  return static_cast<int64_t>(value);
}

Result<bool> Fields::flag_or_false(std::string_view name) const {
  if (!has(name)) return false;
  const bool* flag = object_.at(name).if_bool();
  if (flag == nullptr) return expected(path(name), "true or false");
  return *flag;
}

Result<const json::array*> Fields::array_or_null(std::string_view name) const {
  if (!has(name)) return nullptr;
  const json::array* array = object_.at(name).if_array();
  if (array == nullptr) return expected(path(name), "an array");
  return array;
}

Result<const json::object*> Fields::object_or_null(std::string_view name) const {
  if (!has(name)) return nullptr;
  const json::object* object = object_.at(name).if_object();
  if (object == nullptr) return expected(path(name), "an object");
  return object;
}

Result<const json::object*> element(const json::array& array, size_t i, std::string_view name) {
  const json::object* object = array[i].if_object();
  if (object == nullptr) return expected(fmt::format("{}[{}]", name, i), "an object");
  return object;
}

}  // namespace qwen2::report
