// Filters of texts and numbers. Those of lists are in list_filters.cpp.
#include "tokenizer/jinja/filters.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "tokenizer/jinja/arguments.h"
#include "tokenizer/jinja/json.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

template <MarkedText (*kChange)(const MarkedText&)>
Result<Value> changed(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  return run.make_text(kChange(to_text(value)));
}

Result<Value> trim(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"chars"}));
  const MarkedText text = to_text(value);
  if (given[0] == nullptr || given[0]->is_none())
    return run.make_text(strip(text, std::nullopt, Side::kBoth));
  QWEN2_TRY(const MarkedText* characters, needed_text(given[0], "chars"));
  QWEN2_CHECK(run.charge(text.size() / 64 * characters->size()));
  return run.make_text(strip(text, characters->text(), Side::kBoth));
}

Result<Value> string(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  return value.text() != nullptr ? value : run.make_text(to_text(value));
}

Result<Value> safe(Interpreter& run, const Value& value, const Arguments& arguments) {
  return string(run, value, arguments);
}

Result<Value> replace_filter(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"old", "new", "count"}));
  QWEN2_TRY(const Value* old, needed(given[0], "old"));
  QWEN2_TRY(const Value* with, needed(given[1], "new"));
  const bool everywhere = given[2] == nullptr || given[2]->is_none();
  QWEN2_TRY(const int64_t limit, whole_number(everywhere ? nullptr : given[2], "count", -1));
  return replaced_text(run, to_text(value), to_text(*old), to_text(*with), limit);
}

Result<Value> indent(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"width", "first", "blank"}));
  MarkedText space;
  if (given[0] != nullptr && given[0]->text() != nullptr) {
    space = *given[0]->text();
  } else {
    QWEN2_TRY(const int64_t width, whole_number(given[0], "width", 4));
    if (width > 1000) return fail(ErrorKind::kInvalidArgument, "'width' is more than 1000");
    space = MarkedText(std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' '));
  }
  QWEN2_TRY(const MarkedText* input, needed_text(&value, "the indented value"));
  MarkedText text = *input;
  text.append("\n", false);  // as Jinja, so that a last line break is kept
  const std::vector<MarkedText> lines = split_lines(text);
  QWEN2_CHECK(run.charge(lines.size(), lines.size() * (space.size() + sizeof(MarkedText))));
  MarkedText out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n", false);
    const bool indented = i == 0 ? flag(given[1]) : flag(given[2]) || !lines[i].empty();
    if (indented) out.append(space);
    out.append(lines[i]);
  }
  return run.make_text(std::move(out));
}

Result<Value> escape(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kEntities = {
      {{"&", "&amp;"}, {">", "&gt;"}, {"<", "&lt;"}, {"'", "&#39;"}, {"\"", "&#34;"}}};
  MarkedText text = to_text(value);
  for (const auto& [character, entity] : kEntities) {
    // An entity comes from the character's message.
    MarkedText out;
    size_t begin = 0;
    for (size_t at = text.text().find(character); at != std::string::npos;
         at = text.text().find(character, begin)) {
      out.append_part(text, begin, at);
      out.append(entity, text.is_from_message(at, at + 1));
      begin = at + 1;
    }
    out.append_part(text, begin, text.size());
    text = std::move(out);
  }
  return run.make_text(std::move(text));
}

// Numbers.

// Python's float() of a text: white space around it, underscores between digits, inf and nan.
std::optional<double> parse_real(const MarkedText& text) {
  std::string digits = strip(text, std::nullopt, Side::kBoth).text();
  std::erase(digits, '_');
  if (digits.starts_with('+')) digits.erase(0, 1);
  double number = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (digits.empty() || read.ptr != digits.data() + digits.size() || read.ec != std::errc())
    return std::nullopt;
  return number;
}

std::optional<int64_t> parse_whole(const MarkedText& text, int base) {
  std::string digits = strip(text, std::nullopt, Side::kBoth).text();
  std::erase(digits, '_');
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.erase(0, 1);
  const std::string prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
  if (!prefix.empty() && (digits.starts_with(prefix) ||
                          digits.starts_with(std::string{'0', static_cast<char>(prefix[1] - 32)}))) {
    digits.erase(0, 2);
  }
  if (negative) digits.insert(0, "-");
  int64_t number = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), number, base);
  if (digits.empty() || read.ptr != digits.data() + digits.size() || read.ec != std::errc())
    return std::nullopt;
  return number;
}

std::optional<int64_t> truncated(double number) {
  if (!(std::fabs(number) < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(number);
}

Result<Value> int_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"default", "base"}));
  QWEN2_TRY(const int64_t base, whole_number(given[1], "base", 10));
  if (base < 2 || base > 36) return fail(ErrorKind::kInvalidArgument, "'base' must be from 2 to 36");
  if (const Undefined* missing = value.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  std::optional<int64_t> number;
  if (value.is_integer()) {
    number = value.as_integer();
  } else if (value.is_number()) {
    number = truncated(value.as_double());
  } else if (value.text() != nullptr) {
    number = parse_whole(*value.text(), static_cast<int>(base));
    if (!number) number = parse_real(*value.text()).and_then(truncated);
  }
  if (number) return Value::integer(*number);
  return given[0] == nullptr ? Value::integer(0) : *given[0];
}

Result<Value> float_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"default"}));
  if (const Undefined* missing = value.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  if (value.is_number()) return Value::number(value.as_double());
  const auto number = value.text() != nullptr ? parse_real(*value.text()) : std::nullopt;
  if (number) return Value::number(*number);
  return given[0] == nullptr ? Value::number(0) : *given[0];
}

Result<Value> absolute(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  if (!value.is_number()) return fail(ErrorKind::kInvalidArgument, "does not take {}", type_name(value));
  if (!value.is_integer()) return Value::number(std::fabs(value.as_double()));
  return value.as_integer() < 0 ? sign(UnaryOperator::kMinus, value) : Value::integer(value.as_integer());
}

Result<Value> round_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"precision", "method"}));
  QWEN2_TRY(const int64_t precision, whole_number(given[0], "precision", 0));
  std::string method = "common";
  if (given[1] != nullptr) {
    QWEN2_TRY(const MarkedText* text, needed_text(given[1], "method"));
    method = text->text();
  }
  if (!value.is_number()) return fail(ErrorKind::kInvalidArgument, "does not take {}", type_name(value));
  if (precision < 0 || precision > 30)
    return fail(ErrorKind::kUnsupported, "'precision' must be from 0 to 30");
  const double factor = std::pow(10, static_cast<double>(precision));
  if (method == "ceil") return Value::number(std::ceil(value.as_double() * factor) / factor);
  if (method == "floor") return Value::number(std::floor(value.as_double() * factor) / factor);
  if (method != "common") return fail(ErrorKind::kInvalidArgument, "'method' must be common, ceil or floor");
  if (value.is_integer()) return Value::integer(value.as_integer());
  // The exact decimal value decides, and halves go to the even digit.
  return Value::number(std::strtod(fmt::format("{:.{}f}", value.as_double(), precision).c_str(), nullptr));
}

// Any value.

Result<Value> default_filter(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"default_value", "boolean"}));
  const bool keep = !value.is_undefined() && (!flag(given[1]) || is_true(value));
  if (keep) return value;
  return given[0] == nullptr ? Value::own("") : *given[0];
}

Result<std::string> separator(const Value& value) {
  QWEN2_TRY(const MarkedText* text, needed_text(&value, "separators"));
  return text->text();
}

Result<JsonStyle> json_style(Interpreter& run, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ascii = flag(given[0]);
  style.sort_keys = flag(given[3]);
  if (given[1] != nullptr && !given[1]->is_none()) {
    if (given[1]->text() != nullptr) {
      style.indent = given[1]->text()->text();
    } else {
      QWEN2_TRY(const int64_t width, whole_number(given[1], "indent", 0));
      if (width > 1000) return fail(ErrorKind::kInvalidArgument, "'indent' is more than 1000");
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
    style.between = ",";
  }
  if (given[2] != nullptr && !given[2]->is_none()) {
    QWEN2_TRY(const std::vector<Value> both, run.items(*given[2]));
    if (both.size() != 2) return fail(ErrorKind::kInvalidArgument, "'separators' must be two texts");
    QWEN2_TRY(style.between, separator(both[0]));
    QWEN2_TRY(style.behind_key, separator(both[1]));
  }
  return style;
}

Result<Value> tojson(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const JsonStyle style, json_style(run, arguments));
  // What each value brings beside its own text.
  const Extent extent = extent_of(value);
  const size_t line = style.indent ? 1 + extent.depth * style.indent->size() : 0;
  QWEN2_CHECK(run.charge(0, extent.weight * (line + style.between.size() + style.behind_key.size())));
  QWEN2_TRY(MarkedText text, to_json(value, style));
  return run.make_text(std::move(text));
}

Result<Value> attr(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"name"}));
  QWEN2_TRY(const MarkedText* name, needed_text(given[0], "name"));
  if (value.dict() != nullptr) return fail(ErrorKind::kUnsupported, "of a dict");
  return run.attribute(value, name->text());
}

constexpr std::array kFilters = {
    NamedFilter{"trim", trim},
    NamedFilter{"upper", changed<upper>},
    NamedFilter{"lower", changed<lower>},
    NamedFilter{"title", changed<title_words>},
    NamedFilter{"capitalize", changed<capitalize>},
    NamedFilter{"string", string},
    NamedFilter{"safe", safe},
    NamedFilter{"replace", replace_filter},
    NamedFilter{"indent", indent},
    NamedFilter{"escape", escape},
    NamedFilter{"e", escape},
    NamedFilter{"int", int_filter},
    NamedFilter{"float", float_filter},
    NamedFilter{"abs", absolute},
    NamedFilter{"round", round_filter},
    NamedFilter{"default", default_filter},
    NamedFilter{"d", default_filter},
    NamedFilter{"tojson", tojson},
    NamedFilter{"attr", attr},
};

}  // namespace

FilterFunction find_filter(std::string_view name) {
  const auto found = std::ranges::find(kFilters, name, &NamedFilter::name);
  return found != kFilters.end() ? found->function : find_list_filter(name);
}

}  // namespace qwen2::jinja
