#include "tensor/packed_matrix.h"

#include <cstring>

namespace qwen2 {
namespace {

constexpr int64_t kPairStride = 2 * kBlockRows;

uint16_t to_bf16(const std::byte* source, DType type) {
  uint16_t half = 0;
  float value = 0;
  switch (type) {
    case DType::kBF16:
      std::memcpy(&half, source, 2);
      return half;
    case DType::kF16:
      std::memcpy(&half, source, 2);
      return float_to_bf16(f16_to_float(half));
    case DType::kF32:
      std::memcpy(&value, source, 4);
      return float_to_bf16(value);
  }
  return 0;
}

}  // namespace

void PackedMatrix::set_row(int64_t row, const std::byte* source, DType type) const {
  uint16_t* target = row_start(row);
  const auto size = static_cast<int64_t>(dtype_bytes(type));
  for (int64_t k = 0; k < cols; ++k) target[k / 2 * kPairStride + k % 2] = to_bf16(source + k * size, type);
}

void PackedMatrix::get_row(int64_t row, float* out) const {
  const uint16_t* source = row_start(row);
  for (int64_t k = 0; k < cols; ++k) out[k] = bf16_to_float(source[k / 2 * kPairStride + k % 2]);
}

}  // namespace qwen2
