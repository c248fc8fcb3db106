// How a block makes the activations of one row itself, in shared memory.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/digits.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {

constexpr int kNormThreads = 384;  // fixed, so that sums of squares do not depend on the block
constexpr int kNormQuads = 2;      // of each thread, in registers: up to 3072 columns

// Where the activations of column 0 are, or would be; see Activations.
struct StagedRow {
  std::byte* x;
  float* scales;
};

// Of `columns` columns from `begin` on, in `memory`.
__device__ __forceinline__ StagedRow staged_row(std::byte* memory, int begin, int columns) {
  const int digits = (columns + kDigitColumns - 1) / kDigitColumns * kDigitColumns;
  return {memory - 2 * begin, reinterpret_cast<float*>(memory + 2 * digits) - begin / kDigitColumns};
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

// A sum of squares over a block, from each thread's; only those of the first kNormThreads count. In two
// steps, with a barrier between them.
__device__ __forceinline__ void leave_squares(float squares, float4* scratch) {
  squares = warp_sum(squares);
  if (threadIdx.x < kNormThreads && threadIdx.x % kWarp == 0)
    reinterpret_cast<float*>(scratch)[threadIdx.x / kWarp] = squares;
}
// What a row is multiplied by. All of it is on the way of every product: no exact division.
__device__ __forceinline__ float norm_factor(int cols, float epsilon, const float4* scratch) {
  constexpr int kQuads = kNormThreads / kWarp / 4;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) sum += (scratch[i].x + scratch[i].y) + (scratch[i].z + scratch[i].w);
  return rsqrtf(__fdividef(sum, static_cast<float>(cols)) + epsilon);
}

__device__ __forceinline__ float4 times(const float4& v, float factor) {
  return {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}
__device__ __forceinline__ float4 times(const float4& v, const float4& w) {
  return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
}

template <MatrixForm form>
__device__ __forceinline__ void put_halves(const StagedRow& out, int k, uint2 v) {
  auto* x = reinterpret_cast<__half*>(out.x);
  if constexpr (form == MatrixForm::kF16) {
    *reinterpret_cast<uint2*>(x + k) = v;
  } else {
    *reinterpret_cast<uint2*>(x + lane_place(k)) = in_lane_order(v);
  }
}

// Four neighbouring activations to their places in a row.
template <MatrixForm form>
__device__ __forceinline__ void put_quad(const StagedRow& out, int k, const float4& v) {
  put_halves<form>(out, k, to_halves(v.x, v.y, v.z, v.w));
}
__device__ __forceinline__ void put_digits(const StagedRow& out, int k, const Digits& digits, float scale) {
  std::byte* at = out.x + k / 64 * 128 + digit_in_row(k);
  *reinterpret_cast<uint32_t*>(at) = digits.high;
  *reinterpret_cast<uint32_t*>(at + kLowDigit) = digits.low;
  if (k % kDigitColumns == 0) out.scales[k / kDigitColumns] = scale;
}
// The end of the columns that have digits: whole warps make them.
__device__ __forceinline__ int digits_end(int end) {
  return (end + kDigitColumns - 1) / kDigitColumns * kDigitColumns;
}

// rms_norm(hidden + partials) * norm, by kNormThreads threads, so that sums are add_norm()'s. Digits come
// without the norm's factor, which the caller finds behind its next barrier: it is one for all columns.
template <MatrixForm form, bool fine>
__device__ __forceinline__ void stage_normed(const DeviceMatrix& w, const ProductInput& in,
                                             const float4 (&norm)[kNormQuads], const StagedRow& out,
                                             float4* scratch) {
  float4 v[kNormQuads];
  float squares = 0;
  const bool works = threadIdx.x < kNormThreads;
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    v[i] = {};
    if (works && k < w.cols) v[i] = sum_partials(in, 1, w.cols, 0, k);
  }
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (!works || k >= w.cols) continue;
    squares = sum_squares(squares, v[i]);
    if (in.hidden_out != nullptr && blockIdx.x == 0) *reinterpret_cast<float4*>(in.hidden_out + k) = v[i];
  }
  leave_squares(squares, scratch);
  if constexpr (kInDigits<form, fine>) {
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      const int k = (i * kNormThreads + threadIdx.x) * 4;
      if (!works || k >= digits_end(w.cols)) continue;
      Digits digits;
      const float scale = make_digits(times(v[i], norm[i]), digits);
      put_digits(out, k, digits, scale);
    }
  } else {
    __syncthreads();
    const float factor = norm_factor(w.cols, in.epsilon, scratch);
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      const int k = (i * kNormThreads + threadIdx.x) * 4;
      if (works && k < w.cols) put_quad<form>(out, k, times(times(v[i], factor), norm[i]));
    }
  }
}

// fp16 activations of columns [begin, end).
template <MatrixForm form, bool fine>
__device__ __forceinline__ void stage_halves(const uint16_t* x, int begin, int end, const StagedRow& out) {
  if constexpr (kInDigits<form, fine>) {
    for (int k = begin + threadIdx.x * 4; k < digits_end(end); k += blockDim.x * 4) {
      uint2 halves = {};
      if (k < end) halves = __ldcg(reinterpret_cast<const uint2*>(x + k));
      Digits digits;
      const float scale = make_digits(to_floats(halves), digits);
      put_digits(out, k, digits, scale);
    }
  } else {
    for (int k = begin + threadIdx.x * 4; k < end; k += blockDim.x * 4)
      put_halves<form>(out, k, __ldcg(reinterpret_cast<const uint2*>(x + k)));
  }
}

// Float activations of columns [begin, end); returns what the products must be multiplied by.
template <MatrixForm form, bool fine>
__device__ __forceinline__ float stage_floats(const ProductInput& in, int begin, int end,
                                              const StagedRow& out) {
  constexpr bool in_digits = kInDigits<form, fine>;
  constexpr int kLoads = 6;
  // On its way together with the values; on Turing, whose chunks are in registers, there is none to spare.
  const uint32_t early = kAsync && !in_digits ? __ldcg(in.row_max) : 0;
  const auto factor = [&] {
    return in_digits ? 1.0F : half_scale(__uint_as_float(kAsync ? early : __ldcg(in.row_max)));
  };
  const int padded = in_digits ? digits_end(end) : end;
  for (int first = begin + threadIdx.x * 4; first < padded; first += kLoads * blockDim.x * 4) {
    float4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = first + i * blockDim.x * 4;
      v[i] = {};
      if (k < end) v[i] = __ldcg(reinterpret_cast<const float4*>(in.values + k));
    }
    if constexpr (in_digits) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = first + i * blockDim.x * 4;
        if (k >= padded) break;
        Digits digits;
        const float scale = make_digits(v[i], digits);
        put_digits(out, k, digits, scale);
      }
    } else {
      const float down = __fdividef(1, factor());  // exact, of a power of two
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = first + i * blockDim.x * 4;
        if (k < end) put_quad<form>(out, k, times(v[i], down));
      }
    }
  }
  return factor();
}

}  // namespace qwen2::cuda
