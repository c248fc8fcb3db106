// A step's inputs and their embedding, and kernels that work on rows of activations: norms, other orders.
#include <algorithm>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {
namespace {

// One element of a matrix, exact but for the subtraction of a minimum.
__device__ float element(const DeviceMatrix& w, int row, int col) {
  const CodePlace place = code_place(w.form, col);
  const uint8_t* codes = w.codes + byte_place(w, row, place.byte);
  if (w.form == MatrixForm::kF16) return __half2float(*reinterpret_cast<const __half*>(codes));
  const int64_t at = (int64_t(row / kTileRows) * w.groups + col / w.group) * kTileRows + row % kTileRows;
  const int raw = *codes;
  if (is_general(w.form)) {
    const int code = form_bits(w.form) == 8 ? raw - 128 : (raw >> place.shift) & 15;
    return static_cast<const float*>(w.scales)[at] * float(code) - w.minima[at];
  }
  return __half2float(static_cast<const __half*>(w.scales)[at]) *
         float(signed_code(w.form, raw, place.shift));
}

__device__ void embed_row(const EmbedArgs& a, int row) {
  if (row == 0) {
    for (int i = threadIdx.x; i < a.clear_count; i += blockDim.x) a.clear[i] = 0;
  }
  int token = row < kMaxRows ? a.first_tokens[row] : a.row_info[row].token;
  if (token < 0) token = a.sampled[-1 - token];
#pragma unroll 4
  for (int k = threadIdx.x; k < a.embedding.cols; k += blockDim.x) {
    const int to = a.embedding.order != nullptr ? a.embedding.order[k] : k;
    a.hidden[int64_t(row) * a.embedding.cols + to] = element(a.embedding, token, k);
  }
}

// A block for each row that is embedded, before those that copy, which take less time.
__global__ void fetch_kernel(const __grid_constant__ FetchArgs a) {
  wait_for_previous();
  if (blockIdx.x < a.embed.rows) return embed_row(a.embed, static_cast<int>(blockIdx.x));
  const unsigned block = blockIdx.x - a.embed.rows;
  const unsigned blocks = (gridDim.x - a.embed.rows) / FetchArgs::kPieces;
  const FetchArgs::Piece piece = a.pieces[block / blocks];
  const auto* from = reinterpret_cast<const uint4*>(a.from + piece.offset);
  auto* to = reinterpret_cast<uint4*>(a.to + piece.offset);
  const int64_t count = (piece.bytes + 15) / 16;
  for (int64_t i = block % blocks * blockDim.x + threadIdx.x; i < count; i += blocks * blockDim.x)
    to[i] = from[i];
}

// Four neighbouring activations of a row, by whole warps with consecutive ones.
__device__ __forceinline__ void put_row(const RowsOut& out, int row, int k, const float4& v) {
  if (out.order == XOrder::kDigits) {
    Digits digits;
    const float scale = make_digits(v, digits);
    auto* at = reinterpret_cast<std::byte*>(out.x) + digit_place(out.stride, row, k);
    *reinterpret_cast<uint32_t*>(at) = digits.high;
    *reinterpret_cast<uint32_t*>(at + kLowDigit) = digits.low;
    if (k % kDigitColumns == 0) out.scales[k / kDigitColumns * kMaxRows + row] = scale;
    return;
  }
  uint2 halves = to_halves(v.x, v.y, v.z, v.w);
  if (out.order == XOrder::kLaneBlocks) halves = in_lane_order(halves);
  *reinterpret_cast<uint2*>(out.x + x_place(out.order, out.stride, row, k)) = halves;
}

// With kNormThreads threads, so that sums are those of the fused norm.
__global__ void add_norm_kernel(const __grid_constant__ AddNormArgs a) {
  __shared__ float4 scratch[kNormThreads / kWarp / 4];
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  const float scale = a.row_max != nullptr ? half_scale(__uint_as_float(__ldcg(a.row_max + row))) : 1.0F;
  float* hidden = a.hidden + int64_t(row) * a.cols;
  float4 kept[kNormQuads];  // the first ones; others are read again
  float squares = 0;
  const auto add = [&](int k) {
    const float4 v = Quad(a.hidden, a.partials, a.rows, a.cols, row, k).sum(a.parts, scale, 0);
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
  leave_squares(squares, scratch);
  __syncthreads();
  float factor = norm_factor(__frcp_rn(static_cast<float>(a.cols)), a.epsilon, scratch);
  if (a.out.order == XOrder::kDigits) {  // it is one for all columns
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

__global__ void arrange_kernel(const __grid_constant__ ArrangeArgs a) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.y;
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (k >= a.out.stride) return;
  const auto value = [&](int i) {
    const int from = a.order != nullptr ? a.order[i] : i;
    if (a.values != nullptr) return __ldcg(a.values + int64_t(row) * a.cols + from);
    return __half2float(__ushort_as_half(__ldcg(a.halves + row * a.out.stride + from)));
  };
  float4 v = {};
  if (k < a.cols) {
    if (a.order != nullptr) {
      v = {value(k), value(k + 1), value(k + 2), value(k + 3)};
    } else if (a.values != nullptr) {
      v = __ldcg(reinterpret_cast<const float4*>(a.values + int64_t(row) * a.cols + k));
    } else {
      v = to_floats(__ldcg(reinterpret_cast<const uint2*>(a.halves + row * a.out.stride + k)));
    }
  }
  if (a.row_max != nullptr) v = times(v, __fdividef(1, half_scale(__uint_as_float(__ldcg(a.row_max + row)))));
  put_row(a.out, row, k, v);
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

constexpr int kFetchThreads = 512;
dim3 fetch_blocks(const FetchArgs& args) {
  constexpr int64_t kBlockBytes = 16 * kFetchThreads;
  int64_t most = 1;
  for (const FetchArgs::Piece& piece : args.pieces) most = std::max(most, piece.bytes);
  const int64_t of_piece = std::min<int64_t>((most + kBlockBytes - 1) / kBlockBytes, 16);
  return {static_cast<unsigned>(args.embed.rows + of_piece * FetchArgs::kPieces)};
}

// fetch_kernel as a graph wants it.
struct NodeArguments {
  explicit NodeArguments(const FetchArgs& args) : arguments{const_cast<FetchArgs*>(&args)} {
    params.func = reinterpret_cast<void*>(fetch_kernel);
    params.gridDim = fetch_blocks(args);
    params.blockDim = dim3(kFetchThreads);
    params.kernelParams = arguments;
  }
  NodeArguments(const NodeArguments&) = delete;
  NodeArguments& operator=(const NodeArguments&) = delete;

  void* arguments[1];
  cudaKernelNodeParams params{};
};

}  // namespace

void fetch(const FetchArgs& args, cudaStream_t stream) {
  launch<fetch_kernel>(fetch_blocks(args), kFetchThreads, 0, stream, args);
}

cudaError_t prepend_fetch(cudaGraph_t graph, const FetchArgs& args, cudaGraphNode_t& fetch) {
  cudaGraphNode_t first[2] = {};
  size_t count = 2;
  cudaError_t error = cudaGraphGetRootNodes(graph, first, &count);
  if (error != cudaSuccess) return error;
  if (count != 1) return cudaErrorInvalidValue;
  const NodeArguments arguments(args);
  error = cudaGraphAddKernelNode(&fetch, graph, nullptr, 0, &arguments.params);
  if (error != cudaSuccess) return error;
  return cudaGraphAddDependencies(graph, &fetch, first, nullptr, 1);
}

cudaError_t set_fetch(cudaGraphExec_t exec, cudaGraphNode_t fetch, const FetchArgs& args) {
  const NodeArguments arguments(args);
  return cudaGraphExecKernelNodeSetParams(exec, fetch, &arguments.params);
}

void add_norm(const AddNormArgs& args, cudaStream_t stream) {
  launch<add_norm_kernel>(dim3(args.rows), kNormThreads, 0, stream, args);
}

void arrange(const ArrangeArgs& args, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const auto quads = static_cast<unsigned>(args.out.stride / 4);
  launch<arrange_kernel>(dim3((quads + kThreads - 1) / kThreads, args.rows), kThreads, 0, stream, args);
}

void read_all(const void* data, size_t bytes, uint32_t* out, cudaStream_t stream) {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  read_all_kernel<<<4 * multiprocessors, 512, 0, stream>>>(static_cast<const uint4*>(data),
                                                           static_cast<int64_t>(bytes / 16), out);
}

}  // namespace qwen2::cuda
