// A step's inputs and their embedding, and kernels that work on rows of activations.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/arguments.h"

namespace qwen2::cuda {

// --- Inputs ----------------------------------------------------------------------------------------------

// hidden[row] = the embedding of its token. Zeroes `clear` [clear_count] as well.
struct EmbedArgs {
  DeviceMatrix embedding;
  int rows = 0;
  int32_t first_tokens[kMaxRows] = {};  // of the first rows, as in Row: arguments arrive before row_info does
  const Row* row_info = nullptr;        // of the rows after them; may be page-locked host memory
  const int32_t* sampled = nullptr;     // tokens of earlier steps
  float* hidden = nullptr;              // [rows][cols]
  uint32_t* clear = nullptr;
  int clear_count = 0;
};

// Copies a step's inputs from page-locked host memory by the GPU's own reads, and embeds rows meanwhile.
struct FetchArgs {
  struct Piece {
    int64_t offset = 0;  // in source and destination, in bytes; a multiple of 16
    int64_t bytes = 0;   // rounded up to a multiple of 16
  };
  static constexpr int kPieces = 3;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  Piece pieces[kPieces];
  EmbedArgs embed;
};
void fetch(const FetchArgs& args, cudaStream_t stream);
// Adds a fetch() in front of a graph that has one root node. The edge is a full dependency: no kernel of the
// graph starts before the inputs are there, so all of them may read inputs before they wait for each other.
cudaError_t prepend_fetch(cudaGraph_t graph, const FetchArgs& args, cudaGraphNode_t& fetch);
// New arguments for the fetch() of an instantiated graph.
cudaError_t set_fetch(cudaGraphExec_t exec, cudaGraphNode_t fetch, const FetchArgs& args);

// --- Activations -----------------------------------------------------------------------------------------

// Where activations of several rows are written, zero-padded to the stride.
struct RowsOut {
  uint16_t* x = nullptr;
  int64_t stride = 0;
  ActivationLayout layout = ActivationLayout::kRows;
  float* scales = nullptr;  // of split int8 activations
};

// hidden += the sum of the partials; out = rms_norm(hidden) * norm.
struct AddNormArgs {
  int rows = 0;
  int cols = 0;
  float* hidden = nullptr;            // [rows][cols]
  const float* partials = nullptr;    // [splits][rows][cols]
  int splits = 0;                     // of the product that wrote the partial sums
  const uint32_t* row_max = nullptr;  // the partials are multiplied by its half_scale(); null: by 1
  const float* norm = nullptr;
  float epsilon = 0;
  RowsOut out;               // without x: nothing is normed
  float* factors = nullptr;  // [rows]: the norms' factors, which split int8 activations leave out
};
void add_norm(const AddNormArgs& args, cudaStream_t stream);

// Repacks floats, or fp16 rows out.stride long, into another layout.
struct RepackArgs {
  int rows = 0;
  int cols = 0;                       // a multiple of 4
  const float* values = nullptr;      // [rows][cols]
  const uint16_t* halves = nullptr;   // [rows][out.stride]
  const uint32_t* row_max = nullptr;  // the values are divided by its half_scale(); null: by 1
  const int32_t* order = nullptr;     // out[i] = in[order[i]] of each row; null: i
  RowsOut out;
};
void repack(const RepackArgs& args, cudaStream_t stream);

// --- Prompts ---------------------------------------------------------------------------------------------

// Adds biases, rotates queries and keys, scales queries, and writes keys and values to the cache, or with a
// cache of 8 bits to `new_kv`, for store_kv_int8().
struct SplitQkvArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* qkv = nullptr;  // [rows][stride], in the order of the matrix's stored rows
  int64_t stride = 0;
  float* q = nullptr;  // [rows][q_heads * head_dim]
  float q_scale = 1;
  float* new_kv = nullptr;  // [rows][2 * kv_heads * head_dim]
};
void split_qkv(const SplitQkvArgs& args, cudaStream_t stream);

// x = silu(gate) * up / half_scale(row_max), in fp16. Writes row_max, the largest magnitude before the
// division.
struct SwigluArgs {
  int rows = 0;
  int cols = 0;
  const float* gate_up = nullptr;  // [rows][gate_up_stride]: alternating eights of gate and up
  int64_t gate_up_stride = 0;
  uint16_t* x = nullptr;  // [rows][stride], zero-padded
  int64_t stride = 0;
  uint32_t* row_max = nullptr;  // [rows]
};
void swiglu_rows(const SwigluArgs& args, cudaStream_t stream);

// --- Measuring -------------------------------------------------------------------------------------------

// Reads `bytes` (a multiple of 16) from `data` and writes a word that depends on all of them. The read
// bandwidth that decoding is compared with.
void read_all(const void* data, size_t bytes, uint32_t* out, cudaStream_t stream);

}  // namespace qwen2::cuda
