#include "tensor/quantized_matrix.h"

#include <cstring>

namespace qwen2 {
namespace {

struct NibblePlace {
  size_t word;
  unsigned shift;
};

NibblePlace nibble_place(const QuantizedMatrix& m, int64_t row, int64_t col) {
  const int64_t word = row / kBlockRows * 16 * m.cols + col / 8 * 128 + row % kBlockRows * 2 + col % 2;
  return {static_cast<size_t>(word), static_cast<unsigned>(col % 8 / 2) * 4};
}

size_t byte_place(const QuantizedMatrix& m, int64_t row, int64_t col) {
  return static_cast<size_t>(row / kBlockRows * kBlockRows * m.cols + col / 2 * 128 + row % kBlockRows * 2 +
                             col % 2);
}

template <class T>
T get(const std::byte* array, size_t index) {
  T value;
  std::memcpy(&value, array + index * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void put(std::byte* array, size_t index, T value) {
  std::memcpy(array + index * sizeof(T), &value, sizeof(T));
}

}  // namespace

QuantizedMatrix::Sizes QuantizedMatrix::sizes() const {
  const auto tables = static_cast<size_t>(blocks() * kBlockRows);
  const size_t per_group = tables * static_cast<size_t>(groups());
  const size_t per_scale = tables * static_cast<size_t>(cols / scale_group());
  const bool minimum = format.offset == OffsetForm::kMinimum;
  Sizes s{};
  s.codes = static_cast<size_t>(blocks()) * block_code_bytes();
  s.scales = per_scale * (format.scale == ScaleForm::kF32 ? sizeof(float) : sizeof(uint16_t));
  s.sub_scales = two_level() ? per_group : 0;
  if (format.offset == OffsetForm::kZero) s.offsets = per_group * sizeof(int16_t);
  if (minimum) s.offsets = per_scale * sizeof(uint16_t);
  s.sub_offsets = minimum && two_level() ? per_group : 0;
  s.permutation = format.permuted ? static_cast<size_t>(cols) * sizeof(int32_t) : 0;
  return s;
}

size_t QuantizedMatrix::bytes() const {
  const Sizes s = sizes();
  return s.codes + s.scales + s.sub_scales + s.offsets + s.sub_offsets + s.permutation;
}

int QuantizedMatrix::code(int64_t row, int64_t col) const {
  if (format.bits == 8) return static_cast<int8_t>(codes[byte_place(*this, row, col)]);
  const NibblePlace place = nibble_place(*this, row, col);
  uint16_t word = 0;
  std::memcpy(&word, codes + 2 * place.word, sizeof word);
  return (word >> place.shift) & 15;
}

void QuantizedMatrix::set_code(int64_t row, int64_t col, int value) const {
  if (format.bits == 8) {
    codes[byte_place(*this, row, col)] = static_cast<uint8_t>(value);
    return;
  }
  const NibblePlace place = nibble_place(*this, row, col);
  uint16_t word = 0;
  std::memcpy(&word, codes + 2 * place.word, sizeof word);
  word = static_cast<uint16_t>((word & ~(15U << place.shift)) |
                               (static_cast<unsigned>(value & 15) << place.shift));
  std::memcpy(codes + 2 * place.word, &word, sizeof word);
}

void QuantizedMatrix::set_scale_f16(int64_t row, int64_t col, uint16_t bits) const {
  put(scales, table_index(row, col, scale_group()), bits);
}

void QuantizedMatrix::set_scale_f32(int64_t row, int64_t col, float scale) const {
  put(scales, table_index(row, col, scale_group()), scale);
}

void QuantizedMatrix::set_sub_scale(int64_t row, int64_t col, int8_t factor) const {
  sub_scales[table_index(row, col, format.group)] = factor;
}

void QuantizedMatrix::set_zero(int64_t row, int64_t col, int zero) const {
  put(offsets, table_index(row, col, format.group), static_cast<int16_t>(zero));
}

void QuantizedMatrix::set_minimum_f16(int64_t row, int64_t col, uint16_t bits) const {
  put(offsets, table_index(row, col, scale_group()), bits);
}

void QuantizedMatrix::set_sub_minimum(int64_t row, int64_t col, int8_t factor) const {
  sub_offsets[table_index(row, col, format.group)] = factor;
}

float QuantizedMatrix::scale(int64_t row, int64_t col) const {
  const size_t index = table_index(row, col, scale_group());
  if (format.scale == ScaleForm::kF32) return get<float>(scales, index);
  const float scale = f16_to_float(get<uint16_t>(scales, index));
  return two_level() ? scale * static_cast<float>(sub_scales[table_index(row, col, format.group)]) : scale;
}

float QuantizedMatrix::minimum(int64_t row, int64_t col) const {
  const size_t index = table_index(row, col, format.group);
  switch (format.offset) {
    case OffsetForm::kNone:
      return format.bits == 4 ? 8 * scale(row, col) : 0;
    case OffsetForm::kZero:
      return scale(row, col) * static_cast<float>(get<int16_t>(offsets, index));
    case OffsetForm::kMinimum:
      break;
  }
  const float minimum = f16_to_float(get<uint16_t>(offsets, table_index(row, col, scale_group())));
  return two_level() ? minimum * static_cast<float>(sub_offsets[index]) : minimum;
}

// A product of a scale (fp16, or fp16 times a byte) and a code of at most 8 bits is exact in float for every
// format but kF32 and Q6_K, so that only the subtraction rounds; with a zero it is exact too.
void QuantizedMatrix::get_row(int64_t row, float* out) const {
  for (int64_t first = 0; first < cols; first += format.group) {
    const float own_scale = scale(row, first);
    const float own_minimum = minimum(row, first);
    for (int64_t k = first; k < first + format.group; ++k) {
      const float value = own_scale * static_cast<float>(code(row, k)) - own_minimum;
      out[permutation != nullptr ? permutation[k] : k] = value;
    }
  }
}

}  // namespace qwen2
