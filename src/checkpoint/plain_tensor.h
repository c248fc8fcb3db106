// Matrices of 16 and 32 bits as files hold them: row by row, without padding or alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#include "checkpoint/checkpoint.h"
#include "tensor/dtype.h"

namespace qwen2 {

// Hands `rows` rows of `cols` elements from `source` to `sink` as floats, on all threads.
void read_plain_rows(const std::byte* source, DType type, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink);

}  // namespace qwen2
