// Matrices of 16 and 32 bits as files hold them: row by row, without padding or alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "tensor/dtype.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {

// Hands every row to `sink` as fill(row, values) leaves it, on all threads.
template <class F>
void for_each_row(int64_t rows, int64_t cols, const Checkpoint::RowSink& sink, const F& fill) {
#pragma omp parallel
  {
    std::vector<float> values(static_cast<size_t>(cols));
#pragma omp for schedule(static, kBlockRows)
    for (int64_t row = 0; row < rows; ++row) {
      fill(row, values.data());
      sink(row, values.data());
    }
  }
}

// Hands `rows` rows of `cols` elements from `source` to `sink` as floats, on all threads.
void read_plain_rows(const std::byte* source, DType type, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink);

}  // namespace qwen2
