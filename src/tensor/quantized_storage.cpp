#include "tensor/quantized_storage.h"

#include <cstdint>

namespace qwen2 {

size_t place_arrays(QuantizedMatrix& matrix, std::byte* base) {
  const QuantizedMatrix::Sizes sizes = matrix.sizes();
  size_t used = 0;
  const auto take = [&]<class T>(T*& array, size_t bytes) {
    array = base == nullptr || bytes == 0 ? nullptr : reinterpret_cast<T*>(base + used);
    used += (bytes + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
  };
  take(matrix.codes, sizes.codes);
  take(matrix.scales, sizes.scales);
  take(matrix.sub_scales, sizes.sub_scales);
  take(matrix.offsets, sizes.offsets);
  take(matrix.sub_offsets, sizes.sub_offsets);
  take(matrix.permutation, sizes.permutation);
  return used;
}

QuantizedStorage::QuantizedStorage(const QuantizedFormat& format, int64_t rows, int64_t cols) {
  matrix_.format = format;
  matrix_.rows = rows;
  matrix_.cols = cols;
  bytes_.resize(place_arrays(matrix_, nullptr) + kArrayAlignment);
  const auto start = reinterpret_cast<uintptr_t>(bytes_.data());
  place_arrays(matrix_, bytes_.data() + (kArrayAlignment - start % kArrayAlignment) % kArrayAlignment);
}

}  // namespace qwen2
