#include "kernels/cuda/product/product_reference.h"

#include "tensor/dtype.h"

namespace qwen2::cuda::reference {

double element(const DeviceMatrix& w, int64_t row, int64_t col) {
  const CodeLocation place = code_location(w.form, col);
  const uint8_t* codes = w.codes + byte_offset(w, row, place.byte);
  if (w.form == MatrixForm::kF16) return f16_to_float(static_cast<uint16_t>(codes[0] | codes[1] << 8));
  const int raw = *codes;
  const auto at =
      static_cast<size_t>((row / kTileRows * w.groups + col / w.group) * kTileRows + row % kTileRows);
  if (is_general(w.form)) {
    const int code = form_bits(w.form) == 8 ? raw - 128 : raw >> place.shift & 15;
    return double{static_cast<const float*>(w.scales)[at]} * code - w.minima[at];
  }
  const double scale = f16_to_float(static_cast<const uint16_t*>(w.scales)[at]);
  return scale * signed_code(w.form, raw, place.shift);
}

std::vector<double> product(const DeviceMatrix& w, std::span<const float> x, int rows) {
  std::vector<double> y(static_cast<size_t>(rows) * static_cast<size_t>(w.rows));
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const double value = element(w, n, k);
      const int64_t from = w.order != nullptr ? w.order[k] : k;
      for (int64_t m = 0; m < rows; ++m)
        y[static_cast<size_t>(m * w.rows + n)] += value * x[static_cast<size_t>(m * w.cols + from)];
    }
  }
  return y;
}

}  // namespace qwen2::cuda::reference
