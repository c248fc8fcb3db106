// A quantised matrix that owns its arrays.
#pragma once

#include <cstddef>
#include <vector>

#include "tensor/quantized_matrix.h"

namespace qwen2 {

// Points the arrays of `matrix` at neighbouring pieces from `base` on, each aligned to `kArrayAlignment`, and
// returns the bytes that they take. With a null base it only counts.
constexpr size_t kArrayAlignment = 256;
size_t place_arrays(QuantizedMatrix& matrix, std::byte* base);

class QuantizedStorage {
 public:
  // Zeroed. `rows` and `cols` as in QuantizedMatrix.
  QuantizedStorage(const QuantizedFormat& format, int64_t rows, int64_t cols);
  QuantizedStorage(const QuantizedStorage&) = delete;
  QuantizedStorage& operator=(const QuantizedStorage&) = delete;
  QuantizedStorage(QuantizedStorage&&) = default;
  QuantizedStorage& operator=(QuantizedStorage&&) = default;
  ~QuantizedStorage() = default;

  [[nodiscard]] const QuantizedMatrix& matrix() const { return matrix_; }

 private:
  QuantizedMatrix matrix_;
  std::vector<std::byte> bytes_;
};

}  // namespace qwen2
