#include "checkpoint/plain_tensor.h"

#include "tensor/packed_matrix.h"

namespace qwen2 {

void read_plain_rows(const std::byte* source, DType type, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink) {
  const size_t row_bytes = static_cast<size_t>(cols) * dtype_bytes(type);
#pragma omp parallel
  {
    std::vector<float> values(static_cast<size_t>(cols));
#pragma omp for schedule(static, kBlockRows)
    for (int64_t row = 0; row < rows; ++row) {
      to_floats(source + static_cast<size_t>(row) * row_bytes, type, cols, values.data());
      sink(row, values.data());
    }
  }
}

}  // namespace qwen2
