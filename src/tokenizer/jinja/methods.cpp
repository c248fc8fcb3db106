#include "tokenizer/jinja/methods.h"

#include <algorithm>
#include <array>
#include <optional>

#include "tokenizer/jinja/arguments.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

using Method = Result<Value> (*)(Interpreter&, const Value& self, const Arguments&);

struct Named {
  std::string_view name;
  Method method;
};

// Strings.

template <MarkedText (*kChange)(const MarkedText&)>
Result<Value> changed(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  return run.make_text(kChange(*self.text()));
}

template <Side kSide>
Result<Value> stripped(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"chars"}));
  if (given[0] == nullptr || given[0]->is_none())
    return run.make_text(strip(*self.text(), std::nullopt, kSide));
  QWEN2_TRY(const MarkedText* characters, needed_text(given[0], "chars"));
  QWEN2_CHECK(run.charge(self.text()->size() / 64 * characters->size()));
  return run.make_text(strip(*self.text(), characters->text(), kSide));
}

Result<Value> list_of(Interpreter& run, std::vector<MarkedText> parts) {
  std::vector<Value> items;
  size_t bytes = 0;
  for (MarkedText& part : parts) {
    bytes += sizeof(MarkedText) + part.size();
    items.emplace_back(std::move(part));
  }
  QWEN2_CHECK(run.charge(items.size(), bytes));
  return run.make_list(std::move(items));
}

template <bool kFromRight>
Result<Value> split_text(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"sep", "maxsplit"}));
  QWEN2_TRY(const int64_t limit, whole_number(given[1], "maxsplit", -1));
  // Each part costs memory, and there are at most as many as bytes.
  QWEN2_CHECK(run.charge(self.text()->size() / 8));
  if (given[0] == nullptr || given[0]->is_none()) {
    if (kFromRight && limit >= 0)
      return fail(ErrorKind::kUnsupported, "rsplit() at white space with 'maxsplit'");
    return list_of(run, split_at_space(*self.text(), limit));
  }
  QWEN2_TRY(const MarkedText* separator, needed_text(given[0], "sep"));
  if (separator->empty()) return fail(ErrorKind::kInvalidArgument, "the separator is empty");
  return list_of(run, split(*self.text(), separator->text(), limit, kFromRight));
}

Result<Value> split_into_lines(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  QWEN2_CHECK(run.charge(self.text()->size() / 8));
  return list_of(run, split_lines(*self.text()));
}

// One text, or a tuple of them.
template <bool kEnd>
Result<Value> has_at_end(Interpreter& run, const Value& self, const Arguments& arguments) {
  constexpr std::string_view kName = kEnd ? "suffix" : "prefix";
  QWEN2_TRY(const auto given, bind(arguments, {kName}));
  QWEN2_TRY(const Value* wanted, needed(given[0], kName));
  std::vector<Value> choices = {*wanted};
  if (wanted->list() != nullptr && wanted->list()->kind == ListKind::kTuple) {
    QWEN2_TRY(choices, run.items(*wanted));
  }
  bool found = false;
  for (const Value& choice : choices) {
    QWEN2_TRY(const MarkedText* text, needed_text(&choice, kName));
    const std::string& whole = self.text()->text();
    found = found || (kEnd ? whole.ends_with(text->text()) : whole.starts_with(text->text()));
  }
  return Value::boolean(found);
}

Result<Value> replaced(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"old", "new", "count"}));
  QWEN2_TRY(const MarkedText* old, needed_text(given[0], "old"));
  QWEN2_TRY(const MarkedText* with, needed_text(given[1], "new"));
  QWEN2_TRY(const int64_t limit, whole_number(given[2], "count", -1));
  return replaced_text(run, *self.text(), *old, *with, limit);
}

// The position in characters.
Result<Value> position(const MarkedText& text, size_t byte) {
  if (byte == std::string::npos) return Value::integer(-1);
  return Value::integer(static_cast<int64_t>(character_starts(text.part(0, byte)).size()) - 1);
}

template <bool kLast>
Result<Value> found_at(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"sub"}));
  QWEN2_TRY(const MarkedText* part, needed_text(given[0], "sub"));
  QWEN2_CHECK(run.charge_for(self));
  const std::string& whole = self.text()->text();
  return position(*self.text(), kLast ? whole.rfind(part->text()) : whole.find(part->text()));
}

Result<Value> occurrences(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"sub"}));
  QWEN2_TRY(const MarkedText* part, needed_text(given[0], "sub"));
  QWEN2_CHECK(run.charge_for(self));
  const std::string& whole = self.text()->text();
  if (part->empty()) return Value::integer(static_cast<int64_t>(character_starts(*self.text()).size()));
  int64_t count = 0;
  for (size_t at = whole.find(part->text()); at != std::string::npos;
       at = whole.find(part->text(), at + part->size())) {
    ++count;
  }
  return Value::integer(count);
}

Result<Value> joined(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"iterable"}));
  QWEN2_TRY(const Value* iterable, needed(given[0], "iterable"));
  QWEN2_TRY(const std::vector<Value> items, run.items(*iterable));
  std::vector<MarkedText> parts;
  for (const Value& item : items) {
    QWEN2_TRY(const MarkedText* part, needed_text(&item, "an item of join()"));
    QWEN2_CHECK(run.charge_for(item));
    parts.push_back(*part);
  }
  QWEN2_CHECK(run.charge(parts.size(), parts.size() * self.text()->size()));
  return run.make_text(join(parts, *self.text()));
}

template <bool kEnd>
Result<Value> without_end(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"part"}));
  QWEN2_TRY(const MarkedText* part, needed_text(given[0], "part"));
  const MarkedText& text = *self.text();
  const bool has = kEnd ? text.text().ends_with(part->text()) : text.text().starts_with(part->text());
  if (!has) return self;
  return run.make_text(kEnd ? text.part(0, text.size() - part->size())
                            : text.part(part->size(), text.size()));
}

template <bool (*kIs)(char32_t)>
Result<Value> all_are(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  QWEN2_CHECK(run.charge_for(self));
  return Value::boolean(!self.text()->empty() && all_characters(*self.text(), kIs));
}

// True where there are letters and all of them are of one case.
template <MarkedText (*kSame)(const MarkedText&), MarkedText (*kOther)(const MarkedText&)>
Result<Value> has_case(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  QWEN2_CHECK(run.charge_for(self));
  const std::string& text = self.text()->text();
  return Value::boolean(kSame(*self.text()).text() == text && kOther(*self.text()).text() != text);
}

constexpr std::array kTextMethods = {
    Named{"strip", stripped<Side::kBoth>},
    Named{"lstrip", stripped<Side::kLeft>},
    Named{"rstrip", stripped<Side::kRight>},
    Named{"split", split_text<false>},
    Named{"rsplit", split_text<true>},
    Named{"splitlines", split_into_lines},
    Named{"startswith", has_at_end<false>},
    Named{"endswith", has_at_end<true>},
    Named{"replace", replaced},
    Named{"find", found_at<false>},
    Named{"rfind", found_at<true>},
    Named{"count", occurrences},
    Named{"join", joined},
    Named{"upper", changed<upper>},
    Named{"lower", changed<lower>},
    Named{"title", changed<title>},
    Named{"capitalize", changed<capitalize>},
    Named{"removeprefix", without_end<false>},
    Named{"removesuffix", without_end<true>},
    Named{"isspace", all_are<is_space>},
    Named{"isdigit", all_are<is_digit>},
    Named{"isalpha", all_are<is_letter>},
    Named{"isalnum", all_are<is_letter_or_number>},
    Named{"isupper", has_case<upper, lower>},
    Named{"islower", has_case<lower, upper>},
};

// Lists and tuples.

Result<Value> list_count(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"value"}));
  QWEN2_TRY(const Value* wanted, needed(given[0], "value"));
  QWEN2_CHECK(run.charge_for(self));
  return Value::integer(
      std::ranges::count_if(self.list()->items, [&](const Value& item) { return equal(item, *wanted); }));
}

Result<Value> list_index(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"value"}));
  QWEN2_TRY(const Value* wanted, needed(given[0], "value"));
  QWEN2_CHECK(run.charge_for(self));
  const auto& items = self.list()->items;
  const auto found = std::ranges::find_if(items, [&](const Value& item) { return equal(item, *wanted); });
  if (found == items.end()) return fail(ErrorKind::kInvalidArgument, "the value is not in the list");
  return Value::integer(found - items.begin());
}

constexpr std::array kListMethods = {Named{"count", list_count}, Named{"index", list_index}};

// Dicts.

Result<Value> dict_get(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"key", "default"}));
  QWEN2_TRY(const Value* key, needed(given[0], "key"));
  QWEN2_CHECK(run.charge(self.dict()->items.size() / 8));
  if (const Value* value = self.dict()->find(*key)) return *value;
  return given[1] == nullptr ? Value::none() : *given[1];
}

template <bool kKeys, bool kValues>
Result<Value> dict_view(Interpreter& run, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict()->items) {
    if (kKeys && kValues) {
      QWEN2_TRY(Value pair, run.make_list({key, value}, ListKind::kTuple));
      items.push_back(std::move(pair));
    } else {
      items.push_back(kKeys ? key : value);
    }
  }
  return run.make_list(std::move(items), ListKind::kView);
}

Result<Value> itself(Interpreter&, const Value& self, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  return self;
}

constexpr std::array kDictMethods = {
    Named{"get", dict_get},
    Named{"items", dict_view<true, true>},
    Named{"keys", dict_view<true, false>},
    Named{"values", dict_view<false, true>},
    Named{"copy", itself},
};

// Python has them, and its sandbox refuses to call them.
constexpr std::array<std::string_view, 12> kChanging = {"append",  "extend",     "insert", "remove",
                                                        "reverse", "sort",       "pop",    "clear",
                                                        "popitem", "setdefault", "update", "fromkeys"};

Result<Value> bound(const Value& self, const Named& named) {
  return Value::function(std::string(named.name),
                         [self, method = named.method, name = named.name](
                             Interpreter& run, const Arguments& arguments) -> Result<Value> {
                           auto value = method(run, self, arguments);
                           if (!value) return within(fmt::format("{}()", name), value.error());
                           return value;
                         });
}

Result<Value> refused(const Value& self, std::string_view name) {
  return Value::function(std::string(name),
                         [type = type_name(self), name](Interpreter&, const Arguments&) -> Result<Value> {
                           return fail(ErrorKind::kInvalidArgument,
                                       "{}() is not allowed: a template cannot change a {}", name, type);
                         });
}

Result<Value> in_table(const Value& self, std::string_view name, std::span<const Named> table,
                       bool can_change) {
  const auto found = std::ranges::find(table, name, &Named::name);
  if (found != table.end()) return bound(self, *found);
  if (can_change && std::ranges::find(kChanging, name) != kChanging.end()) return refused(self, name);
  return Value();
}

// Loops.

Result<Value> cycle(const Loop& loop, const Arguments& arguments) {
  if (arguments.positional.empty()) return fail(ErrorKind::kInvalidArgument, "loop.cycle() needs values");
  return arguments.positional[loop.index % arguments.positional.size()];
}

Result<Value> changed_since(Interpreter& run, Loop& loop, const Arguments& arguments) {
  if (loop.ended) return fail(ErrorKind::kInvalidArgument, "loop.changed() of a loop that has ended");
  for (const Value& value : arguments.positional) QWEN2_CHECK(run.charge_for(value));
  const bool same = loop.watched && std::ranges::equal(*loop.watched, arguments.positional, equal);
  loop.watched = arguments.positional;
  return Value::boolean(!same);
}

Result<Value> neighbour(const Loop& loop, bool next) {
  const size_t at = next ? loop.index + 1 : loop.index - 1;  // wraps to a large number before the first
  if (at < loop.items.size()) return loop.items[at];
  return Value::undefined(next ? "there is no next item" : "there is no previous item");
}

Result<Value> loop_attribute(const std::shared_ptr<Loop>& loop, std::string_view name) {
  const auto whole = [](size_t number) { return Value::integer(static_cast<int64_t>(number)); };
  if (name == "index") return whole(loop->index + 1);
  if (name == "index0") return whole(loop->index);
  if (name == "first") return Value::boolean(loop->index == 0);
  if (name == "depth") return whole(loop->depth + 1);
  if (name == "depth0") return whole(loop->depth);
  if (name == "previtem") return neighbour(*loop, false);
  if (name == "cycle") {
    return Value::function(
        "cycle", [loop](Interpreter&, const Arguments& arguments) { return cycle(*loop, arguments); });
  }
  if (name == "last" || name == "nextitem") {
    QWEN2_CHECK(read_items(*loop, loop->index + 2));
    return name == "last" ? Value::boolean(loop->index + 1 >= loop->items.size()) : neighbour(*loop, true);
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    QWEN2_CHECK(read_items(*loop, loop->source.size()));
    const size_t length = loop->items.size();
    return whole(name == "length" ? length : length - loop->index - (name == "revindex" ? 0 : 1));
  }
  if (name == "changed") {
    return Value::function("changed", [loop](Interpreter& run, const Arguments& arguments) {
      return changed_since(run, *loop, arguments);
    });
  }
  return Value();
}

}  // namespace

Result<Value> method_of(const Value& object, std::string_view name) {
  if (name.starts_with("__")) return fail(ErrorKind::kInvalidArgument, "'{}' is not for templates", name);
  if (const auto* loop = object.get<std::shared_ptr<Loop>>()) return loop_attribute(*loop, name);
  if (object.text() != nullptr) return in_table(object, name, kTextMethods, false);
  if (object.list() != nullptr)
    return in_table(object, name, kListMethods, object.list()->kind == ListKind::kList);
  if (object.dict() != nullptr) return in_table(object, name, kDictMethods, true);
  return Value();
}

}  // namespace qwen2::jinja
