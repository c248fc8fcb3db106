// Staging: a block makes the activations of one row itself, in shared memory.
//
// Each stage has two steps. Constructors compute what does not depend on the previous kernel, addresses above
// all, before the wait for it; compiler_barrier() keeps it there. stage() runs after the wait.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/shared_memory.cuh"
#include "kernels/cuda/common/split_int8.cuh"
#include "kernels/cuda/product/product.h"

namespace qwen2::cuda {

constexpr int kNormThreads = 384;  // fixed: sums of squares must not depend on the block's size
constexpr int kNormQuads = 2;      // quads of columns of each thread, in registers: up to 3072 columns

// Where column 0's activations and scales are, or would be if the block's columns begin later: addresses
// count from column 0.
struct StagedRow {
  std::byte* x;
  float* scales;
};

// Columns [begin, begin + columns) staged in `memory`.
__device__ __forceinline__ StagedRow staged_row(std::byte* memory, int begin, int columns) {
  const int padded = (columns + kActivationGroup - 1) / kActivationGroup * kActivationGroup;
  return {memory - 2 * begin, reinterpret_cast<float*>(memory + 2 * padded) - begin / kActivationGroup};
}

// Four neighbouring columns of a row of the residual stream, and of the partial sums to add.
struct Quad {
  const float* hidden;
  const float* partials[kMaxSplitK];

  __device__ __forceinline__ Quad(const float* all_hidden, const float* all_partials, int rows, int cols,
                                  int row, int k) {
    const int64_t at = int64_t(row) * cols + k;
    hidden = all_hidden + at;
#pragma unroll
    for (int p = 0; p < kMaxSplitK; ++p) partials[p] = all_partials + int64_t(p) * rows * cols + at;
  }
  // The sum of the quad `further` columns on.
  [[nodiscard]] __device__ __forceinline__ float4 sum(int splits, float scale, int further) const {
    float4 v = __ldcg(reinterpret_cast<const float4*>(hidden + further));
    float4 add[kMaxSplitK];
    if constexpr (!kAsync) {  // otherwise a loop keeps registers for those that are not loaded
#pragma unroll
      for (float4& partial : add) partial = {};
    }
#pragma unroll
    for (int p = 0; p < kMaxSplitK; ++p) {  // all issued before the first is used
      if (p < splits) add[p] = __ldcg(reinterpret_cast<const float4*>(partials[p] + further));
    }
#pragma unroll
    for (int p = 0; p < kMaxSplitK; ++p) {
      if (p >= splits) continue;
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

// The sum of squares over a block, of its first kNormThreads threads, in two steps with a block barrier
// between them: store_squares() and norm_factor().
__device__ __forceinline__ void store_squares(float squares, float4* scratch) {
  squares = warp_sum(squares);
  if (threadIdx.x < kNormThreads && threadIdx.x % kWarp == 0)
    reinterpret_cast<float*>(scratch)[threadIdx.x / kWarp] = squares;
}
// The factor of a normed row. `inverse` is 1 / columns: every product waits for this, so nothing is divided.
__device__ __forceinline__ float norm_factor(float inverse, float epsilon, const float4* scratch) {
  constexpr int kQuads = kNormThreads / kWarp / 4;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) sum += (scratch[i].x + scratch[i].y) + (scratch[i].z + scratch[i].w);
  return rsqrtf(__fmaf_rn(sum, inverse, epsilon));
}

// Writes this thread's activations to a staged row.
template <MatrixForm form, bool split_int8>
class StagedRowWriter {
 public:
  __device__ __forceinline__ explicit StagedRowWriter(const StagedRow& row)
      : at_(shared_address(row.x)), scales_(shared_address(row.scales)) {
    if constexpr (split_int8) {
      const int own = static_cast<int>(threadIdx.x % kWarp) * 4;
      at_ += own / 64 * 128 + split_int8_column(own) - 2 * own;
    }
    compiler_barrier(at_);
    compiler_barrier(scales_);
  }
  // Columns k .. k + 3. Split int8 needs whole warps; they pass zeros beyond the columns.
  __device__ __forceinline__ void put(unsigned k, const float4& v) const {
    if constexpr (split_int8) {
      SplitInt8 terms;
      const float scale = split_to_int8(v, terms);
      store_4(at_ + 2 * k, terms.high);
      store_4(at_ + 2 * k + kLowTermOffset, terms.low);
      if (k % kActivationGroup == 0) store_4(scales_ + k / kActivationGroup * 4, __float_as_uint(scale));
    } else {
      put(k, to_halves(v.x, v.y, v.z, v.w));
    }
  }
  __device__ __forceinline__ void put(unsigned k, uint2 halves) const {
    if constexpr (split_int8) {
      put(k, to_floats(halves));
    } else if constexpr (form == MatrixForm::kF16) {
      store_8(at_ + 2 * k, halves);
    } else {
      store_8(at_ + 2 * lane_column(static_cast<int>(k)), to_lane_order(halves));
    }
  }

 private:
  uint32_t at_, scales_;
};

// rms_norm(hidden + partials) * norm by kNormThreads threads, with the sums of add_norm(). Split int8
// activations leave out the norm's factor, which is the same for all columns: norm_factor() gives it after
// the next barrier.
template <MatrixForm form, bool split_int8>
class NormedRow {
 public:
  __device__ __forceinline__ NormedRow(const ProductInput& in, int cols)
      : quad_(in.hidden, in.partials, 1, cols, 0, static_cast<int>(threadIdx.x) * 4),
        splits_(in.splits),
        left_(threadIdx.x < kNormThreads ? cols - static_cast<int>(threadIdx.x) * 4 : 0),
        out_(blockIdx.x == 0 ? in.hidden_out : nullptr) {
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      norm_[i] = {};
      if (has(i)) norm_[i] = load_before(in.norm + threadIdx.x * 4 + i * kStep);
    }
    compiler_barrier(quad_.hidden);
#pragma unroll
    for (const float*& partial : quad_.partials) compiler_barrier(partial);
    compiler_barrier(splits_);
    compiler_barrier(left_);
    compiler_barrier(out_);
  }
  __device__ __forceinline__ void stage(const StagedRowWriter<form, split_int8>& writer, float inverse,
                                        float epsilon, float4* scratch) const {
    float4 v[kNormQuads];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kNormQuads; ++i) {
      v[i] = {};
      if (!has(i)) continue;
      v[i] = quad_.sum(splits_, 1, i * kStep);
      squares = sum_squares(squares, v[i]);
      if (out_ != nullptr) *reinterpret_cast<float4*>(out_ + threadIdx.x * 4 + i * kStep) = v[i];
    }
    store_squares(squares, scratch);
    if constexpr (split_int8) {
#pragma unroll
      for (int i = 0; i < kNormQuads; ++i) {
        if (warp_has(i)) writer.put(threadIdx.x * 4 + i * kStep, times(v[i], norm_[i]));
      }
    } else {
      __syncthreads();
      const float factor = norm_factor(inverse, epsilon, scratch);
#pragma unroll
      for (int i = 0; i < kNormQuads; ++i) {
        if (has(i)) writer.put(threadIdx.x * 4 + i * kStep, times(times(v[i], factor), norm_[i]));
      }
    }
  }

 private:
  static constexpr int kStep = kNormThreads * 4;
  [[nodiscard]] __device__ __forceinline__ bool has(int i) const { return i * kStep < left_; }
  // Whether any lane of this warp has columns.
  [[nodiscard]] __device__ __forceinline__ bool warp_has(int i) const {
    return threadIdx.x < kNormThreads && i * kStep < left_ + static_cast<int>(threadIdx.x % kWarp) * 4;
  }
  Quad quad_;
  int splits_;
  int left_;  // columns from this thread's first on
  float* out_;
  float4 norm_[kNormQuads];
};

// fp16 or float activations of columns [begin, end). Floats are loaded kLoads quads at a time.
template <MatrixForm form, bool split_int8, int kLoads = 6>
class PlainRow {
 public:
  __device__ __forceinline__ PlainRow(const ProductInput& in, int begin, int end)
      : first_(begin + threadIdx.x * 4), end_(end), step_(blockDim.x * 4), padded_(end), values_(nullptr) {
    if constexpr (split_int8) padded_ = (end_ + kActivationGroup - 1) / kActivationGroup * kActivationGroup;
    if (in.values != nullptr) values_ = in.values + first_;
    halves_ = in.x + first_;
    compiler_barrier(first_);
    compiler_barrier(end_);
    compiler_barrier(step_);
    compiler_barrier(padded_);
    compiler_barrier(values_);
    compiler_barrier(halves_);
  }
  // Returns the factor of the products: half_scale() of `row_max`, or 1.
  __device__ __forceinline__ float stage(const StagedRowWriter<form, split_int8>& writer,
                                         const uint32_t* row_max) const {
    if (values_ != nullptr) return stage_floats(writer, row_max);
    const uint16_t* from = halves_;
#pragma unroll 1
    for (unsigned k = first_; k < padded_; k += step_, from += step_) {
      uint2 halves = {};
      if (k < end_) halves = __ldcg(reinterpret_cast<const uint2*>(from));
      writer.put(k, halves);
    }
    return 1;
  }

 private:
  __device__ __forceinline__ float stage_floats(const StagedRowWriter<form, split_int8>& writer,
                                                const uint32_t* row_max) const {
    // Loaded together with the values, but not on Turing, where chunks in flight leave no register for it.
    const uint32_t early = kAsync && !split_int8 ? __ldcg(row_max) : 0;
    const auto factor = [&] {
      return split_int8 ? 1.0F : half_scale(__uint_as_float(kAsync ? early : __ldcg(row_max)));
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
      const float down = split_int8 ? 1 : __fdividef(1, factor());  // exact, of a power of two
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * step_ >= padded_) break;
        writer.put(first + i * step_, split_int8 ? v[i] : times(v[i], down));
      }
    }
    return factor();
  }

  unsigned first_, end_, step_, padded_;
  const float* values_;
  const uint16_t* halves_;
};

}  // namespace qwen2::cuda
