// What the arguments of several kernels share.
//
// Every launch function takes plain data, enqueues on `stream` and returns. A failed launch is reported by
// cudaGetLastError(). Pointers are device pointers unless they say otherwise. fp16 values are uint16_t in
// headers, so that the host's compiler can read them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

// One token of a step.
struct Row {
  int32_t token;  // negative: the token is EmbedArgs::sampled[-1 - token]
  int32_t position;
  int32_t page_offset;  // of its sequence's page table in KvCache::pages
  int32_t older;        // keys of its sequence that were in the cache before this step
};

struct HeadShape {
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // 64 or 128

  // Query heads of one KV head.
  [[nodiscard]] constexpr int group() const { return q_heads / kv_heads; }
};

// The key biases that are kept out of the cache: see backend/key_bias.h.
struct KeyBiasView {
  int pairs = 0;                   // the largest count of any KV head; 0: none
  const int32_t* index = nullptr;  // [kv_heads][kMaxBiasPairs]; unused entries have values of zero
  const float* first = nullptr;    // the same shape
  const float* second = nullptr;
};

// Where one layer keeps K and V.
struct KvCache {
  std::byte* data = nullptr;  // page 0 of the layer
  int kv_bits = 16;
  const uint32_t* pages = nullptr;   // page tables of the step's sequences, concatenated
  const float* rotations = nullptr;  // [positions][head_dim / 2][2]: cosine, sine
  const float* bias = nullptr;       // [q + 2 kv]: of query, key and value
  KeyBiasView key_bias;
};

}  // namespace qwen2::cuda
