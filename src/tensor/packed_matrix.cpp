#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

constexpr int64_t kPairStride = 2 * kBlockRows;

}  // namespace

void PackedMatrix::set_row(int64_t row, const float* values) const {
  uint16_t* target = row_start(row);
  for (int64_t k = 0; k < cols; ++k) target[k / 2 * kPairStride + k % 2] = float_to_bf16(values[k]);
}

void PackedMatrix::get_row(int64_t row, float* out) const {
  const uint16_t* source = row_start(row);
  for (int64_t k = 0; k < cols; ++k) out[k] = bf16_to_float(source[k / 2 * kPairStride + k % 2]);
}

}  // namespace qwen2
