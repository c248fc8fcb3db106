#include "tokenizer/jinja/value.h"

#include <utf8proc.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>

#include "tokenizer/utf8.h"

namespace qwen2::jinja {
namespace {

bool same_kind(const List& a, const List& b) {
  return (a.kind == ListKind::kTuple) == (b.kind == ListKind::kTuple);
}

// As Python prints them in repr(): not letters, marks, numbers, punctuation, symbols or the space.
bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == U' ';
    default:
      return true;
  }
}

std::string escaped(char32_t c, char quote) {
  switch (c) {
    case U'\n':
      return "\\n";
    case U'\r':
      return "\\r";
    case U'\t':
      return "\\t";
    case U'\\':
      return "\\\\";
    default:
      break;
  }
  if (c == static_cast<char32_t>(quote)) return std::string{'\\', quote};
  std::string out;
  if (is_printable(c)) {
    append_utf8(out, c);
  } else if (c < 0x100) {
    out = fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
  } else if (c < 0x10000) {
    out = fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
  } else {
    out = fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
  }
  return out;
}

MarkedText quoted(const MarkedText& text) {
  const bool single = text.text().find('\'') != std::string::npos;
  const char quote = single && text.text().find('"') == std::string::npos ? '"' : '\'';
  MarkedText out(std::string(1, quote));
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text.text(), i);
    out.append(escaped(c, quote), text.is_from_message(begin, i));
  }
  out.append(std::string_view(&quote, 1), false);
  return out;
}

MarkedText list_text(const List& list) {
  const bool tuple = list.kind == ListKind::kTuple;
  MarkedText out(tuple ? "(" : "[");
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out.append(", ", false);
    out.append(representation(list.items[i]));
  }
  if (tuple && list.items.size() == 1) out.append(",", false);
  out.append(tuple ? ")" : "]", false);
  return out;
}

MarkedText dict_text(const Dict& dict) {
  MarkedText out("{");
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out.append(", ", false);
    out.append(representation(dict.items[i].first));
    out.append(": ", false);
    out.append(representation(dict.items[i].second));
  }
  out.append("}", false);
  return out;
}

Result<Value> from_json_object(const boost::json::object& object, bool from_message) {
  std::vector<std::pair<Value, Value>> items;
  items.reserve(object.size());
  for (const auto& [key, item] : object) {
    QWEN2_TRY(Value value, from_json(item, from_message));
    items.emplace_back(Value(MarkedText(std::string(key), from_message)), std::move(value));
  }
  return Value(Dict(std::move(items)));
}

Result<Value> from_json_array(const boost::json::array& array, bool from_message) {
  std::vector<Value> items;
  items.reserve(array.size());
  for (const boost::json::value& item : array) {
    QWEN2_TRY(Value value, from_json(item, from_message));
    items.push_back(std::move(value));
  }
  return Value(List(std::move(items)));
}

}  // namespace

void Extent::hold(const Extent& inner) {
  depth = std::max(depth, inner.depth + 1);
  weight += inner.weight;
}

List::List(std::vector<Value> values, ListKind list_kind)
    : items(std::move(values)), kind(list_kind), extent{1, 1} {
  for (const Value& item : items) extent.hold(extent_of(item));
}

Dict::Dict(std::vector<std::pair<Value, Value>> pairs) : items(std::move(pairs)), extent{1, 1} {
  for (const auto& [key, item] : items) {
    extent.hold(extent_of(key));
    extent.hold(extent_of(item));
  }
}

Value::Value(List list) : data_(std::make_shared<const List>(std::move(list))) {}
Value::Value(Dict dict) : data_(std::make_shared<const Dict>(std::move(dict))) {}

int64_t Value::as_integer() const {
  if (const bool* boolean = get<bool>()) return *boolean ? 1 : 0;
  const int64_t* integer = get<int64_t>();
  return integer == nullptr ? 0 : *integer;
}

double Value::as_double() const {
  const double* number = get<double>();
  return number == nullptr ? static_cast<double>(as_integer()) : *number;
}

const Value* Dict::find(const Value& key) const {
  const auto found =
      std::find_if(items.begin(), items.end(), [&](const auto& item) { return equal(item.first, key); });
  return found == items.end() ? nullptr : &found->second;
}

const Value* Dict::find(std::string_view key) const {
  const auto found = std::find_if(items.begin(), items.end(), [&](const auto& item) {
    const MarkedText* text = item.first.text();
    return text != nullptr && text->text() == key;
  });
  return found == items.end() ? nullptr : &found->second;
}

Extent extent_of(const Value& value) {
  if (const MarkedText* text = value.text()) return {0, 1 + text->size() / 64};
  if (const List* list = value.list()) return list->extent;
  if (const Dict* dict = value.dict()) return dict->extent;
  return {};
}

Result<Value> from_json(const boost::json::value& json, bool from_message) {
  switch (json.kind()) {
    case boost::json::kind::null:
      return Value::none();
    case boost::json::kind::bool_:
      return Value::boolean(json.get_bool());
    case boost::json::kind::int64:
      return Value::integer(json.get_int64());
    case boost::json::kind::uint64:
      return fail(ErrorKind::kInvalidArgument, "the integer {} does not fit into 64 bits with a sign",
                  json.get_uint64());
    case boost::json::kind::double_:
      return Value::number(json.get_double());
    case boost::json::kind::string:
      return Value(MarkedText(std::string(json.get_string()), from_message));
    case boost::json::kind::array:
      return from_json_array(json.get_array(), from_message);
    case boost::json::kind::object:
      return from_json_object(json.get_object(), from_message);
  }
  return fail(ErrorKind::kInternal, "a JSON value of no kind");
}

std::string_view type_name(const Value& value) {
  struct TypeName {
    std::string_view operator()(const Undefined&) const { return "undefined"; }
    std::string_view operator()(const None&) const { return "None"; }
    std::string_view operator()(bool) const { return "bool"; }
    std::string_view operator()(int64_t) const { return "int"; }
    std::string_view operator()(double) const { return "float"; }
    std::string_view operator()(const std::shared_ptr<const MarkedText>&) const { return "str"; }
    std::string_view operator()(const std::shared_ptr<const List>& list) const {
      switch (list->kind) {
        case ListKind::kTuple:
          return "tuple";
        case ListKind::kRange:
          return "range";
        case ListKind::kView:
          return "view of a dict";
        case ListKind::kGenerator:
          return "generator";
        case ListKind::kList:
          break;
      }
      return "list";
    }
    std::string_view operator()(const std::shared_ptr<const Dict>&) const { return "dict"; }
    std::string_view operator()(const std::shared_ptr<const Function>&) const { return "function"; }
    std::string_view operator()(const std::shared_ptr<Loop>&) const { return "loop"; }
    std::string_view operator()(const Macro*) const { return "macro"; }
    std::string_view operator()(const Namespace*) const { return "namespace"; }
  };
  return std::visit(TypeName{}, value.data());
}

bool is_true(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_number()) return value.as_double() != 0;
  if (const MarkedText* text = value.text()) return !text->empty();
  if (const List* list = value.list()) return list->kind == ListKind::kGenerator || !list->items.empty();
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integer() && b.is_integer() ? a.as_integer() == b.as_integer()
                                            : a.as_double() == b.as_double();
  }
  if (a.data().index() != b.data().index()) return false;
  if (a.is_undefined() || a.is_none()) return true;
  if (const MarkedText* text = a.text()) return text->text() == b.text()->text();
  if (const List* list = a.list()) {
    const List& other = *b.list();
    if (list->kind == ListKind::kGenerator || list->kind == ListKind::kView) return list == &other;
    return same_kind(*list, other) && std::ranges::equal(list->items, other.items, equal);
  }
  if (const Dict* dict = a.dict()) {
    const Dict& other = *b.dict();
    return dict->items.size() == other.items.size() &&
           std::all_of(dict->items.begin(), dict->items.end(), [&](const auto& item) {
             const Value* value = other.find(item.first);
             return value != nullptr && equal(item.second, *value);
           });
  }
  return a.data() == b.data();
}

Result<bool> less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integer() && b.is_integer() ? a.as_integer() < b.as_integer() : a.as_double() < b.as_double();
  }
  if (a.text() != nullptr && b.text() != nullptr) return a.text()->text() < b.text()->text();
  const List* left = a.list();
  const List* right = b.list();
  if (left != nullptr && right != nullptr && left->kind == right->kind &&
      (left->kind == ListKind::kList || left->kind == ListKind::kTuple)) {
    const size_t common = std::min(left->items.size(), right->items.size());
    for (size_t i = 0; i < common; ++i) {
      if (!equal(left->items[i], right->items[i])) return less(left->items[i], right->items[i]);
    }
    return left->items.size() < right->items.size();
  }
  return fail(ErrorKind::kInvalidArgument, "'<' does not compare {} and {}", type_name(a), type_name(b));
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // Python prints the shortest digits that read back as the same number, with an exponent from 1e16 on.
  std::array<char, 64> digits{};
  const double size = std::fabs(value);
  const bool exponent = value != 0 && (size < 1e-4 || size >= 1e16);
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value,
                                 exponent ? std::chars_format::scientific : std::chars_format::fixed);
  std::string out(digits.data(), end.ptr);
  if (!exponent && out.find('.') == std::string::npos) out += ".0";
  return out;
}

MarkedText to_text(const Value& value) {
  if (const MarkedText* text = value.text()) return *text;
  return value.is_undefined() ? MarkedText() : representation(value);
}

MarkedText representation(const Value& value) {
  if (value.is_undefined()) return MarkedText("Undefined");
  if (value.is_none()) return MarkedText("None");
  if (const bool* boolean = value.get<bool>()) return MarkedText(*boolean ? "True" : "False");
  if (const int64_t* integer = value.get<int64_t>()) return MarkedText(std::to_string(*integer));
  if (const double* number = value.get<double>()) return MarkedText(number_text(*number));
  if (const MarkedText* text = value.text()) return quoted(*text);
  if (const List* list = value.list()) return list_text(*list);
  if (const Dict* dict = value.dict()) return dict_text(*dict);
  return MarkedText(fmt::format("<{}>", type_name(value)));
}

}  // namespace qwen2::jinja
