#include "tokenizer/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

std::unexpected<Error> no_operator(std::string_view op, const Value& a, const Value& b) {
  return fail(ErrorKind::kInvalidArgument, "'{}' does not take {} and {}", op, type_name(a), type_name(b));
}

constexpr std::string_view symbol(BinaryOperator op) {
  switch (op) {
    case BinaryOperator::kAnd:
      return "and";
    case BinaryOperator::kOr:
      return "or";
    case BinaryOperator::kAdd:
      return "+";
    case BinaryOperator::kSubtract:
      return "-";
    case BinaryOperator::kMultiply:
      return "*";
    case BinaryOperator::kDivide:
      return "/";
    case BinaryOperator::kFloorDivide:
      return "//";
    case BinaryOperator::kModulo:
      return "%";
    case BinaryOperator::kPower:
      return "**";
  }
  return "";
}

std::optional<int64_t> integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result)) return std::nullopt;
    if (result == 0 || (result == 1 && base == 1)) break;
    if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  }
  return result;
}

// Division and remainder round towards minus infinity.
std::optional<int64_t> integer_result(BinaryOperator op, int64_t a, int64_t b) {
  int64_t out = 0;
  switch (op) {
    case BinaryOperator::kAdd:
      return __builtin_add_overflow(a, b, &out) ? std::nullopt : std::optional(out);
    case BinaryOperator::kSubtract:
      return __builtin_sub_overflow(a, b, &out) ? std::nullopt : std::optional(out);
    case BinaryOperator::kMultiply:
      return __builtin_mul_overflow(a, b, &out) ? std::nullopt : std::optional(out);
    case BinaryOperator::kFloorDivide:
      if (b == -1) return __builtin_sub_overflow(int64_t{0}, a, &out) ? std::nullopt : std::optional(out);
      return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
    case BinaryOperator::kModulo:
      if (b == -1) return 0;
      return a % b + (a % b != 0 && (a % b < 0) != (b < 0) ? b : 0);
    case BinaryOperator::kPower:
      return integer_power(a, b);
    default:
      return std::nullopt;
  }
}

double real_result(BinaryOperator op, double a, double b) {
  switch (op) {
    case BinaryOperator::kAdd:
      return a + b;
    case BinaryOperator::kSubtract:
      return a - b;
    case BinaryOperator::kMultiply:
      return a * b;
    case BinaryOperator::kDivide:
      return a / b;
    case BinaryOperator::kFloorDivide:
      return std::floor(a / b);
    case BinaryOperator::kModulo: {
      const double rest = std::fmod(a, b);
      return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
    }
    default:
      return std::pow(a, b);
  }
}

Result<Value> number_result(BinaryOperator op, const Value& a, const Value& b) {
  const bool divides =
      op == BinaryOperator::kDivide || op == BinaryOperator::kFloorDivide || op == BinaryOperator::kModulo;
  if (divides && b.as_double() == 0) return fail(ErrorKind::kInvalidArgument, "division by zero");
  const bool whole = a.is_integer() && b.is_integer() && op != BinaryOperator::kDivide &&
                     (op != BinaryOperator::kPower || b.as_integer() >= 0);
  if (!whole) return Value::number(real_result(op, a.as_double(), b.as_double()));
  const auto result = integer_result(op, a.as_integer(), b.as_integer());
  if (!result) {
    return fail(ErrorKind::kInvalidArgument, "{} {} {} does not fit into 64 bits", a.as_integer(), symbol(op),
                b.as_integer());
  }
  return Value::integer(*result);
}

Result<Value> add(Interpreter& run, const Value& a, const Value& b) {
  if (a.text() != nullptr && b.text() != nullptr) {
    MarkedText out = *a.text();
    out.append(*b.text());
    return run.make_text(std::move(out));
  }
  const List* left = a.list();
  const List* right = b.list();
  if (left == nullptr || right == nullptr || left->kind != right->kind ||
      (left->kind != ListKind::kList && left->kind != ListKind::kTuple)) {
    return no_operator("+", a, b);
  }
  std::vector<Value> items = left->items;
  items.insert(items.end(), right->items.begin(), right->items.end());
  return run.make_list(std::move(items), left->kind);
}

Result<Value> repeat(Interpreter& run, const Value& value, int64_t count) {
  const auto times = static_cast<size_t>(std::max<int64_t>(count, 0));
  const List* list = value.list();
  const size_t size = list != nullptr ? list->items.size() * sizeof(Value) : value.text()->size();
  size_t total = 0;
  if (__builtin_mul_overflow(size, times, &total))
    return fail(ErrorKind::kInvalidArgument, "the product is too long");
  QWEN2_CHECK(run.charge(size > 0 ? times : 1, total));  // before anything is made
  if (list == nullptr) {
    MarkedText out;
    for (size_t i = 0; size > 0 && i < times; ++i) out.append(*value.text());
    return Value(std::move(out));
  }
  std::vector<Value> items;
  for (size_t i = 0; size > 0 && i < times; ++i)
    items.insert(items.end(), list->items.begin(), list->items.end());
  return run.make_list(std::move(items), list->kind);
}

bool repeats(const Value& value) {
  const List* list = value.list();
  return value.text() != nullptr ||
         (list != nullptr && (list->kind == ListKind::kList || list->kind == ListKind::kTuple));
}

// Python's slice.indices(): where a slice begins, ends and how far it steps.
struct Span {
  int64_t begin, end, step;
};

Result<int64_t> bound(const Value& value, int64_t fallback, int64_t size, int64_t lowest, int64_t highest) {
  if (value.is_none()) return fallback;
  if (!value.is_integer())
    return fail(ErrorKind::kInvalidArgument, "a slice takes integers, not {}", type_name(value));
  const int64_t given = value.as_integer();
  return std::clamp(given < 0 ? given + size : given, lowest, highest);
}

Result<Span> span_of(const Value& begin, const Value& end, const Value& step, int64_t size) {
  Span span{0, 0, 1};
  if (!step.is_none()) {
    if (!step.is_integer())
      return fail(ErrorKind::kInvalidArgument, "a slice takes integers, not {}", type_name(step));
    span.step = step.as_integer();
    if (span.step == 0) return fail(ErrorKind::kInvalidArgument, "the step of a slice is zero");
    // Any step beyond the size takes the first item alone.
    span.step = std::clamp(span.step, -size - 1, size + 1);
  }
  const bool forwards = span.step > 0;
  const int64_t lowest = forwards ? 0 : -1;
  const int64_t highest = forwards ? size : size - 1;
  QWEN2_TRY(span.begin, bound(begin, forwards ? 0 : highest, size, lowest, highest));
  QWEN2_TRY(span.end, bound(end, forwards ? size : -1, size, lowest, highest));
  return span;
}

}  // namespace

Result<Value> arithmetic(Interpreter& run, BinaryOperator op, const Value& a, const Value& b) {
  for (const Value* operand : {&a, &b}) {
    if (const Undefined* missing = operand->get<Undefined>())
      return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  }
  if (a.is_number() && b.is_number()) return number_result(op, a, b);
  if (op == BinaryOperator::kAdd) return add(run, a, b);
  if (op == BinaryOperator::kMultiply && repeats(a) && b.is_integer()) return repeat(run, a, b.as_integer());
  if (op == BinaryOperator::kMultiply && repeats(b) && a.is_integer()) return repeat(run, b, a.as_integer());
  if (op == BinaryOperator::kModulo && a.text() != nullptr) {
    return fail(ErrorKind::kUnsupported, "formatting a text with '%' is not supported");
  }
  return no_operator(symbol(op), a, b);
}

Result<Value> sign(UnaryOperator op, const Value& value) {
  if (const Undefined* missing = value.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  if (!value.is_number())
    return fail(ErrorKind::kInvalidArgument, "a sign does not take {}", type_name(value));
  const bool minus = op == UnaryOperator::kMinus;
  if (!value.is_integer()) return Value::number(minus ? -value.as_double() : value.as_double());
  int64_t out = 0;
  if (__builtin_sub_overflow(int64_t{0}, value.as_integer(), &out)) {
    return fail(ErrorKind::kInvalidArgument, "{} does not fit into 64 bits", value.as_integer());
  }
  return Value::integer(minus ? out : value.as_integer());
}

Result<bool> contains(Interpreter& run, const Value& container, const Value& item) {
  QWEN2_CHECK(run.charge_for(container));
  if (const MarkedText* text = container.text()) {
    if (item.text() == nullptr) {
      return fail(ErrorKind::kInvalidArgument, "'in' looks for a text in a text, not for {}",
                  type_name(item));
    }
    return text->text().find(item.text()->text()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (item.list() != nullptr && item.list()->kind == ListKind::kList)
      return fail(ErrorKind::kInvalidArgument, "a list is no key of a dict");
    if (item.dict() != nullptr) return fail(ErrorKind::kInvalidArgument, "a dict is no key of a dict");
    return dict->find(item) != nullptr;
  }
  if (container.is_undefined()) return false;
  if (container.list() == nullptr)
    return fail(ErrorKind::kInvalidArgument, "'in' does not look into {}", type_name(container));
  QWEN2_TRY(const std::vector<Value> items, run.items(container));
  return std::ranges::any_of(items, [&](const Value& one) { return equal(one, item); });
}

Result<Value> replaced_text(Interpreter& run, const MarkedText& text, const MarkedText& old,
                            const MarkedText& with, int64_t limit) {
  size_t count = old.empty() ? text.size() + 1 : 0;
  for (size_t at = 0; !old.empty() && (at = text.text().find(old.text(), at)) != std::string::npos;
       at += old.size())
    ++count;
  if (limit >= 0) count = std::min(count, static_cast<size_t>(limit));
  size_t added = 0;
  if (__builtin_mul_overflow(count, with.size(), &added))
    return fail(ErrorKind::kInvalidArgument, "the text is too long");
  QWEN2_CHECK(run.charge(count + text.size() / 64, added));
  return run.make_text(replace(text, old.text(), with, limit));
}

size_t position_of(int64_t index, size_t size) {
  const auto signed_size = static_cast<int64_t>(size);
  const int64_t position = index < 0 ? index + signed_size : index;
  return position < 0 || position >= signed_size ? size : static_cast<size_t>(position);
}

Result<Value> slice(Interpreter& run, const Value& container, const Value& begin, const Value& end,
                    const Value& step) {
  QWEN2_CHECK(run.charge_for(container));
  const List* list = container.list();
  const MarkedText* text = container.text();
  const bool sliced = text != nullptr || (list != nullptr && list->kind != ListKind::kGenerator &&
                                          list->kind != ListKind::kView);
  if (!sliced) return fail(ErrorKind::kInvalidArgument, "a slice does not take {}", type_name(container));
  const std::vector<size_t> characters = text != nullptr ? character_starts(*text) : std::vector<size_t>();
  const size_t size = text != nullptr ? characters.size() - 1 : list->items.size();
  QWEN2_TRY(const Span span, span_of(begin, end, step, static_cast<int64_t>(size)));
  MarkedText out;
  std::vector<Value> items;
  for (int64_t i = span.begin; span.step > 0 ? i < span.end : i > span.end; i += span.step) {
    const auto at = static_cast<size_t>(i);
    if (text != nullptr) {
      out.append_part(*text, characters[at], characters[at + 1]);
    } else {
      items.push_back(list->items[at]);
    }
  }
  return text != nullptr ? run.make_text(std::move(out)) : run.make_list(std::move(items), list->kind);
}

}  // namespace qwen2::jinja
