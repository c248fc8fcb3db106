// Filters of lists and dicts.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "tokenizer/jinja/arguments.h"
#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/text.h"

namespace qwen2::jinja {
namespace {

using Values = std::vector<Value>;

// The part "a.0.b" of a value: entries and indices one after the other. Without a path the value itself.
Result<Value> by_path(Interpreter& run, const Value& value, const Value* path) {
  if (path == nullptr || path->is_none()) return value;
  if (path->is_integer()) return run.subscript(value, *path);
  QWEN2_TRY(const MarkedText* text, needed_text(path, "attribute"));
  Value current = value;
  for (const MarkedText& part : split(*text, ".", -1, false)) {
    const bool index = !part.empty() && all_characters(part, is_digit) && part.size() < 10;
    QWEN2_TRY(current, run.subscript(current, index ? Value::integer(std::stoll(part.text())) : Value(part)));
  }
  return current;
}

Value without_case(const Value& value, bool case_sensitive) {
  if (case_sensitive || value.text() == nullptr) return value;
  return Value(lower(*value.text()));
}

Result<Value> list(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  QWEN2_TRY(Values items, run.items(value));
  return run.make_list(std::move(items));
}

Result<Value> length(Interpreter&, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  const List* list = value.list();
  size_t size = 0;
  if (value.text() != nullptr) {
    size = character_starts(*value.text()).size() - 1;
  } else if (list != nullptr && list->kind != ListKind::kGenerator) {
    size = list->items.size();
  } else if (value.dict() != nullptr) {
    size = value.dict()->items.size();
  } else if (!value.is_undefined()) {
    return fail(ErrorKind::kInvalidArgument, "a {} has no length", type_name(value));
  }
  return Value::integer(static_cast<int64_t>(size));
}

Result<Value> first(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  QWEN2_TRY(const Values items, run.items(value));
  return items.empty() ? Value::undefined("there is no first item") : items.front();
}

Result<Value> last(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  if (value.list() != nullptr && value.list()->kind == ListKind::kGenerator) {
    return fail(ErrorKind::kInvalidArgument, "a generator has no last item: use '| list' first");
  }
  QWEN2_TRY(const Values items, run.items(value));
  return items.empty() ? Value::undefined("there is no last item") : items.back();
}

Result<Value> reverse(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  if (value.text() != nullptr) return run.make_text(reversed(*value.text()));
  QWEN2_TRY(Values items, run.items(value));
  std::ranges::reverse(items);
  return run.make_list(std::move(items), ListKind::kGenerator);
}

Result<Value> join_filter(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"d", "attribute"}));
  QWEN2_TRY(const Values items, run.items(value));
  const MarkedText separator = given[0] == nullptr ? MarkedText() : to_text(*given[0]);
  std::vector<MarkedText> parts;
  for (const Value& item : items) {
    QWEN2_TRY(const Value part, by_path(run, item, given[1]));
    QWEN2_CHECK(run.charge_for(part));
    parts.push_back(to_text(part));
    QWEN2_CHECK(run.charge(0, separator.size() + parts.back().size() + sizeof(MarkedText)));
  }
  return run.make_text(join(parts, separator));
}

Result<Value> items_filter(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_CHECK(bind(arguments, {}));
  Values out;
  if (value.dict() == nullptr && !value.is_undefined()) {
    return fail(ErrorKind::kInvalidArgument, "takes a dict, not {}", type_name(value));
  }
  if (value.dict() != nullptr) {
    for (const auto& [key, item] : value.dict()->items) {
      QWEN2_TRY(Value pair, run.make_list({key, item}, ListKind::kTuple));
      out.push_back(std::move(pair));
    }
  }
  return run.make_list(std::move(out), ListKind::kGenerator);
}

// Sorts by keys; equal ones keep their order, also from the largest to the smallest.
template <class Item>
Status sort_by(Interpreter& run, std::vector<std::pair<Values, Item>>& keyed, bool descending) {
  const auto before = [&](const Values& a, const Values& b) -> Result<bool> {
    for (size_t i = 0; i < a.size(); ++i) {
      QWEN2_CHECK(run.charge_for(a[i]));
      if (!equal(a[i], b[i])) return less(a[i], b[i]);
    }
    return false;
  };
  Status status;
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    if (!status) return false;
    const auto result = descending ? before(b.first, a.first) : before(a.first, b.first);
    if (!result) status = std::unexpected(result.error());
    return result.value_or(false);
  });
  return status;
}

Result<Value> sort(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"reverse", "case_sensitive", "attribute"}));
  Values paths;  // "a,b": first by a, then by b
  if (given[2] != nullptr && given[2]->text() != nullptr) {
    for (MarkedText& path : split(*given[2]->text(), ",", -1, false)) paths.emplace_back(std::move(path));
  } else {
    paths.push_back(given[2] == nullptr ? Value::none() : *given[2]);
  }
  QWEN2_TRY(const Values items, run.items(value));
  std::vector<std::pair<Values, Value>> keyed;
  for (const Value& item : items) {
    Values keys;
    for (const Value& path : paths) {
      QWEN2_TRY(const Value key, by_path(run, item, &path));
      keys.push_back(without_case(key, flag(given[1])));
    }
    keyed.emplace_back(std::move(keys), item);
  }
  QWEN2_CHECK(sort_by(run, keyed, flag(given[0])));
  Values out;
  for (auto& [keys, item] : keyed) out.push_back(std::move(item));
  return run.make_list(std::move(out));
}

Result<Value> dictsort(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"case_sensitive", "by", "reverse"}));
  if (value.dict() == nullptr)
    return fail(ErrorKind::kInvalidArgument, "takes a dict, not {}", type_name(value));
  const MarkedText by = given[1] == nullptr ? MarkedText("key") : to_text(*given[1]);
  if (by.text() != "key" && by.text() != "value")
    return fail(ErrorKind::kInvalidArgument, "'by' must be key or value");
  std::vector<std::pair<Values, Value>> keyed;
  for (const auto& [key, item] : value.dict()->items) {
    QWEN2_TRY(Value pair, run.make_list({key, item}, ListKind::kTuple));
    keyed.emplace_back(Values{without_case(by.text() == "key" ? key : item, flag(given[0]))},
                       std::move(pair));
  }
  QWEN2_CHECK(sort_by(run, keyed, flag(given[2])));
  Values out;
  for (auto& [keys, item] : keyed) out.push_back(std::move(item));
  return run.make_list(std::move(out));
}

Result<Value> unique(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"case_sensitive", "attribute"}));
  QWEN2_TRY(const Values items, run.items(value));
  Values seen;
  Values out;
  for (const Value& item : items) {
    QWEN2_TRY(const Value path_value, by_path(run, item, given[1]));
    const Value key = without_case(path_value, flag(given[0]));
    QWEN2_CHECK(run.charge(seen.size() + extent_of(key).weight));
    if (std::ranges::any_of(seen, [&](const Value& one) { return equal(one, key); })) continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return run.make_list(std::move(out), ListKind::kGenerator);
}

template <bool kLargest>
Result<Value> extreme(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"case_sensitive", "attribute"}));
  QWEN2_TRY(const Values items, run.items(value));
  if (items.empty()) return Value::undefined("there is no item to choose from");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    QWEN2_TRY(const Value path_value, by_path(run, items[i], given[1]));
    const Value key = without_case(path_value, flag(given[0]));
    bool better = i == 0;
    if (!better) {
      QWEN2_TRY(better, kLargest ? less(best_key, key) : less(key, best_key));
    }
    if (!better) continue;
    best = i;
    best_key = key;
  }
  return items[best];
}

Result<Value> sum(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"attribute", "start"}));
  QWEN2_TRY(const Values items, run.items(value));
  Value total = given[1] == nullptr ? Value::integer(0) : *given[1];
  if (total.text() != nullptr) return fail(ErrorKind::kInvalidArgument, "does not add texts: use 'join'");
  for (const Value& item : items) {
    QWEN2_TRY(const Value part, by_path(run, item, given[0]));
    QWEN2_TRY(total, arithmetic(run, BinaryOperator::kAdd, total, part));
  }
  return total;
}

Result<Value> map(Interpreter& run, const Value& value, const Arguments& arguments) {
  Values out;
  if (!is_true(value)) return run.make_list(std::move(out), ListKind::kGenerator);
  QWEN2_TRY(const Values items, run.items(value));
  if (arguments.positional.empty()) {
    QWEN2_TRY(const auto given, bind(arguments, {"attribute", "default"}));
    QWEN2_TRY(const Value* path, needed(given[0], "attribute"));
    for (const Value& item : items) {
      QWEN2_TRY(const Value part, by_path(run, item, path));
      out.push_back(part.is_undefined() && given[1] != nullptr ? *given[1] : part);
    }
  } else {
    QWEN2_TRY(const MarkedText* name, needed_text(arguments.positional.data(), "a filter's name"));
    const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
    for (const Value& item : items) {
      QWEN2_TRY(Value mapped, run.filter(name->text(), item, rest));
      out.push_back(std::move(mapped));
    }
  }
  return run.make_list(std::move(out), ListKind::kGenerator);
}

// select, reject, and the two that look at an attribute: the items where a test holds, or without one is true.
template <bool kKeep, bool kAttribute>
Result<Value> choose(Interpreter& run, const Value& value, const Arguments& arguments) {
  Values out;
  if (!is_true(value)) return run.make_list(std::move(out), ListKind::kGenerator);
  QWEN2_TRY(const Values items, run.items(value));
  constexpr size_t kTest = kAttribute ? 1 : 0;  // position of the test's name
  if (arguments.positional.size() < kTest)
    return fail(ErrorKind::kInvalidArgument, "needs an attribute's name");
  Arguments rest{{}, arguments.named};
  const bool tested = arguments.positional.size() > kTest;
  if (tested) rest.positional.assign(arguments.positional.begin() + kTest + 1, arguments.positional.end());
  for (const Value& item : items) {
    QWEN2_TRY(const Value looked_at, by_path(run, item, kAttribute ? arguments.positional.data() : nullptr));
    bool holds = is_true(looked_at);
    if (tested) {
      QWEN2_TRY(const MarkedText* name, needed_text(&arguments.positional[kTest], "a test's name"));
      QWEN2_TRY(holds, run.test(name->text(), looked_at, rest));
    }
    if (holds == kKeep) out.push_back(item);
  }
  return run.make_list(std::move(out), ListKind::kGenerator);
}

Result<Value> batch(Interpreter& run, const Value& value, const Arguments& arguments) {
  QWEN2_TRY(const auto given, bind(arguments, {"linecount", "fill_with"}));
  QWEN2_TRY(const int64_t count, whole_number(given[0], "linecount", 0));
  if (count < 1 || count > 100'000)
    return fail(ErrorKind::kInvalidArgument, "'linecount' must be from 1 to 100000");
  QWEN2_TRY(const Values items, run.items(value));
  Values out;
  for (size_t begin = 0; begin < items.size(); begin += static_cast<size_t>(count)) {
    const size_t end = std::min(items.size(), begin + static_cast<size_t>(count));
    Values part(items.begin() + static_cast<ptrdiff_t>(begin), items.begin() + static_cast<ptrdiff_t>(end));
    if (given[1] != nullptr && !given[1]->is_none()) part.resize(static_cast<size_t>(count), *given[1]);
    QWEN2_TRY(Value batched, run.make_list(std::move(part)));
    out.push_back(std::move(batched));
  }
  return run.make_list(std::move(out), ListKind::kGenerator);
}

constexpr std::array kFilters = {
    NamedFilter{"list", list},
    NamedFilter{"length", length},
    NamedFilter{"count", length},
    NamedFilter{"first", first},
    NamedFilter{"last", last},
    NamedFilter{"reverse", reverse},
    NamedFilter{"join", join_filter},
    NamedFilter{"items", items_filter},
    NamedFilter{"sort", sort},
    NamedFilter{"dictsort", dictsort},
    NamedFilter{"unique", unique},
    NamedFilter{"min", extreme<false>},
    NamedFilter{"max", extreme<true>},
    NamedFilter{"sum", sum},
    NamedFilter{"map", map},
    NamedFilter{"select", choose<true, false>},
    NamedFilter{"reject", choose<false, false>},
    NamedFilter{"selectattr", choose<true, true>},
    NamedFilter{"rejectattr", choose<false, true>},
    NamedFilter{"batch", batch},
};

}  // namespace

FilterFunction find_list_filter(std::string_view name) {
  const auto found = std::ranges::find(kFilters, name, &NamedFilter::name);
  return found == kFilters.end() ? nullptr : found->function;
}

}  // namespace qwen2::jinja
