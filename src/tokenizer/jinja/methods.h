// Methods of strings, lists, dicts and loops that templates may call, as Python's sandbox has them.
#pragma once

#include <string_view>

#include "base/error.h"
#include "tokenizer/jinja/interpreter.h"

namespace qwen2::jinja {

// The method, or the value of a loop's attribute; undefined where there is none of that name.
Result<Value> method_of(const Value& object, std::string_view name);

}  // namespace qwen2::jinja
