// The weights of a Qwen2 model in the CPU's form: matrices packed, bf16 or quantised, vectors float, all in
// one buffer.
#pragma once

#include <vector>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "kernels/cpu/kernels.h"
#include "model/inventory.h"
#include "model/qwen2_config.h"
#include "tensor/weight_matrix.h"

namespace qwen2 {

struct LayerWeights {
  float* input_norm = nullptr;           // [hidden]
  WeightMatrix qkv;                      // [q + 2 kv, hidden]: query, key and value rows
  float* qkv_bias = nullptr;             // [q + 2 kv]
  WeightMatrix attention_output;         // [hidden, q]
  float* post_attention_norm = nullptr;  // [hidden]
  WeightMatrix gate_up;                  // [2 intermediate, hidden]: gate rows, then up rows
  WeightMatrix down;                     // [hidden, intermediate]
};

struct Qwen2Weights {
  WeightMatrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  float* final_norm = nullptr;  // [hidden]
  WeightMatrix head;            // [vocab, hidden]; the embedding when tied
  LargeBuffer storage;

  // Bytes that one decode step of batch 1 reads: every matrix once, without the embedding's lookup.
  [[nodiscard]] size_t bytes_per_decode_step() const;
};

// Bytes of all weights, once loaded. Asks the checkpoint how it stores each matrix, and reads nothing.
Result<size_t> weight_bytes(const Checkpoint& checkpoint, const Qwen2Config& config,
                            const Precision& precision);

// Loads every tensor of `checkpoint`; a missing or misshapen one is an error that names it.
Result<Qwen2Weights> load_weights(const Checkpoint& checkpoint, const Qwen2Config& config,
                                  const Precision& precision, const cpu::Kernels& kernels);

}  // namespace qwen2
