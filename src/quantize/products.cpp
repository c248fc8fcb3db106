#include "quantize/products.h"

#include <dnnl.h>

namespace qwen2::quantize {
namespace {

Status checked(dnnl_status_t status, int64_t m, int64_t n, int64_t k) {
  if (status == dnnl_success) return {};
  return fail(ErrorKind::kInternal, "oneDNN float product {}x{}x{} failed with status {}", m, n, k,
              static_cast<int>(status));
}

}  // namespace

Status multiply_transposed(const float* x, int64_t m, const float* w, int64_t rows, int64_t cols, float beta,
                           float* y, int64_t y_stride) {
  return checked(dnnl_sgemm('N', 'T', m, rows, cols, 1.0F, x, cols, w, cols, beta, y, y_stride), m, rows,
                 cols);
}

Status add_product(float alpha, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t m,
                   int64_t n, int64_t k, float* c, int64_t c_stride) {
  return checked(dnnl_sgemm('N', 'N', m, n, k, alpha, a, a_stride, b, b_stride, 1.0F, c, c_stride), m, n, k);
}

Status add_product_transposed(float alpha, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                              int64_t m, int64_t n, int64_t k, float* c, int64_t c_stride) {
  return checked(dnnl_sgemm('N', 'T', m, n, k, alpha, a, a_stride, b, b_stride, 1.0F, c, c_stride), m, n, k);
}

Status add_gram(float alpha, const float* x, int64_t count, int64_t cols, float* h) {
  return checked(dnnl_sgemm('T', 'N', cols, cols, count, alpha, x, cols, x, cols, 1.0F, h, cols), cols, cols,
                 count);
}

}  // namespace qwen2::quantize
