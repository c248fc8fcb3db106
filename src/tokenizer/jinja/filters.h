// Jinja's filters, `value | name`: https://jinja.palletsprojects.com/templates/#list-of-builtin-filters
// tojson is Transformers', without HTML's escapes.
#pragma once

#include <string_view>

#include "base/error.h"
#include "tokenizer/jinja/interpreter.h"

namespace qwen2::jinja {

using FilterFunction = Result<Value> (*)(Interpreter&, const Value&, const Arguments&);

struct NamedFilter {
  std::string_view name;
  FilterFunction function;
};

// Null where there is no such filter.
FilterFunction find_filter(std::string_view name);
// The one of those that work on lists and dicts.
FilterFunction find_list_filter(std::string_view name);

}  // namespace qwen2::jinja
