#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "checkpoint/plain_tensor.h"
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
  for_each_row(rows, cols, sink, [&](int64_t row, float* values) { storage.matrix().get_row(row, values); });
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
