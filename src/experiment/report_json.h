// Fields of JSON files, checked: each error names the field and what was expected. The caller adds the file.
#pragma once

#include <boost/json.hpp>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2::report {

// A file that holds one JSON object; the error names the file.
Result<boost::json::object> read_json_object(const std::filesystem::path& file);

// The object in a field; `where` is the path of fields above it, such as "points[3].".
class Fields {
 public:
  Fields(const boost::json::object& object, std::string where) : object_(object), where_(std::move(where)) {}

  // Required. The pointers live as long as the object.
  [[nodiscard]] Result<std::string> text(std::string_view name) const;
  [[nodiscard]] Result<const boost::json::array*> array(std::string_view name) const;
  [[nodiscard]] Result<const boost::json::object*> object(std::string_view name) const;

  // Optional: what is missing or null is empty, NaN, false or nullptr; another type is an error.
  [[nodiscard]] Result<std::string> text_or_empty(std::string_view name) const;
  [[nodiscard]] Result<double> number_or_nan(std::string_view name) const;
  [[nodiscard]] Result<int64_t> count_or_zero(std::string_view name) const;
  [[nodiscard]] Result<bool> flag_or_false(std::string_view name) const;
  [[nodiscard]] Result<const boost::json::array*> array_or_null(std::string_view name) const;
  [[nodiscard]] Result<const boost::json::object*> object_or_null(std::string_view name) const;

  [[nodiscard]] std::string path(std::string_view name) const { return where_ + std::string(name); }
  [[nodiscard]] bool has(std::string_view name) const;

 private:
  const boost::json::object& object_;
  std::string where_;
};

// Element `i` of the array `name`, which must be an object.
Result<const boost::json::object*> element(const boost::json::array& array, size_t i, std::string_view name);

}  // namespace qwen2::report
