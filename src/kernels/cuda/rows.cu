// Kernels that work on rows of activations: embedding, norms, conversions.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product.cuh"

namespace qwen2::cuda {
namespace {

// One element of a matrix, exact but for the subtraction of a minimum.
__device__ float element(const DeviceMatrix& w, int row, int col) {
  const uint8_t* codes = w.codes + row * w.row_bytes;
  const CodePlace place = code_place(w.form, col);
  if (w.form == MatrixForm::kF16) return __half2float(*reinterpret_cast<const __half*>(codes + place.byte));
  const int64_t at = (int64_t(row / kTileRows) * w.groups + col / w.group) * kTileRows + row % kTileRows;
  const int raw = codes[place.byte];
  if (is_general(w.form)) {
    const int code = form_bits(w.form) == 8 ? raw - 128 : (raw >> place.shift) & 15;
    return static_cast<const float*>(w.scales)[at] * float(code) - w.minima[at];
  }
  const int code = form_bits(w.form) == 8 ? raw - 128 : ((raw >> place.shift) & 15) - 8;
  return __half2float(static_cast<const __half*>(w.scales)[at]) * float(code);
}

__global__ void embed_kernel(const __grid_constant__ EmbedArgs a) {
  wait_for_previous();
  let_next_start();
  const int row = blockIdx.x;
  if (row == 0) {
    for (int i = threadIdx.x; i < a.clear_count; i += blockDim.x) a.clear[i] = 0;
  }
  int token = a.row_info[row].token;
  if (token < 0) token = a.sampled[-1 - token];
  for (int k = threadIdx.x; k < a.embedding.cols; k += blockDim.x) {
    const int to = a.embedding.order != nullptr ? a.embedding.order[k] : k;
    a.hidden[int64_t(row) * a.embedding.cols + to] = element(a.embedding, token, k);
  }
}

// With kNormThreads threads, so that sums are those of the fused norm.
__global__ void add_norm_kernel(const __grid_constant__ AddNormArgs a) {
  __shared__ float4 scratch[kNormThreads / kWarp / 4];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  ProductInput in;
  in.hidden = a.hidden;
  in.partials = a.partials;
  in.parts = a.parts;
  const float scale = a.row_max != nullptr ? half_scale(__uint_as_float(__ldcg(a.row_max + row))) : 1.0F;
  float squares = 0;
  float* hidden = a.hidden + int64_t(row) * a.cols;
  for (int k = threadIdx.x * 4; k < a.cols; k += kNormThreads * 4) {
    const float4 v = sum_partials(in, a.rows, a.cols, row, k, scale);
    squares = sum_squares(squares, v);
    *reinterpret_cast<float4*>(hidden + k) = v;
  }
  if (a.x == nullptr) return;
  const float factor = norm_factor(squares, a.cols, a.epsilon, scratch);
  __half* x = reinterpret_cast<__half*>(a.x);
  for (int k = threadIdx.x; k < a.stride; k += kNormThreads) {
    const float value = k < a.cols ? hidden[k] * factor * a.norm[k] : 0.0F;
    x[x_place(a.order, a.stride, row, k)] = __float2half_rn(saturate_half(value));
  }
}

__global__ void scale_to_half_kernel(const __grid_constant__ ScaleToHalfArgs a) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.y;
  const float down = 1.0F / half_scale(__uint_as_float(__ldcg(a.row_max + row)));
  const float* values = a.values + int64_t(row) * a.cols;
  __half* x = reinterpret_cast<__half*>(a.x);
  for (int64_t k = blockIdx.x * blockDim.x + threadIdx.x; k < a.stride; k += gridDim.x * blockDim.x) {
    float value = 0;
    if (k < a.cols) value = __ldcg(values + k) * down;
    x[x_place(a.order, a.stride, row, static_cast<int>(k))] = __float2half_rn(saturate_half(value));
  }
}

__global__ void reorder_kernel(const __grid_constant__ ReorderArgs a) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  for (int k = threadIdx.x; k < a.stride; k += blockDim.x) {
    uint16_t value = 0;
    if (k < a.cols) value = __ldcg(a.x + row * a.stride + (a.order != nullptr ? a.order[k] : k));
    a.out[x_place(a.out_order, a.stride, row, k)] = value;
  }
}

__global__ void __launch_bounds__(512) read_all_kernel(const uint4* data, int64_t count, uint32_t* out) {
  constexpr int kLoads = 8;
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) v[j] = load_once(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) sum += data[i].x;
  if (sum == 0x9e3779b9U) *out = 0;  // what is there anyway: the compiler must not drop the reads
}

}  // namespace

void embed(const EmbedArgs& args, cudaStream_t stream) {
  launch<embed_kernel>(dim3(args.rows), 256, 0, stream, args);
}

void add_norm(const AddNormArgs& args, cudaStream_t stream) {
  launch<add_norm_kernel>(dim3(args.rows), kNormThreads, 0, stream, args);
}

void scale_to_half(const ScaleToHalfArgs& args, cudaStream_t stream) {
  launch<scale_to_half_kernel>(dim3(8, args.rows), 256, 0, stream, args);
}

void read_all(const void* data, size_t bytes, uint32_t* out, cudaStream_t stream) {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  read_all_kernel<<<4 * multiprocessors, 512, 0, stream>>>(static_cast<const uint4*>(data),
                                                           static_cast<int64_t>(bytes / 16), out);
}

void reorder(const ReorderArgs& args, cudaStream_t stream) {
  launch<reorder_kernel>(dim3(args.rows), 256, 0, stream, args);
}

}  // namespace qwen2::cuda
