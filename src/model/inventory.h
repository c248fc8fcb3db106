// The matrices and vectors that a model computes with, and the form in which they are kept.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/architecture.h"
#include "checkpoint/checkpoint.h"
#include "model/qwen2_config.h"

namespace qwen2 {

// How matrices are kept. `bits` 16: bf16 on the CPU, fp16 on a GPU. 0: as in the checkpoint, whose 16 and 32
// bits become 16. 8 or 4: quantised on load, symmetric, to the nearest code, with the scale of each group
// chosen for the least squared error.
struct Precision {
  int bits = 0;
  int head_bits = 0;    // embedding and head: a scale for each row at 8 bits
  int64_t group = 128;  // of what is quantised when loaded

  // `weights` is "auto", "fp16", "bf16", "int8" or "int4". "fp16" and "bf16" both mean 16 bits, in the type
  // that the device has. An empty `head` follows the weights, but is int8 where they are int4.
  static Result<Precision> parse(std::string_view weights, std::string_view head, int64_t group);
};

// A tensor of the checkpoint, as some rows of a matrix or some elements of a vector.
struct TensorSource {
  std::string name;
  int64_t rows;
};

struct MatrixEntry {
  MatrixRole role;
  int64_t layer;  // of the roles that have one
  std::vector<TensorSource> sources;
  int64_t cols;

  [[nodiscard]] int64_t rows() const;
  [[nodiscard]] bool is_head() const { return role == MatrixRole::kEmbedding || role == MatrixRole::kHead; }
};

struct VectorEntry {
  VectorRole role;
  int64_t layer;
  std::vector<TensorSource> sources;

  [[nodiscard]] int64_t size() const;
};

struct Inventory {
  std::vector<MatrixEntry> matrices;  // the head only where it is not the embedding
  std::vector<VectorEntry> vectors;

  explicit Inventory(const Qwen2Config& config);
};

// Where a matrix or vector of a layer goes: layers of any device have these members.
template <class Layer>
auto& layer_matrix(Layer& layer, MatrixRole role) {
  switch (role) {
    case MatrixRole::kQkv:
      return layer.qkv;
    case MatrixRole::kAttentionOutput:
      return layer.attention_output;
    case MatrixRole::kGateUp:
      return layer.gate_up;
    case MatrixRole::kDown:
      return layer.down;
    case MatrixRole::kEmbedding:
    case MatrixRole::kHead:
      break;
  }
  std::abort();  // not of a layer
}

template <class Layer>
auto& layer_vector(Layer& layer, VectorRole role) {
  switch (role) {
    case VectorRole::kInputNorm:
      return layer.input_norm;
    case VectorRole::kPostAttentionNorm:
      return layer.post_attention_norm;
    case VectorRole::kQkvBias:
      return layer.qkv_bias;
    case VectorRole::kFinalNorm:
      break;
  }
  std::abort();
}

// The same among the weights of a model.
template <class Weights>
auto& matrix_of(Weights& w, const MatrixEntry& entry) {
  if (entry.role == MatrixRole::kEmbedding) return w.embedding;
  if (entry.role == MatrixRole::kHead) return w.head;
  return layer_matrix(w.layers[static_cast<size_t>(entry.layer)], entry.role);
}

template <class Weights>
auto& vector_of(Weights& w, const VectorEntry& entry) {
  if (entry.role == VectorRole::kFinalNorm) return w.final_norm;
  return layer_vector(w.layers[static_cast<size_t>(entry.layer)], entry.role);
}

// The form in which a source is kept; nothing for 16 bits.
Result<std::optional<QuantizedFormat>> kept_format(const Checkpoint& checkpoint, const Precision& precision,
                                                   const MatrixEntry& entry, const TensorSource& source);

}  // namespace qwen2
