// What becomes of a product's finished sums.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {

// The outputs of one row have a kernel each, several rows one for all.
constexpr int kAnyOutput = -1;
template <int output>
__device__ __forceinline__ bool writes(const ProductArgs& a, ProductOutput what) {
  return output == kAnyOutput ? a.output == what : output == static_cast<int>(what);
}
// Where two rows of W that lie eight apart in a tile belong: dimensions d and d + half of a head for queries
// and keys, d and d + 8 for values; and what their sums need, which was there before the step's first
// product.
struct QkvPair {
  int head;  // queries', keys', then values'
  int d0, d1;
  float bias0, bias1;
  float2 rotation;
  std::byte* page;  // of keys and values
  int slot;
};

__device__ __forceinline__ QkvPair find_qkv(const ProductArgs& a, int tile, int pair, int m) {
  QkvPair p;
  const int dim = a.heads.head_dim;
  const int row = a.first_row + tile * kTileRows;
  p.head = dim == 128 ? row / 128 : row / 64;
  const int in_head = row - p.head * dim;
  const bool is_value = p.head >= a.heads.q_heads + a.heads.kv_heads;
  p.d0 = is_value ? in_head + pair : in_head / 2 + pair;
  p.d1 = p.d0 + (is_value ? 8 : dim / 2);
  p.bias0 = __ldg(a.cache.bias + p.head * dim + p.d0);
  p.bias1 = __ldg(a.cache.bias + p.head * dim + p.d1);
  const Row info = a.row_info[m];
  p.rotation = {1, 0};
  if (!is_value) {
    p.rotation =
        __ldg(reinterpret_cast<const float2*>(a.cache.rotations) + int64_t(info.position) * (dim / 2) + p.d0);
  }
  p.page = nullptr;
  p.slot = info.position % kPageTokens;
  if (p.head >= a.heads.q_heads && a.cache.kv_bits == 16) {
    const int kv_head = p.head - a.heads.q_heads - (is_value ? a.heads.kv_heads : 0);
    const uint32_t page = a.cache.pages[info.page_offset + info.position / kPageTokens];
    p.page = a.cache.data + (int64_t(page) * a.heads.kv_heads + kv_head) * kv_page_bytes(16, dim) +
             (is_value ? kPageTokens * dim * 2 : 0);
  }
  return p;
}

// Bias, rotation and the cache.
__device__ __forceinline__ void store_qkv(const ProductArgs& a, const QkvPair& p, int m, float v0, float v1) {
  const int dim = a.heads.head_dim;
  v0 += p.bias0;
  v1 += p.bias1;
  // Said explicitly: every kernel must round alike.
  const float first = __fmaf_rn(v0, p.rotation.x, -__fmul_rn(v1, p.rotation.y));
  v1 = __fmaf_rn(v1, p.rotation.x, __fmul_rn(v0, p.rotation.y));
  v0 = first;
  if (p.head < a.heads.q_heads) {
    float* q = a.q + (int64_t(m) * a.heads.q_heads + p.head) * dim;
    q[p.d0] = v0 * a.q_scale;
    q[p.d1] = v1 * a.q_scale;
  } else if (p.page == nullptr) {
    float* out = a.new_kv + (int64_t(m) * 2 * a.heads.kv_heads + p.head - a.heads.q_heads) * dim;
    out[p.d0] = v0;
    out[p.d1] = v1;
  } else {
    auto* out = reinterpret_cast<__half*>(p.page) + p.slot * dim;
    out[p.d0] = __float2half_rn(saturate_half(v0));
    out[p.d1] = __float2half_rn(saturate_half(v1));
  }
}

// One pair of finished sums of the columns' part `part`, in whichever integer type the kernel has it. Returns
// the magnitude of what SwiGLU makes of it.
template <int output, class Index>
__device__ __forceinline__ float store_pair(const ProductArgs& a, Index part, int tile, int pair, int m,
                                            float v0, float v1, const QkvPair& qkv) {
  if (writes<output>(a, ProductOutput::kQkv)) {
    store_qkv(a, qkv, m, v0, v1);
    return 0;
  }
  if (writes<output>(a, ProductOutput::kSwiglu)) {
    const float value = __fdividef(v0, 1.0F + __expf(-v0)) * v1;
    a.y[m * a.y_stride + (a.first_row + tile * kTileRows) / 2 + pair] = value;
    return fabsf(value);
  }
  float* y = a.y + (int64_t(part) * a.rows + m) * a.y_stride + a.first_row;
  const int n = tile * kTileRows + pair;
  if (n < a.out_rows) y[n] = v0;
  if (n + 8 < a.out_rows) y[n + 8] = v1;
  return 0;
}

}  // namespace qwen2::cuda
