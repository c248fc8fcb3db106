// Values of a chat template: Python's, as far as Jinja shows them. Immutable, so that values cannot form cycles.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "tokenizer/marked_text.h"

namespace qwen2::jinja {

class Value;
class Interpreter;
struct List;
struct Dict;
struct Macro;
struct Namespace;
struct Loop;

// What a template reads where nothing is: prints as nothing, is false and empty. `what` says what is missing.
struct Undefined {
  std::string what;
  bool operator==(const Undefined&) const { return true; }
};

struct None {
  bool operator==(const None&) const { return true; }
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// A function that the interpreter provides, also a method bound to its object.
struct Function {
  std::string name;
  std::function<Result<Value>(Interpreter&, const Arguments&)> call;
};

class Value {
 public:
  // A render owns its macros and namespaces.
  using Data = std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const MarkedText>,
                            std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                            std::shared_ptr<const Function>, std::shared_ptr<Loop>, const Macro*, Namespace*>;

  Value() : data_(Undefined{}) {}
  Value(Data data) : data_(std::move(data)) {}  // NOLINT(google-explicit-constructor)
  explicit Value(MarkedText text) : data_(std::make_shared<const MarkedText>(std::move(text))) {}
  explicit Value(List list);
  explicit Value(Dict dict);
  static Value none() { return Value(Data(None{})); }
  static Value boolean(bool value) { return Value(Data(value)); }
  static Value integer(int64_t value) { return Value(Data(value)); }
  static Value number(double value) { return Value(Data(value)); }
  // Text of the template's own.
  static Value own(std::string text) { return Value(MarkedText(std::move(text))); }
  static Value function(std::string name, std::function<Result<Value>(Interpreter&, const Arguments&)> call) {
    return Value(Data(std::make_shared<const Function>(Function{std::move(name), std::move(call)})));
  }
  static Value undefined(std::string what) { return Value(Data(Undefined{std::move(what)})); }

  [[nodiscard]] const Data& data() const { return data_; }
  template <class T>
  [[nodiscard]] const T* get() const {
    return std::get_if<T>(&data_);
  }
  [[nodiscard]] const MarkedText* text() const { return object<MarkedText>(); }
  [[nodiscard]] const List* list() const { return object<List>(); }
  [[nodiscard]] const Dict* dict() const { return object<Dict>(); }
  [[nodiscard]] bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  [[nodiscard]] bool is_none() const { return std::holds_alternative<None>(data_); }
  // Python's bool is a number too.
  [[nodiscard]] bool is_number() const { return is_integer() || std::holds_alternative<double>(data_); }
  [[nodiscard]] bool is_integer() const {
    return std::holds_alternative<int64_t>(data_) || std::holds_alternative<bool>(data_);
  }
  [[nodiscard]] int64_t as_integer() const;  // of bool and integer
  [[nodiscard]] double as_double() const;    // of every number

 private:
  template <class T>
  [[nodiscard]] const T* object() const {
    const auto* pointer = std::get_if<std::shared_ptr<const T>>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  Data data_;
};

enum class ListKind {
  kList,
  kTuple,
  kRange,
  kView,       // dict.items() and its kin: no indices
  kGenerator,  // what map() and select() give: always true, without length or indices, to be read once
};

// How large a value is: what an operation that walks over all of it costs, and how deep it recurses.
struct Extent {
  uint32_t depth = 0;  // levels of lists and dicts
  size_t weight = 1;   // values and 64 byte pieces of text
  // Counts in a value that is held.
  void hold(const Extent& inner);
};

struct List {
  explicit List(std::vector<Value> values, ListKind list_kind = ListKind::kList);

  std::vector<Value> items;
  ListKind kind;
  Extent extent;
  mutable bool consumed = false;  // a generator that has been read
};

struct Dict {
  explicit Dict(std::vector<std::pair<Value, Value>> pairs);

  std::vector<std::pair<Value, Value>> items;
  Extent extent;

  [[nodiscard]] const Value* find(const Value& key) const;
  [[nodiscard]] const Value* find(std::string_view key) const;
};

// Values nested deeper are refused, so that no recursion over one can exhaust the stack.
inline constexpr uint32_t kMaxValueDepth = 100;

Extent extent_of(const Value& value);

// A JSON value; its strings are a message's where `from_message`. Its depth is the JSON parser's to bound.
Result<Value> from_json(const boost::json::value& json, bool from_message);

// Python's name of the type, for messages.
std::string_view type_name(const Value& value);

bool is_true(const Value& value);
bool equal(const Value& a, const Value& b);
// Python's order: numbers, texts, lists and tuples of the same kind. Anything else is an error.
Result<bool> less(const Value& a, const Value& b);

// Python's str() and repr().
MarkedText to_text(const Value& value);
MarkedText representation(const Value& value);
std::string number_text(double value);

}  // namespace qwen2::jinja
