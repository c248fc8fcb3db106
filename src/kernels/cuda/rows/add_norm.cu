// The residual stream plus partial sums, and its RMS norm, of several rows.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/product/product_stage.cuh"
#include "kernels/cuda/rows/put_row.cuh"

namespace qwen2::cuda {
namespace {

// Launched with kNormThreads threads, so that sums are those of the norms that products stage.
__global__ void add_norm_kernel(const __grid_constant__ AddNormArgs a) {
  __shared__ float4 scratch[kNormThreads / kWarp / 4];
  trigger_dependents();
  wait_for_previous();
  const int row = blockIdx.x;
  const float scale = a.row_max != nullptr ? half_scale(__uint_as_float(__ldcg(a.row_max + row))) : 1.0F;
  float* hidden = a.hidden + int64_t(row) * a.cols;
  float4 kept[kNormQuads];  // the first quads; more are read again
  float squares = 0;
  const auto add = [&](int k) {
    const float4 v = Quad(a.hidden, a.partials, a.rows, a.cols, row, k).sum(a.splits, scale, 0);
    squares = sum_squares(squares, v);
    *reinterpret_cast<float4*>(hidden + k) = v;
    return v;
  };
  constexpr int kStep = kNormThreads * 4;
  const int first = threadIdx.x * 4;
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    kept[i] = {};
    if (first + i * kStep < a.cols) kept[i] = add(first + i * kStep);
  }
  for (int k = first + kNormQuads * kStep; k < a.cols; k += kStep) add(k);
  if (a.out.x == nullptr) return;
  store_squares(squares, scratch);
  __syncthreads();
  float factor = norm_factor(__frcp_rn(static_cast<float>(a.cols)), a.epsilon, scratch);
  if (a.out.layout == ActivationLayout::kSplitInt8) {  // the same for all columns
    if (threadIdx.x == 0) a.factors[row] = factor;
    factor = 1;
  }
  const auto put = [&](int k, const float4& v) {
    float4 norm = {};
    if (k < a.cols) norm = __ldg(reinterpret_cast<const float4*>(a.norm + k));
    put_row(a.out, row, k, times(times(v, factor), norm));
  };
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    if (first + i * kStep < a.out.stride) put(first + i * kStep, kept[i]);
  }
  for (int k = first + kNormQuads * kStep; k < a.out.stride; k += kStep)
    put(k, k < a.cols ? *reinterpret_cast<const float4*>(hidden + k) : float4{});
}

}  // namespace

void add_norm(const AddNormArgs& args, cudaStream_t stream) {
  launch<add_norm_kernel>(dim3(args.rows), kNormThreads, 0, stream, args);
}

}  // namespace qwen2::cuda
