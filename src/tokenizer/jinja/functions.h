// The functions that every template can call: range, namespace, dict, raise_exception, strftime_now.
#pragma once

#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace qwen2::jinja {

// `now` is what strftime_now formats, in local time.
std::vector<std::pair<std::string, Value>> global_functions(std::time_t now);

}  // namespace qwen2::jinja
