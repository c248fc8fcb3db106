// Attention over the paged KV cache. Scores and sums are float.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/arguments.h"

namespace qwen2::cuda {

// softmax(q K^T) V of single rows, each over the keys of its sequence up to its own token. K and V are read
// once for the query heads that share them.
struct RowAttentionArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* q = nullptr;  // [rows][q_heads * head_dim], rotated and scaled
  int max_splits = 1;        // at least split_count(position + 1) of every row
  // With programmatic dependent launch: trigger dependents before the first loads instead of after them.
  bool trigger_first = false;
  uint16_t* out = nullptr;  // fp16
  int64_t out_stride = 0;
  ActivationLayout layout = ActivationLayout::kRows;  // of out
  float* split_sums = nullptr;                        // [rows][q_heads][kMaxSplits][head_dim]
  float* split_scalars = nullptr;                     // [rows][q_heads][kMaxSplits][2]: maximum, denominator
  uint32_t* arrived = nullptr;                        // [rows][q_heads], zero; the kernel leaves zeros
};
void attend_rows(const RowAttentionArgs& args, cudaStream_t stream);

// softmax(q K^T) V of a prompt's chunk: consecutive tokens of one sequence, whose keys and values are in the
// cache already.
struct ChunkAttentionArgs {
  int tokens = 0;
  int position = 0;   // of the first token
  int positions = 0;  // rows of the rotation table
  HeadShape heads;
  KvCache cache;
  const uint32_t* pages = nullptr;  // the sequence's page table
  const float* q = nullptr;         // [tokens][q_heads * head_dim], rotated and scaled
  uint16_t* out = nullptr;          // fp16 [tokens][out_stride]
  int64_t out_stride = 0;
};
void attend_chunk(const ChunkAttentionArgs& args, cudaStream_t stream);

// Rounds new keys and values to a cache of 8 bits, with a scale for each token and head.
struct StoreKvArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* new_kv = nullptr;  // [rows][2 * kv_heads * head_dim]
};
void store_kv_int8(const StoreKvArgs& args, cudaStream_t stream);

}  // namespace qwen2::cuda
