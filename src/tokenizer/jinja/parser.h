// Parses a Jinja template. Reference: https://jinja.palletsprojects.com/templates/
#pragma once

#include <string_view>

#include "base/error.h"
#include "tokenizer/jinja/syntax.h"

namespace qwen2::jinja {

// Tags and brackets within each other, and operators in a chain. Published templates stay below 30.
inline constexpr uint32_t kMaxNesting = 100;

// The error names the line and the construct. Names of filters and functions are looked up when they are used.
Result<Body> parse(std::string_view source);

}  // namespace qwen2::jinja
