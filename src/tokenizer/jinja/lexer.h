// Splits a Jinja template into text and the tokens between its delimiters, with trim_blocks and lstrip_blocks,
// as Transformers sets them: https://jinja.palletsprojects.com/templates/#whitespace-control
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qwen2::jinja {

enum class TokenKind {
  kText,        // between tags; `text` is printed as it is
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kName,
  kString,   // `text` without quotes, escapes resolved
  kInteger,  // `text` as written, without underscores
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  uint32_t line;  // from 1
};

// The last token is kEnd.
Result<std::vector<Token>> tokenize(std::string_view source);

}  // namespace qwen2::jinja
