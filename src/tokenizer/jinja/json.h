// Python's json.dumps, as Transformers gives it to templates: https://docs.python.org/3/library/json.html
#pragma once

#include <optional>

#include "base/error.h"
#include "tokenizer/jinja/value.h"
#include "tokenizer/marked_text.h"

namespace qwen2::jinja {

struct JsonStyle {
  bool ascii = false;                 // other characters as \uXXXX
  std::optional<std::string> indent;  // a line for each value
  std::string between = ", ";
  std::string behind_key = ": ";
  bool sort_keys = false;
};

// Characters of strings keep their marks; brackets, quotes and numbers are the template's.
Result<MarkedText> to_json(const Value& value, const JsonStyle& style);

}  // namespace qwen2::jinja
