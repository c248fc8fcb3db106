// A prompt's queries, keys and values after the QKV product.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/rows/rows.h"

namespace qwen2::cuda {
namespace {

// The place of dimension d of a head in the product's order of rows: queries and keys by tiles of eight
// rotation pairs, values in order.
__device__ __forceinline__ int stored_dim(int d, int half, bool is_value) {
  if (is_value) return d;
  const int pair = d % half;
  return pair / 8 * 16 + pair % 8 + (d < half ? 0 : 8);
}

// One warp for each row and head.
__global__ void split_qkv_kernel(const __grid_constant__ SplitQkvArgs a) {
  wait_for_previous();
  trigger_dependents();
  const int dim = a.heads.head_dim;
  const int half = dim / 2;
  const int heads = a.heads.q_heads + 2 * a.heads.kv_heads;
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.x;
  const Row info = a.row_info[row];
  for (int head = threadIdx.x / kWarp; head < heads; head += blockDim.x / kWarp) {
    const bool is_value = head >= a.heads.q_heads + a.heads.kv_heads;
    const float* from = a.qkv + int64_t(row) * a.stride + head * dim;
    float v[4];  // dimensions lane + 32 i
    for (int i = 0; i < dim / kWarp; ++i) {
      const int d = lane + i * kWarp;
      v[i] = __ldcg(from + stored_dim(d, half, is_value)) + a.cache.bias[head * dim + d];
    }
    if (!is_value) {
      const auto* rotations =
          reinterpret_cast<const float2*>(a.cache.rotations) + int64_t(info.position) * half;
      for (int i = 0; i < half / kWarp; ++i) {
        const float2 r = rotations[lane + i * kWarp];
        const float first = v[i];
        const float second = v[i + half / kWarp];
        v[i] = first * r.x - second * r.y;
        v[i + half / kWarp] = second * r.x + first * r.y;
      }
    }
    if (head < a.heads.q_heads) {
      float* q = a.q + (int64_t(row) * a.heads.q_heads + head) * dim;
      for (int i = 0; i < dim / kWarp; ++i) q[lane + i * kWarp] = v[i] * a.q_scale;
      continue;
    }
    const int kv_head = head - a.heads.q_heads - (is_value ? a.heads.kv_heads : 0);
    if (a.cache.kv_bits == 8) {
      float* out = a.new_kv + (int64_t(row) * 2 * a.heads.kv_heads + head - a.heads.q_heads) * dim;
      for (int i = 0; i < dim / kWarp; ++i) out[lane + i * kWarp] = v[i];
      continue;
    }
    const uint32_t page = a.cache.pages[info.page_offset + info.position / kPageTokens];
    auto* out = reinterpret_cast<__half*>(a.cache.data + (int64_t(page) * a.heads.kv_heads + kv_head) *
                                                             kv_page_bytes(16, dim)) +
                ((is_value ? kPageTokens : 0) + info.position % kPageTokens) * dim;
    for (int i = 0; i < dim / kWarp; ++i) out[lane + i * kWarp] = __float2half_rn(saturate_half(v[i]));
  }
}

}  // namespace

void split_qkv(const SplitQkvArgs& args, cudaStream_t stream) {
  launch<split_qkv_kernel>(dim3(args.rows), 256, 0, stream, args);
}

}  // namespace qwen2::cuda
