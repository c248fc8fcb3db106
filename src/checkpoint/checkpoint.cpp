#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "tensor/quantized_storage.h"

namespace qwen2 {

Status Checkpoint::load_quantized(std::string_view name, int64_t /*rows*/, const QuantizedMatrix& /*target*/,
                                  int64_t /*first_row*/) const {
  return fail(ErrorKind::kInternal, "tensor '{}' is not quantised", name);
}

Status read_expanded(const Checkpoint& checkpoint, std::string_view name, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink) {
  QWEN2_TRY(const auto format, checkpoint.matrix_format(name, rows, cols));
  if (!format) return checkpoint.read_matrix(name, rows, cols, sink);
  const QuantizedStorage storage(*format, rows, cols);
  QWEN2_CHECK(checkpoint.load_quantized(name, rows, storage.matrix(), 0));
#pragma omp parallel
  {
    std::vector<float> values(static_cast<size_t>(cols));
#pragma omp for schedule(static, kBlockRows)
    for (int64_t row = 0; row < rows; ++row) {
      storage.matrix().get_row(row, values.data());
      sink(row, values.data());
    }
  }
  return {};
}

Status check_biases(const Checkpoint& checkpoint, const ModelSizes& sizes) {
  for (const auto& [name, size] : foreign_biases(sizes)) {
    if (!checkpoint.has(name)) continue;
    std::vector<float> values(static_cast<size_t>(size));
    QWEN2_CHECK(checkpoint.load_vector(name, size, values.data()));
    if (std::ranges::all_of(values, [](float value) { return value == 0; })) continue;
    return fail(ErrorKind::kUnsupported,
                "tensor '{}' is not zero: Qwen2 has no such bias, and it is not computed", name);
  }
  return {};
}

}  // namespace qwen2
