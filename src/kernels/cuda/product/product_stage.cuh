// How a block makes the activations of one row itself, in shared memory.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/split_int8.cuh"
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

// Four neighbours of a row of the residual stream, with its partial sums.
struct Quad {
  const float* hidden;
  const float* partials[kMaxParts];

  __device__ __forceinline__ Quad(const float* all_hidden, const float* all_partials, int rows, int cols,
                                  int row, int k) {
    const int64_t at = int64_t(row) * cols + k;
    hidden = all_hidden + at;
#pragma unroll
    for (int p = 0; p < kMaxParts; ++p) partials[p] = all_partials + int64_t(p) * rows * cols + at;
  }
  // `further` is how far behind it the quad lies that is wanted.
  [[nodiscard]] __device__ __forceinline__ float4 sum(int parts, float scale, int further) const {
    float4 v = __ldcg(reinterpret_cast<const float4*>(hidden + further));
    float4 add[kMaxParts];
    if constexpr (!kAsync) {  // a loop would keep registers for those that are not loaded
#pragma unroll
      for (float4& part : add) part = {};
    }
#pragma unroll
    for (int p = 0; p < kMaxParts; ++p) {  // all on their way before the first is needed
      if (p < parts) add[p] = __ldcg(reinterpret_cast<const float4*>(partials[p] + further));
    }
#pragma unroll
    for (int p = 0; p < kMaxParts; ++p) {
      if (p >= parts) continue;
      v.x += add[p].x * scale;
      v.y += add[p].y * scale;
      v.z += add[p].z * scale;
      v.w += add[p].w * scale;
    }
    return v;
  }
};

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
// What a row is multiplied by. All of it is on the way of every product: no division; `inverse` is 1 /
// columns.
__device__ __forceinline__ float norm_factor(float inverse, float epsilon, const float4* scratch) {
  constexpr int kQuads = kNormThreads / kWarp / 4;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) sum += (scratch[i].x + scratch[i].y) + (scratch[i].z + scratch[i].w);
  return rsqrtf(__fmaf_rn(sum, inverse, epsilon));
}

__device__ __forceinline__ float4 times(const float4& v, float factor) {
  return {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}
__device__ __forceinline__ float4 times(const float4& v, const float4& w) {
  return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
}

// What follows is in two parts: constructors find out before the wait for the previous kernel what does not
// depend on it, addresses above all, and settle() keeps that there.

// Where this thread's activations go in a staged row.
template <MatrixForm form, bool fine>
class RowPlaces {
 public:
  __device__ __forceinline__ explicit RowPlaces(const StagedRow& row)
      : at_(shared_address(row.x)), scales_(shared_address(row.scales)) {
    if constexpr (kInDigits<form, fine>) {
      const int own = static_cast<int>(threadIdx.x % kWarp) * 4;
      at_ += own / 64 * 128 + digit_in_row(own) - 2 * own;
    }
    settle(at_);
    settle(scales_);
  }
  // Columns k .. k + 3. Digits are made by whole warps, of zeros beyond the columns.
  __device__ __forceinline__ void put(unsigned k, const float4& v) const {
    if constexpr (kInDigits<form, fine>) {
      Digits digits;
      const float scale = make_digits(v, digits);
      store_4(at_ + 2 * k, digits.high);
      store_4(at_ + 2 * k + kLowDigit, digits.low);
      if (k % kDigitColumns == 0) store_4(scales_ + k / kDigitColumns * 4, __float_as_uint(scale));
    } else {
      put(k, to_halves(v.x, v.y, v.z, v.w));
    }
  }
  __device__ __forceinline__ void put(unsigned k, uint2 halves) const {
    if constexpr (kInDigits<form, fine>) {
      put(k, to_floats(halves));
    } else if constexpr (form == MatrixForm::kF16) {
      store_8(at_ + 2 * k, halves);
    } else {
      store_8(at_ + 2 * lane_place(static_cast<int>(k)), in_lane_order(halves));
    }
  }

 private:
  uint32_t at_, scales_;
};

// rms_norm(hidden + partials) * norm, by kNormThreads threads, so that sums are add_norm()'s. Digits come
// without the norm's factor, which whoever needs it finds behind the next barrier: it is one for all columns.
template <MatrixForm form, bool fine>
class NormedRow {
 public:
  __device__ __forceinline__ NormedRow(const ProductInput& in, int cols)
      : quad_(in.hidden, in.partials, 1, cols, 0, static_cast<int>(threadIdx.x) * 4),
        parts_(in.parts),
        left_(threadIdx.x < kNormThreads ? cols - static_cast<int>(threadIdx.x) * 4 : 0),
        out_(blockIdx.x == 0 ? in.hidden_out : nullptr) {
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      norm_[i] = {};
      if (has(i)) norm_[i] = load_before(in.norm + threadIdx.x * 4 + i * kStep);
    }
    settle(quad_.hidden);
#pragma unroll
    for (const float*& partial : quad_.partials) settle(partial);
    settle(parts_);
    settle(left_);
    settle(out_);
  }
  __device__ __forceinline__ void stage(const RowPlaces<form, fine>& places, float inverse, float epsilon,
                                        float4* scratch) const {
    float4 v[kNormQuads];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      v[i] = {};
      if (!has(i)) continue;
      v[i] = quad_.sum(parts_, 1, i * kStep);
      squares = sum_squares(squares, v[i]);
      if (out_ != nullptr) *reinterpret_cast<float4*>(out_ + threadIdx.x * 4 + i * kStep) = v[i];
    }
    leave_squares(squares, scratch);
    if constexpr (kInDigits<form, fine>) {
#pragma unroll
      for (int i = 0; i < kNormQuads; ++i) {
        if (has_digits(i)) places.put(threadIdx.x * 4 + i * kStep, times(v[i], norm_[i]));
      }
    } else {
      __syncthreads();
      const float factor = norm_factor(inverse, epsilon, scratch);
#pragma unroll
      for (int i = 0; i < kNormQuads; ++i) {
        if (has(i)) places.put(threadIdx.x * 4 + i * kStep, times(times(v[i], factor), norm_[i]));
      }
    }
  }

 private:
  static constexpr int kStep = kNormThreads * 4;
  [[nodiscard]] __device__ __forceinline__ bool has(int i) const { return i * kStep < left_; }
  // Whether this warp has any.
  [[nodiscard]] __device__ __forceinline__ bool has_digits(int i) const {
    return threadIdx.x < kNormThreads && i * kStep < left_ + static_cast<int>(threadIdx.x % kWarp) * 4;
  }
  Quad quad_;
  int parts_;
  int left_;  // columns from this thread's first on
  float* out_;
  float4 norm_[kNormQuads];
};

// fp16 or float activations of columns [begin, end), of floats kLoads quads at once.
template <MatrixForm form, bool fine, int kLoads = 6>
class PlainRow {
 public:
  __device__ __forceinline__ PlainRow(const ProductInput& in, int begin, int end)
      : first_(begin + threadIdx.x * 4), end_(end), step_(blockDim.x * 4), padded_(end), values_(nullptr) {
    if constexpr (kInDigits<form, fine>) padded_ = (end_ + kDigitColumns - 1) / kDigitColumns * kDigitColumns;
    if (in.values != nullptr) values_ = in.values + first_;
    halves_ = in.x + first_;
    settle(first_);
    settle(end_);
    settle(step_);
    settle(padded_);
    settle(values_);
    settle(halves_);
  }
  // Returns what the products must be multiplied by, which `row_max` asks for.
  __device__ __forceinline__ float stage(const RowPlaces<form, fine>& places, const uint32_t* row_max) const {
    if (values_ != nullptr) return stage_floats(places, row_max);
    const uint16_t* from = halves_;
#pragma unroll 1
    for (unsigned k = first_; k < padded_; k += step_, from += step_) {
      uint2 halves = {};
      if (k < end_) halves = __ldcg(reinterpret_cast<const uint2*>(from));
      places.put(k, halves);
    }
    return 1;
  }

 private:
  __device__ __forceinline__ float stage_floats(const RowPlaces<form, fine>& places,
                                                const uint32_t* row_max) const {
    constexpr bool in_digits = kInDigits<form, fine>;
    // On its way together with the values; on Turing, whose chunks are in registers, there is none to spare.
    const uint32_t early = kAsync && !in_digits ? __ldcg(row_max) : 0;
    const auto factor = [&] {
      return in_digits ? 1.0F : half_scale(__uint_as_float(kAsync ? early : __ldcg(row_max)));
    };
    const float* from = values_;
#pragma unroll 1
    for (unsigned first = first_; first < padded_; first += kLoads * step_) {
      float4 v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i, from += step_) {
        v[i] = {};
        if (first + i * step_ < end_) v[i] = __ldcg(reinterpret_cast<const float4*>(from));
      }
      const float down = in_digits ? 1 : __fdividef(1, factor());  // exact, of a power of two
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * step_ >= padded_) break;
        places.put(first + i * step_, in_digits ? v[i] : times(v[i], down));
      }
    }
    return factor();
  }

  unsigned first_, end_, step_, padded_;
  const float* values_;
  const uint16_t* halves_;
};

}  // namespace qwen2::cuda
