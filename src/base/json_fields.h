// Typed reads of the fields of a JSON object:
//
//   QWEN2_TRY(const JsonFields card, JsonFields::read("card.json"));
//   QWEN2_CHECK(card.required("name", name));
//   QWEN2_CHECK(card.optional("lanes", lanes, 1, 16));
//
// An error names the document, the path of the field, what was expected and what was found:
//   'card.json': 'lanes' must be an integer from 1 to 16, not "many"
#pragma once

#include <boost/json/fwd.hpp>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.h"

namespace qwen2 {

class JsonFields;

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);

// Numbers must be finite and in the range of their type. An integer must be written as one: 20, not 2e1.
template <class T>
concept JsonNumber = OneOf<T, int, int64_t, uint64_t, float, double>;

// What a field can be read as. A string_view refers to the document.
template <class T>
concept JsonField =
    JsonNumber<T> ||
    OneOf<T, bool, std::string, std::string_view, boost::json::object, boost::json::array, JsonFields,
          std::vector<int>, std::vector<double>, std::vector<std::string>, std::vector<JsonFields>>;

class JsonFields {
 public:
  // The text of one object. `where` names it in errors; without one they begin with the field.
  static Result<JsonFields> parse(std::string_view text, std::string where);
  static Result<JsonFields> read(const std::filesystem::path& file, size_t most_bytes = size_t{1} << 30);
  // An object that the caller keeps. What parse() and read() return keeps its document itself, and so do the
  // objects in it.
  JsonFields(const boost::json::object& object, std::string where);
  // An empty object.
  JsonFields();

  // The field must be there. Fields that are null count as absent everywhere.
  template <JsonField T>
  Status required(std::string_view name, T& target) const;
  template <JsonNumber T>
  Status required(std::string_view name, T& target, std::type_identity_t<T> low,
                  std::type_identity_t<T> high) const;

  // Where the field is absent, `target` stays as it is. A field of another type is an error.
  template <JsonField T>
  Status optional(std::string_view name, T& target) const {
    return value(name) == nullptr ? Status() : required(name, target);
  }
  template <JsonField T>
  Status optional(std::string_view name, std::optional<T>& target) const {
    return value(name) == nullptr ? Status() : required(name, target.emplace());
  }
  template <JsonNumber T>
  Status optional(std::string_view name, T& target, std::type_identity_t<T> low,
                  std::type_identity_t<T> high) const {
    return value(name) == nullptr ? Status() : required(name, target, low, high);
  }

  // For what other programs wrote: nothing where the field is absent or of another type.
  template <JsonField T>
  [[nodiscard]] std::optional<T> find(std::string_view name) const;

  // Null where the field is absent.
  [[nodiscard]] const boost::json::value* value(std::string_view name) const;
  [[nodiscard]] const boost::json::object& object() const { return *object_; }

  // An error of the field for what types do not say: "'card.json': 'lanes' " and `problem`.
  [[nodiscard]] std::unexpected<Error> error(std::string_view name, std::string_view problem,
                                             ErrorKind kind = ErrorKind::kFormat) const;

 private:
  JsonFields(std::shared_ptr<const boost::json::object> object, std::string where, std::string path)
      : object_(std::move(object)), where_(std::move(where)), path_(std::move(path)) {}

  [[nodiscard]] std::string path_of(std::string_view name) const;
  [[nodiscard]] std::unexpected<Error> error_at(std::string_view path, std::string_view problem,
                                                ErrorKind kind = ErrorKind::kFormat) const;
  template <class T>
  Status convert(const boost::json::value& value, const std::string& path, T& target) const;
  template <class T>
  Status convert(const boost::json::value& value, const std::string& path, std::vector<T>& target) const;

  std::shared_ptr<const boost::json::object> object_;
  std::string where_;
  std::string path_;  // of this object in its document, such as "gpus[1]"
};

}  // namespace qwen2
