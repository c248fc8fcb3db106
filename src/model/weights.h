// The weights of a Qwen2 model in the CPU's form: matrices packed bf16, vectors float, all in one buffer.
#pragma once

#include <vector>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "model/qwen2_config.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {

struct LayerWeights {
  float* input_norm = nullptr;           // [hidden]
  PackedMatrix qkv;                      // [q + 2 kv, hidden]: query, key and value rows
  float* qkv_bias = nullptr;             // [q + 2 kv]
  PackedMatrix attention_output;         // [hidden, q]
  float* post_attention_norm = nullptr;  // [hidden]
  PackedMatrix gate_up;                  // [2 intermediate, hidden]: gate rows, then up rows
  PackedMatrix down;                     // [hidden, intermediate]
};

struct Qwen2Weights {
  PackedMatrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  float* final_norm = nullptr;  // [hidden]
  PackedMatrix head;            // [vocab, hidden]; the embedding when tied
  LargeBuffer storage;

  // Bytes that one decode step of batch 1 reads: every matrix once, without the embedding's lookup.
  [[nodiscard]] size_t bytes_per_decode_step() const;
};

size_t weight_bytes(const Qwen2Config& config);

// Converts every tensor of `checkpoint`; a missing or misshapen one is an error that names it.
Result<Qwen2Weights> load_weights(const Checkpoint& checkpoint, const Qwen2Config& config);

}  // namespace qwen2
