// ggml's quantised blocks in the form of QuantizedMatrix, without a second rounding.
// Layouts: the block_q* structures of
// https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "checkpoint/gguf.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

// What `type` becomes; nothing for the types of 16 and 32 bits.
std::optional<QuantizedFormat> gguf_format(GgmlType type);

// Copies one row of target.cols weights, whole blocks of `type` from `source` on, into row `row` of `target`,
// whose format is gguf_format(type). False where a scale or a minimum is infinite or NaN.
[[nodiscard]] bool copy_gguf_row(GgmlType type, const std::byte* source, const QuantizedMatrix& target,
                                 int64_t row);

}  // namespace qwen2
