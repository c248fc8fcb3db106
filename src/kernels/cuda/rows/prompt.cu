// What a prompt's rows need beside dense products and attention.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {
namespace {

// Of `dim` elements of a head in the product's order: queries and keys by tiles of eight pairs, values as
// they are.
__device__ __forceinline__ int stored_dim(int d, int half, bool is_value) {
  if (is_value) return d;
  const int pair = d % half;
  return pair / 8 * 16 + pair % 8 + (d < half ? 0 : 8);
}

// One warp a row and head.
__global__ void split_qkv_kernel(const __grid_constant__ SplitQkvArgs a) {
  wait_for_previous();
  let_next_start();
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

__device__ __forceinline__ float swiglu(float gate, float up) {
  return gate / (1.0F + __expf(-gate)) * up;
}

// One block a row. Twice where the row must be scaled down.
__global__ void swiglu_kernel(const __grid_constant__ SwigluArgs a) {
  __shared__ float scratch[64];
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x;
  const float* in = a.gate_up + row * a.gate_up_stride;
  __half* x = reinterpret_cast<__half*>(a.x) + row * a.stride;
  float max = 0;
  const auto run = [&](float down) {
    for (int k = threadIdx.x * 4; k < a.stride; k += blockDim.x * 4) {
      float v[4] = {};
      if (k < a.cols) {
        const float4 gate = __ldcg(reinterpret_cast<const float4*>(in + k / 8 * 16 + k % 8));
        const float4 up = __ldcg(reinterpret_cast<const float4*>(in + k / 8 * 16 + k % 8 + 8));
        v[0] = swiglu(gate.x, up.x);
        v[1] = swiglu(gate.y, up.y);
        v[2] = swiglu(gate.z, up.z);
        v[3] = swiglu(gate.w, up.w);
      }
      for (float& value : v) {
        max = fmaxf(max, fabsf(value));
        value = saturate_half(value * down);
      }
      *reinterpret_cast<uint2*>(x + k) = {as_bits(__floats2half2_rn(v[0], v[1])),
                                          as_bits(__floats2half2_rn(v[2], v[3]))};
    }
  };
  run(1);
  max = block_sum_max(0, max, scratch).max;
  if (threadIdx.x == 0) a.row_max[row] = __float_as_uint(max);
  const float scale = half_scale(max);
  if (scale != 1) run(1 / scale);
}

// One word of codes a thread: four columns of 8 bits, two times four of 4 bits.
template <MatrixForm form>
__global__ void expand_kernel(const __grid_constant__ DeviceMatrix w, uint16_t* out, int64_t stride) {
  wait_for_previous();
  let_next_start();
  const int row = blockIdx.y;
  const int words = static_cast<int>(w.row_bytes / 4);
  auto* to = reinterpret_cast<__half*>(out) + row * stride;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
    const int chunk = i / 16;
    const int t = i % 4;  // neighbouring threads write neighbouring columns
    const int j = i % 16 / 4;
    const uint32_t word =
        *reinterpret_cast<const uint32_t*>(w.codes + chunk_place(w, row, chunk) + t * 16 + j * 4);
    constexpr int fours = form_bits(form) == 8 ? 1 : 2;
#pragma unroll
    for (int f = 0; f < fours; ++f) {
      const int col = chunk * chunk_columns(form) + 64 * f + 16 * j + 4 * t;
      if (col >= w.cols) continue;
      const int64_t at = (int64_t(row / kTileRows) * w.groups + col / w.group) * kTileRows + row % kTileRows;
      float scale;
      float minimum = 0;
      if constexpr (is_general(form)) {
        scale = static_cast<const float*>(w.scales)[at];
        minimum = w.minima[at];
      } else {
        scale = __half2float(static_cast<const __half*>(w.scales)[at]);
      }
      __half v[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int byte = static_cast<int>(word >> (8 * c) & 255U);
        int code = signed_code(form, byte, 4 * f);
        if constexpr (is_general(form)) code = form_bits(form) == 8 ? byte - 128 : byte >> 4 * f & 15;
        v[c] = __float2half_rn(saturate_half(scale * float(code) - minimum));
      }
      if (w.order != nullptr) {
        for (int c = 0; c < 4; ++c) to[w.order[col + c]] = v[c];
      } else {
        *reinterpret_cast<uint2*>(to + col) = {as_bits(__halves2half2(v[0], v[1])),
                                               as_bits(__halves2half2(v[2], v[3]))};
      }
    }
  }
}

}  // namespace

void split_qkv(const SplitQkvArgs& args, cudaStream_t stream) {
  launch<split_qkv_kernel>(dim3(args.rows), 256, 0, stream, args);
}

void swiglu_rows(const SwigluArgs& args, cudaStream_t stream) {
  launch<swiglu_kernel>(dim3(args.rows), 256, 0, stream, args);
}

void expand(const DeviceMatrix& w, uint16_t* out, int64_t stride, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((w.row_bytes / 4 + 255) / 256), w.rows);
  switch (w.form) {
    case MatrixForm::kInt8:
      return launch<expand_kernel<MatrixForm::kInt8>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt4:
      return launch<expand_kernel<MatrixForm::kInt4>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt8General:
      return launch<expand_kernel<MatrixForm::kInt8General>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt4General:
      return launch<expand_kernel<MatrixForm::kInt4General>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kF16:
      break;  // as it is
  }
}

}  // namespace qwen2::cuda
