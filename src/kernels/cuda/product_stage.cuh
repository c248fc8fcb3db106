// How a block makes the activations of one row itself, in shared memory.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {

constexpr int kNormThreads = 384;  // fixed, so that sums of squares do not depend on the block
constexpr int kNormQuads = 2;      // of each thread, in registers: up to 3072 columns

template <MatrixForm form>
__device__ __forceinline__ int staged_place(int col) {
  return form == MatrixForm::kF16 ? col : lane_place(col);
}

__device__ __forceinline__ float4 sum_partials(const ProductInput& in, int rows, int cols, int row, int k,
                                               float scale = 1) {
  const int64_t at = int64_t(row) * cols + k;
  float4 v = __ldcg(reinterpret_cast<const float4*>(in.hidden + at));
  float4 add[kMaxParts];
#pragma unroll
  for (int p = 0; p < kMaxParts; ++p) {  // all on their way before the first is needed
    if (p < in.parts)
      add[p] = __ldcg(reinterpret_cast<const float4*>(in.partials + int64_t(p) * rows * cols + at));
  }
#pragma unroll
  for (int p = 0; p < kMaxParts; ++p) {
    if (p >= in.parts) continue;
    v.x += add[p].x * scale;
    v.y += add[p].y * scale;
    v.z += add[p].z * scale;
    v.w += add[p].w * scale;
  }
  return v;
}

__device__ __forceinline__ float sum_squares(float squares, const float4& v) {
  return squares + v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

// What a row is multiplied by, from each thread's sum of squares; only those of the first kNormThreads count.
// All of it is on the way of every product: no exact division.
__device__ __forceinline__ float norm_factor(float squares, int cols, float epsilon, float4* scratch) {
  constexpr int kQuads = kNormThreads / kWarp / 4;
  squares = warp_sum(squares);
  if (threadIdx.x < kNormThreads && threadIdx.x % kWarp == 0)
    reinterpret_cast<float*>(scratch)[threadIdx.x / kWarp] = squares;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) sum += (scratch[i].x + scratch[i].y) + (scratch[i].z + scratch[i].w);
  return rsqrtf(__fdividef(sum, static_cast<float>(cols)) + epsilon);
}

// Four neighbouring activations to their places in a staged row.
template <MatrixForm form>
__device__ __forceinline__ void put_quad(__half* out, int k, float4 v) {
  const __half2 low = __floats2half2_rn(saturate_half(v.x), saturate_half(v.y));
  const __half2 high = __floats2half2_rn(saturate_half(v.z), saturate_half(v.w));
  *reinterpret_cast<uint2*>(out + staged_place<form>(k)) = {as_bits(low), as_bits(high)};
}

// rms_norm(hidden + partials) * norm, by kNormThreads threads, so that sums are add_norm()'s.
template <MatrixForm form>
__device__ __forceinline__ void stage_normed(const DeviceMatrix& w, const ProductInput& in,
                                             const float4 (&norm)[kNormQuads], __half* out, float4* scratch) {
  float4 v[kNormQuads];
  float squares = 0;
  const bool works = threadIdx.x < kNormThreads;
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (works && k < w.cols) v[i] = sum_partials(in, 1, w.cols, 0, k);
  }
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (!works || k >= w.cols) continue;
    squares = sum_squares(squares, v[i]);
    if (in.hidden_out != nullptr && blockIdx.x == 0) *reinterpret_cast<float4*>(in.hidden_out + k) = v[i];
  }
  const float factor = norm_factor(squares, w.cols, in.epsilon, scratch);
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (!works || k >= w.cols) continue;
    put_quad<form>(out, k,
                   {v[i].x * factor * norm[i].x, v[i].y * factor * norm[i].y, v[i].z * factor * norm[i].z,
                    v[i].w * factor * norm[i].w});
  }
}

// fp16 or float activations of columns [begin, end); returns what the products must be multiplied by.
template <MatrixForm form>
__device__ __forceinline__ float stage_plain(const ProductInput& in, int begin, int end, __half* out) {
  constexpr int kLoads = 6;
  if (in.x != nullptr) {
    for (int k = begin + threadIdx.x * 4; k < end; k += blockDim.x * 4)
      *reinterpret_cast<uint2*>(out + staged_place<form>(k)) =
          __ldcg(reinterpret_cast<const uint2*>(in.x + k));
    return 1;
  }
  // On its way together with the values; on Turing, whose chunks are in registers, there is none to spare.
  const uint32_t early = kAsync ? __ldcg(in.row_max) : 0;
  const auto scale = [&] { return half_scale(__uint_as_float(kAsync ? early : __ldcg(in.row_max))); };
  float factor = 1;
  for (int first = begin + threadIdx.x * 4; first < end; first += kLoads * blockDim.x * 4) {
    float4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = first + i * blockDim.x * 4;
      if (k < end) v[i] = __ldcg(reinterpret_cast<const float4*>(in.values + k));
    }
    factor = scale();
    const float down = __fdividef(1, factor);  // exact, of a power of two
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = first + i * blockDim.x * 4;
      if (k < end) put_quad<form>(out, k, {v[i].x * down, v[i].y * down, v[i].z * down, v[i].w * down});
    }
  }
  return scale();
}

}  // namespace qwen2::cuda
