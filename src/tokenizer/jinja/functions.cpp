#include "tokenizer/jinja/functions.h"

#include <array>
#include <cstdlib>

#include "tokenizer/jinja/arguments.h"
#include "tokenizer/jinja/interpreter.h"

namespace qwen2::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as Jinja's sandbox
constexpr size_t kMaxDate = 1024;       // bytes of a formatted date

Result<Value> range(Interpreter& run, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"start", "stop", "step"}));
  std::array<int64_t, 3> numbers = {0, 0, 1};
  for (size_t i = 0; i < numbers.size(); ++i) {
    QWEN2_TRY(numbers[i], whole_number(given[i], "range", numbers[i]));
  }
  if (given[0] == nullptr) return fail(ErrorKind::kInvalidArgument, "range() needs a number");
  auto [begin, end, step] = numbers;
  if (given[1] == nullptr) {
    end = begin;
    begin = 0;
  }
  if (step == 0) return fail(ErrorKind::kInvalidArgument, "the step of range() is zero");
  std::vector<Value> items;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) {
      return fail(ErrorKind::kInvalidArgument, "range() of more than {} numbers", kMaxRange);
    }
    items.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return run.make_list(std::move(items), ListKind::kRange);
}

Result<std::vector<std::pair<std::string, Value>>> named_values(const Arguments& arguments,
                                                                std::string_view function) {
  std::vector<std::pair<std::string, Value>> values;
  for (const Value& argument : arguments.positional) {
    if (argument.dict() == nullptr) {
      return fail(ErrorKind::kInvalidArgument, "{}() takes a dict or named values, not {}", function,
                  type_name(argument));
    }
    for (const auto& [key, value] : argument.dict()->items) {
      if (key.text() == nullptr)
        return fail(ErrorKind::kInvalidArgument, "{}() takes names that are texts", function);
      values.emplace_back(key.text()->text(), value);
    }
  }
  values.insert(values.end(), arguments.named.begin(), arguments.named.end());
  return values;
}

Result<Value> make_namespace(Interpreter& run, const Arguments& arguments) {
  QWEN2_TRY(auto values, named_values(arguments, "namespace"));
  return run.make_namespace(std::move(values));
}

Result<Value> make_dict(Interpreter& run, const Arguments& arguments) {
  QWEN2_TRY(auto values, named_values(arguments, "dict"));
  std::vector<std::pair<Value, Value>> items;
  for (auto& [name, value] : values) items.emplace_back(Value::own(std::move(name)), std::move(value));
  return run.make_dict(std::move(items));
}

Result<Value> raise_exception(Interpreter&, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"message"}));
  const std::string message = given[0] == nullptr ? "no message" : to_text(*given[0]).text();
  return fail(ErrorKind::kInvalidArgument, "the template refuses: {}", message);
}

// A date without a zone: Python prints nothing for %z and %Z, and knows %f, the microseconds.
std::string without_zone(std::string_view format) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 >= format.size()) {
      out += format[i];
      continue;
    }
    const char c = format[++i];
    if (c == 'f') out += "000000";
    if (c != 'f' && c != 'z' && c != 'Z') out += {'%', c};
  }
  return out;
}

Result<Value> strftime_now(Interpreter& run, const Arguments& arguments, std::time_t now) {
  QWEN2_TRY(const auto given, bind(arguments, {"format"}));
  QWEN2_TRY(const MarkedText* format, needed_text(given[0], "format"));
  std::tm time{};
  if (localtime_r(&now, &time) == nullptr) return fail(ErrorKind::kInternal, "the time of day is not known");
  const std::string clean = without_zone(format->text());
  if (clean.empty()) return run.make_text({});
  std::array<char, kMaxDate> text{};
  const size_t size = std::strftime(text.data(), text.size(), clean.c_str(), &time);
  if (size == 0)
    return fail(ErrorKind::kInvalidArgument, "strftime_now(): '{}' gives nothing or too much", clean);
  return run.make_text(MarkedText(std::string(text.data(), size), !format->from_messages().empty()));
}

}  // namespace

std::vector<std::pair<std::string, Value>> global_functions(std::time_t now) {
  std::vector<std::pair<std::string, Value>> out;
  const auto add = [&](const char* name, auto function) {
    out.emplace_back(name, Value::function(name, function));
  };
  add("range", range);
  add("namespace", make_namespace);
  add("dict", make_dict);
  add("raise_exception", raise_exception);
  add("strftime_now",
      [now](Interpreter& run, const Arguments& arguments) { return strftime_now(run, arguments, now); });
  return out;
}

}  // namespace qwen2::jinja
