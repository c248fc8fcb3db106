// A step's inputs, copied from the host by the GPU's own reads, and the embedding of its rows.
#include <algorithm>

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/rows/rows.h"

namespace qwen2::cuda {
namespace {

// One element of a matrix, exact but for the subtraction of a minimum.
__device__ float element(const DeviceMatrix& w, int row, int col) {
  const CodeLocation place = code_location(w.form, col);
  const uint8_t* codes = w.codes + byte_offset(w, row, place.byte);
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

// The first blocks embed a row each; the others, which take less time, copy.
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

constexpr int kFetchThreads = 512;
dim3 fetch_blocks(const FetchArgs& args) {
  constexpr int64_t kBlockBytes = 16 * kFetchThreads;
  int64_t most = 1;
  for (const FetchArgs::Piece& piece : args.pieces) most = std::max(most, piece.bytes);
  const int64_t of_piece = std::min<int64_t>((most + kBlockBytes - 1) / kBlockBytes, 16);
  return {static_cast<unsigned>(args.embed.rows + of_piece * FetchArgs::kPieces)};
}

// The parameters of fetch_kernel as a graph node.
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

}  // namespace qwen2::cuda
