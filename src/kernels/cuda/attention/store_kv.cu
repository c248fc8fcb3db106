// Rounds new keys and values to a cache of 8 bits.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace qwen2::cuda {
namespace {

// One warp for each row and head: first K of all KV heads, then V.
__global__ void store_kv_kernel(const __grid_constant__ StoreKvArgs a) {
  trigger_dependents();
  wait_for_previous();
  const int dim = a.heads.head_dim;
  const int row = blockIdx.x;
  const int head = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const bool is_value = head >= a.heads.kv_heads;
  const int kv_head = is_value ? head - a.heads.kv_heads : head;
  const Row info = a.row_info[row];
  const float* values = a.new_kv + (int64_t(row) * 2 * a.heads.kv_heads + head) * dim;
  float max = 0;
  for (int d = lane; d < dim; d += kWarp) max = fmaxf(max, fabsf(__ldcg(values + d)));
  max = warp_max(max);
  // Codes are made with the scale as it is stored, in fp16.
  const float kept = __half2float(__float2half_rn(fminf(max / 127.0F, 65504.0F)));
  const float inverse = kept > 0 ? 1.0F / kept : 0.0F;
  std::byte* page =
      a.cache.data +
      (int64_t(a.cache.pages[info.page_offset + info.position / kPageTokens]) * a.heads.kv_heads + kv_head) *
          kv_page_bytes(8, dim);
  const int slot = info.position % kPageTokens;
  const int what = is_value ? 1 : 0;
  auto* codes = reinterpret_cast<int8_t*>(page) + (what * kPageTokens + slot) * dim;
  for (int d = lane; d < dim; d += kWarp) {
    const float code = rintf(__ldcg(values + d) * inverse);
    codes[d] = static_cast<int8_t>(fminf(fmaxf(code, -127.0F), 127.0F));
  }
  if (lane == 0)
    reinterpret_cast<__half*>(page + 2 * kPageTokens * dim)[what * kPageTokens + slot] =
        __float2half_rn(kept);
}

}  // namespace

void store_kv_int8(const StoreKvArgs& args, cudaStream_t stream) {
  launch<store_kv_kernel>(dim3(args.rows), static_cast<unsigned>(2 * args.heads.kv_heads * kWarp), 0, stream,
                          args);
}

}  // namespace qwen2::cuda
