#include "tokenizer/jinja/tests.h"

#include <algorithm>
#include <array>

#include "tokenizer/jinja/arguments.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

using Check = bool (*)(const Value&);

// A test without arguments.
template <Check kCheck>
Result<bool> plain(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  return kCheck(value);
}

bool is_defined(const Value& value) {
  return !value.is_undefined();
}
bool is_undefined(const Value& value) {
  return value.is_undefined();
}
bool is_none(const Value& value) {
  return value.is_none();
}
bool is_string(const Value& value) {
  return value.text() != nullptr;
}
bool is_number(const Value& value) {
  return value.is_number();
}
bool is_boolean(const Value& value) {
  return value.get<bool>() != nullptr;
}
bool is_whole(const Value& value) {
  return value.get<int64_t>() != nullptr;
}
bool is_real(const Value& value) {
  return value.get<double>() != nullptr;
}
bool is_mapping(const Value& value) {
  return value.dict() != nullptr;
}
bool is_the_true(const Value& value) {
  return value.get<bool>() != nullptr && *value.get<bool>();
}
bool is_the_false(const Value& value) {
  return value.get<bool>() != nullptr && !*value.get<bool>();
}

// Jinja counts an undefined value in: it is empty, and has the methods.
bool is_iterable(const Value& value) {
  return value.is_undefined() || value.text() != nullptr || value.list() != nullptr ||
         value.dict() != nullptr;
}
bool is_sequence(const Value& value) {
  const List* list = value.list();
  return is_iterable(value) &&
         (list == nullptr || (list->kind != ListKind::kGenerator && list->kind != ListKind::kView));
}
bool is_callable(const Value& value) {
  return value.is_undefined() || value.get<const Macro*>() != nullptr ||
         value.get<std::shared_ptr<const Function>>() != nullptr;
}

// Has letters, and none of the other case.
bool is_lower(const Value& value) {
  const MarkedText text = to_text(value);
  return lower(text).text() == text.text() && upper(text).text() != text.text();
}
bool is_upper(const Value& value) {
  const MarkedText text = to_text(value);
  return upper(text).text() == text.text() && lower(text).text() != text.text();
}

Result<const Value*> other_of(const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"other"}));
  return needed(given[0], "other");
}

Result<bool> equal_to(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const Value* other, other_of(arguments));
  QWEN2_CHECK(run.charge_for(value));
  return equal(value, *other);
}
Result<bool> not_equal_to(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const bool same, equal_to(run, value, arguments));
  return !same;
}
Result<bool> less_than(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const Value* other, other_of(arguments));
  QWEN2_CHECK(run.charge_for(value));
  return less(value, *other);
}
Result<bool> greater_than(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const Value* other, other_of(arguments));
  QWEN2_CHECK(run.charge_for(value));
  return less(*other, value);
}
Result<bool> at_most(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const bool strictly, less_than(run, value, arguments));
  return strictly ? true : equal_to(run, value, arguments);
}
Result<bool> at_least(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const bool strictly, greater_than(run, value, arguments));
  return strictly ? true : equal_to(run, value, arguments);
}

Result<bool> is_in(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"seq"}));
  QWEN2_TRY(const Value* container, needed(given[0], "seq"));
  return contains(run, *container, value);
}

Result<bool> same_as(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const Value* other, other_of(arguments));
  return value.data() == other->data();
}

Result<int64_t> remainder(Interpreter& run, const Value& value, const Value& divisor) {
  QWEN2_TRY(const Value rest, arithmetic(run, BinaryOperator::kModulo, value, divisor));
  return rest.is_integer() ? rest.as_integer() : static_cast<int64_t>(rest.as_double() != 0);
}
Result<bool> is_odd(Interpreter& run, const Value& value, const Arguments&) {
  QWEN2_TRY(const int64_t rest, remainder(run, value, Value::integer(2)));
  return rest == 1;
}
Result<bool> is_even(Interpreter& run, const Value& value, const Arguments&) {
  QWEN2_TRY(const int64_t rest, remainder(run, value, Value::integer(2)));
  return rest == 0;
}
Result<bool> is_divisible_by(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"num"}));
  QWEN2_TRY(const Value* divisor, needed(given[0], "num"));
  QWEN2_TRY(const int64_t rest, remainder(run, value, *divisor));
  return rest == 0;
}

Result<bool> is_filter(Interpreter&, const Value& value, const Arguments&) {
  return value.text() != nullptr && find_filter(value.text()->text()) != nullptr;
}
Result<bool> is_test(Interpreter&, const Value& value, const Arguments&) {
  return value.text() != nullptr && find_test(value.text()->text()) != nullptr;
}

struct Named {
  std::string_view name;
  TestFunction function;
};

constexpr std::array kTests = {
    Named{"defined", plain<is_defined>},
    Named{"undefined", plain<is_undefined>},
    Named{"none", plain<is_none>},
    Named{"string", plain<is_string>},
    Named{"number", plain<is_number>},
    Named{"boolean", plain<is_boolean>},
    Named{"integer", plain<is_whole>},
    Named{"float", plain<is_real>},
    Named{"mapping", plain<is_mapping>},
    Named{"true", plain<is_the_true>},
    Named{"false", plain<is_the_false>},
    Named{"iterable", plain<is_iterable>},
    Named{"sequence", plain<is_sequence>},
    Named{"callable", plain<is_callable>},
    Named{"lower", plain<is_lower>},
    Named{"upper", plain<is_upper>},
    Named{"equalto", equal_to},
    Named{"eq", equal_to},
    Named{"==", equal_to},
    Named{"ne", not_equal_to},
    Named{"!=", not_equal_to},
    Named{"lt", less_than},
    Named{"lessthan", less_than},
    Named{"<", less_than},
    Named{"gt", greater_than},
    Named{"greaterthan", greater_than},
    Named{">", greater_than},
    Named{"le", at_most},
    Named{"<=", at_most},
    Named{"ge", at_least},
    Named{">=", at_least},
    Named{"in", is_in},
    Named{"sameas", same_as},
    Named{"odd", is_odd},
    Named{"even", is_even},
    Named{"divisibleby", is_divisible_by},
    Named{"filter", is_filter},
    Named{"test", is_test},
};

}  // namespace

TestFunction find_test(std::string_view name) {
  const auto found = std::ranges::find(kTests, name, &Named::name);
  return found == kTests.end() ? nullptr : found->function;
}

}  // namespace qwen2::jinja
