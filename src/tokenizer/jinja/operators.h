// Python's arithmetic and membership on template values. Integers have 64 bits; what does not fit is an error.
#pragma once

#include "base/error.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/syntax.h"
#include "tokenizer/jinja/value.h"

namespace qwen2::jinja {

// Not for `and` and `or`, which need not look at their right side.
Result<Value> arithmetic(Interpreter& run, BinaryOperator op, const Value& a, const Value& b);
Result<Value> sign(UnaryOperator op, const Value& value);
// `item in container`.
Result<bool> contains(Interpreter& run, const Value& container, const Value& item);

// container[begin:end:step]; those left out are null.
Result<Value> slice(Interpreter& run, const Value& container, const Value& begin, const Value& end,
                    const Value& step);
// `text` with `old` replaced; what that makes is counted before it is made. `limit` < 0: everywhere.
Result<Value> replaced_text(Interpreter& run, const MarkedText& text, const MarkedText& old,
                            const MarkedText& with, int64_t limit);
// Position of Python's index, from the end where negative; size where it is out of range.
size_t position_of(int64_t index, size_t size);

}  // namespace qwen2::jinja
