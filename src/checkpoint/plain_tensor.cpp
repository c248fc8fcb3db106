#include "checkpoint/plain_tensor.h"

namespace qwen2 {

void read_plain_rows(const std::byte* source, DType type, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink) {
  const size_t row_bytes = static_cast<size_t>(cols) * dtype_bytes(type);
  for_each_row(rows, cols, sink, [&](int64_t row, float* values) {
    to_floats(source + static_cast<size_t>(row) * row_bytes, type, cols, values);
  });
}

}  // namespace qwen2
