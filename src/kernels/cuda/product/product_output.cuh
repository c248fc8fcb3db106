// The epilogues of a product: what is done with finished sums.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/product/product.h"

namespace qwen2::cuda {

// Kernels of one row are compiled for each output; kernels of several rows choose it at run time.
constexpr int kAnyOutput = -1;
template <int output>
__device__ __forceinline__ bool writes(const ProductArgs& a, ProductOutput what) {
  return output == kAnyOutput ? a.output == what : output == static_cast<int>(what);
}
// Two rows of W that are eight apart in a tile, as queries, keys or values: dimensions d and d + half of a
// head for queries and keys, d and d + 8 for values. Everything here was written before the step's first
// product.
struct QkvPair {
  int head;  // first those of queries, then keys, then values
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

// Adds the bias, rotates, and stores the query, or the key or value in the cache.
__device__ __forceinline__ void store_qkv(const ProductArgs& a, const QkvPair& p, int m, float v0, float v1) {
  const int dim = a.heads.head_dim;
  v0 += p.bias0;
  v1 += p.bias1;
  // Explicit operations: every kernel must round in the same way.
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

// The place of a pair of finished sums: rows `pair` and `pair + 8` of a tile, activation row `m`.
struct PairPlace {
  int tile, pair, m;
};

// Stores the pair (v0, v1) of the columns' split `split`, of the kernel's own integer type. Returns the
// magnitude of the SwiGLU product, otherwise 0.
template <int output, class Index>
__device__ __forceinline__ float store_pair(const ProductArgs& a, Index split, const PairPlace& at, float v0,
                                            float v1, const QkvPair& qkv) {
  if (writes<output>(a, ProductOutput::kQkv)) {
    store_qkv(a, qkv, at.m, v0, v1);
    return 0;
  }
  if (writes<output>(a, ProductOutput::kSwiglu)) {
    const float value = __fdividef(v0, 1.0F + __expf(-v0)) * v1;
    a.y[at.m * a.y_stride + (a.first_row + at.tile * kTileRows) / 2 + at.pair] = value;
    return fabsf(value);
  }
  float* y = a.y + (int64_t(split) * a.rows + at.m) * a.y_stride + a.first_row;
  const int n = at.tile * kTileRows + at.pair;
  if (n < a.out_rows) y[n] = v0;
  if (n + 8 < a.out_rows) y[n + 8] = v1;
  return 0;
}

}  // namespace qwen2::cuda
