// How functions, filters and methods read what they are called with.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/value.h"

namespace qwen2::jinja {

// The values of the parameters `names`, given by position or by name; null where one was not given. An error
// names what the function does not take.
Result<std::vector<const Value*>> bind(const Arguments& arguments,
                                       std::initializer_list<std::string_view> names);

// The value, or what stands for it where it was not given.
bool flag(const Value* value, bool fallback = false);
Result<int64_t> whole_number(const Value* value, std::string_view name, int64_t fallback);
Result<const MarkedText*> needed_text(const Value* value, std::string_view name);
Result<const Value*> needed(const Value* value, std::string_view name);

}  // namespace qwen2::jinja
