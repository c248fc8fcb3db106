// Jinja's tests, `value is name`: https://jinja.palletsprojects.com/templates/#list-of-builtin-tests
#pragma once

#include <string_view>

#include "base/error.h"
#include "tokenizer/jinja/interpreter.h"

namespace qwen2::jinja {

using TestFunction = Result<bool> (*)(Interpreter&, const Value&, const Arguments&);

// Null where there is no such test.
TestFunction find_test(std::string_view name);

}  // namespace qwen2::jinja
