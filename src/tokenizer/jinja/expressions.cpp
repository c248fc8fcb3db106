// Expressions: Interpreter::evaluate and what it looks up.
#include <algorithm>

#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/methods.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/tests.h"
#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

// Python refuses what can change as a key.
bool is_key(const Value& value) {
  if (const List* list = value.list()) {
    return list->kind != ListKind::kList && std::ranges::all_of(list->items, is_key);
  }
  return value.dict() == nullptr;
}

}  // namespace

Result<Value> Interpreter::evaluate(const Expression& expression) {
  const Nested nested(depth_);
  if (depth_ > kMaxDepth) {
    return located(expression.line,
                   Error{ErrorKind::kInvalidArgument, fmt::format("more than {} levels deep", kMaxDepth)});
  }
  const Status charged = charge(1);
  if (!charged) return located(expression.line, charged.error());
  auto value = std::visit([&](const auto& node) { return evaluate(node); }, expression.node);
  if (!value) return located(expression.line, value.error());
  return value;
}

Result<Value> Interpreter::evaluate(const Name& node) {
  const Value* value = find(node.name);
  return value != nullptr ? *value : Value::undefined(fmt::format("'{}' is undefined", node.name));
}

Result<Value> Interpreter::evaluate(const Sequence& node) {
  std::vector<Value> items;
  items.reserve(node.items.size());
  for (const ExpressionPtr& item : node.items) {
    QWEN2_TRY(Value value, evaluate(*item));
    items.push_back(std::move(value));
  }
  return make_list(std::move(items), node.tuple ? ListKind::kTuple : ListKind::kList);
}

Result<Value> Interpreter::evaluate(const DictLiteral& node) {
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key_node, value_node] : node.items) {
    QWEN2_TRY(Value key, evaluate(*key_node));
    QWEN2_TRY(Value value, evaluate(*value_node));
    if (!is_key(key)) return fail(ErrorKind::kInvalidArgument, "a {} is no key of a dict", type_name(key));
    const auto same = std::ranges::find_if(items, [&](const auto& item) { return equal(item.first, key); });
    if (same != items.end()) {
      same->second = std::move(value);
    } else {
      items.emplace_back(std::move(key), std::move(value));
    }
  }
  return make_dict(std::move(items));
}

Result<Value> Interpreter::evaluate(const Unary& node) {
  QWEN2_TRY(const Value operand, evaluate(*node.operand));
  if (node.op == UnaryOperator::kNot) return Value::boolean(!is_true(operand));
  return sign(node.op, operand);
}

Result<Value> Interpreter::evaluate(const Binary& node) {
  QWEN2_TRY(Value left, evaluate(*node.left));
  if (node.op == BinaryOperator::kAnd)
    return is_true(left) ? evaluate(*node.right) : Result<Value>(std::move(left));
  if (node.op == BinaryOperator::kOr)
    return is_true(left) ? Result<Value>(std::move(left)) : evaluate(*node.right);
  QWEN2_TRY(const Value right, evaluate(*node.right));
  return arithmetic(*this, node.op, left, right);
}

Result<bool> Interpreter::compare(Comparison op, const Value& a, const Value& b) {
  if (op == Comparison::kIn) return contains(*this, b, a);
  if (op == Comparison::kNotIn) {
    QWEN2_TRY(const bool in, contains(*this, b, a));
    return !in;
  }
  QWEN2_CHECK(charge_for(a));
  QWEN2_CHECK(charge_for(b));
  switch (op) {
    case Comparison::kEqual:
      return equal(a, b);
    case Comparison::kNotEqual:
      return !equal(a, b);
    case Comparison::kLess:
      return less(a, b);
    case Comparison::kGreater:
      return less(b, a);
    default:
      break;
  }
  // `<=` is `<` or equal, also where numbers are NaN.
  QWEN2_TRY(const bool strictly, op == Comparison::kLessEqual ? less(a, b) : less(b, a));
  return strictly || equal(a, b);
}

Result<Value> Interpreter::evaluate(const Compare& node) {
  QWEN2_TRY(Value left, evaluate(*node.first));
  for (const auto& [op, operand] : node.rest) {
    QWEN2_TRY(Value right, evaluate(*operand));
    QWEN2_TRY(const bool holds, compare(op, left, right));
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Result<Value> Interpreter::evaluate(const Concatenation& node) {
  MarkedText out;
  for (const ExpressionPtr& part : node.parts) {
    QWEN2_TRY(const Value value, evaluate(*part));
    QWEN2_CHECK(charge_for(value));
    out.append(to_text(value));
  }
  return make_text(std::move(out));
}

Result<Value> Interpreter::evaluate(const Conditional& node) {
  QWEN2_TRY(const Value condition, evaluate(*node.condition));
  if (is_true(condition)) return evaluate(*node.then);
  if (node.otherwise != nullptr) return evaluate(*node.otherwise);
  return Value::undefined("the condition of an 'if' without 'else' does not hold");
}

Result<Value> Interpreter::evaluate(const Attribute& node) {
  QWEN2_TRY(const Value object, evaluate(*node.object));
  return attribute(object, node.name);
}

Result<Value> Interpreter::evaluate(const Subscript& node) {
  QWEN2_TRY(const Value object, evaluate(*node.object));
  QWEN2_TRY(const Value index, evaluate(*node.index));
  return subscript(object, index);
}

Result<Value> Interpreter::evaluate(const Slice& node) {
  QWEN2_TRY(const Value object, evaluate(*node.object));
  if (const Undefined* missing = object.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  std::array<Value, 3> bounds = {Value::none(), Value::none(), Value::none()};
  const std::array<const ExpressionPtr*, 3> nodes = {&node.begin, &node.end, &node.step};
  for (size_t i = 0; i < bounds.size(); ++i) {
    if (*nodes[i] == nullptr) continue;
    QWEN2_TRY(bounds[i], evaluate(**nodes[i]));
  }
  return slice(*this, object, bounds[0], bounds[1], bounds[2]);
}

Result<Arguments> Interpreter::evaluate(const CallArguments& arguments) {
  Arguments out;
  for (const ExpressionPtr& argument : arguments.positional) {
    QWEN2_TRY(Value value, evaluate(*argument));
    out.positional.push_back(std::move(value));
  }
  for (const auto& [name, argument] : arguments.named) {
    QWEN2_TRY(Value value, evaluate(*argument));
    out.named.emplace_back(name, std::move(value));
  }
  return out;
}

Result<Value> Interpreter::evaluate(const Call& node) {
  QWEN2_TRY(const Value function, evaluate(*node.function));
  QWEN2_TRY(const Arguments arguments, evaluate(node.arguments));
  return call(function, arguments);
}

Result<Value> Interpreter::evaluate(const Filter& node) {
  QWEN2_TRY(const Value input, evaluate(*node.input));
  QWEN2_TRY(const Arguments arguments, evaluate(node.arguments));
  return filter(node.name, input, arguments);
}

Result<Value> Interpreter::apply(const Expression& filter_node, Value input) {
  const auto& node = std::get<Filter>(filter_node.node);
  if (node.input != nullptr) {
    QWEN2_TRY(input, apply(*node.input, std::move(input)));
  }
  QWEN2_TRY(const Arguments arguments, evaluate(node.arguments));
  return filter(node.name, input, arguments);
}

Result<Value> Interpreter::evaluate(const Test& node) {
  QWEN2_TRY(const Value input, evaluate(*node.input));
  QWEN2_TRY(const Arguments arguments, evaluate(node.arguments));
  QWEN2_TRY(const bool holds, test(node.name, input, arguments));
  return Value::boolean(holds != node.negated);
}

Result<Value> Interpreter::filter(std::string_view name, const Value& input, const Arguments& arguments) {
  const auto function = find_filter(name);
  if (function == nullptr) return fail(ErrorKind::kUnsupported, "the filter '{}' is not supported", name);
  QWEN2_CHECK(charge_for(input));
  auto result = function(*this, input, arguments);
  if (!result && !located_) return within(fmt::format("filter '{}'", name), result.error());
  return result;
}

Result<bool> Interpreter::test(std::string_view name, const Value& input, const Arguments& arguments) {
  const auto function = find_test(name);
  if (function == nullptr) return fail(ErrorKind::kUnsupported, "the test '{}' is not supported", name);
  QWEN2_CHECK(charge(1));
  auto result = function(*this, input, arguments);
  if (!result && !located_) return within(fmt::format("test '{}'", name), result.error());
  return result;
}

Result<Value> Interpreter::attribute(const Value& object, std::string_view name) {
  QWEN2_CHECK(charge(1));
  if (const Undefined* missing = object.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  if (const auto* space = object.get<Namespace*>()) {
    const auto& values = (*space)->values;
    const auto found = std::ranges::find(values, name, &std::pair<std::string, Value>::first);
    if (found != values.end()) return found->second;
  }
  QWEN2_TRY(Value method, method_of(object, name));
  if (!method.is_undefined()) return method;
  if (const Dict* dict = object.dict()) {
    QWEN2_CHECK(charge(dict->items.size() / 8));
    if (const Value* value = dict->find(name)) return *value;
  }
  return Value::undefined(fmt::format("a {} has no attribute '{}'", type_name(object), name));
}

Result<Value> Interpreter::subscript(const Value& object, const Value& index) {
  QWEN2_CHECK(charge(1));
  if (const Undefined* missing = object.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  if (const Dict* dict = object.dict()) {
    QWEN2_CHECK(charge(dict->items.size() / 8));
    if (const Value* value = dict->find(index)) return *value;
  }
  const List* list = object.list();
  if (list != nullptr && index.is_integer() && list->kind != ListKind::kGenerator &&
      list->kind != ListKind::kView) {
    const size_t at = position_of(index.as_integer(), list->items.size());
    if (at < list->items.size()) return list->items[at];
  }
  if (object.text() != nullptr && index.is_integer()) {
    QWEN2_CHECK(charge_for(object));
    const std::vector<size_t> characters = character_starts(*object.text());
    const size_t at = position_of(index.as_integer(), characters.size() - 1);
    if (at + 1 < characters.size()) return make_text(object.text()->part(characters[at], characters[at + 1]));
  }
  if (index.text() != nullptr && object.get<Namespace*>() != nullptr)
    return attribute(object, index.text()->text());
  if (index.text() != nullptr) {
    QWEN2_TRY(Value method, method_of(object, index.text()->text()));
    if (!method.is_undefined()) return method;
  }
  return Value::undefined(
      fmt::format("a {} has no element {}", type_name(object), representation(index).text()));
}

Result<std::vector<Value>> Interpreter::items(const Value& value) {
  if (value.is_undefined()) return std::vector<Value>();
  if (const List* list = value.list()) {
    QWEN2_CHECK(charge(list->items.size(), list->items.size() * sizeof(Value)));
    if (list->kind == ListKind::kGenerator && std::exchange(list->consumed, true))
      return std::vector<Value>();
    return list->items;
  }
  std::vector<Value> out;
  if (const Dict* dict = value.dict()) {
    QWEN2_CHECK(charge(dict->items.size(), dict->items.size() * sizeof(Value)));
    for (const auto& item : dict->items) out.push_back(item.first);
    return out;
  }
  if (const MarkedText* text = value.text()) {
    const std::vector<size_t> characters = character_starts(*text);
    constexpr size_t kBytes = sizeof(Value) + sizeof(MarkedText);
    QWEN2_CHECK(charge(characters.size(), characters.size() * kBytes));
    for (size_t i = 0; i + 1 < characters.size(); ++i)
      out.emplace_back(text->part(characters[i], characters[i + 1]));
    return out;
  }
  return fail(ErrorKind::kInvalidArgument, "a {} has no items to go through", type_name(value));
}

}  // namespace qwen2::jinja
