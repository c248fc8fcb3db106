// The tensors of a dense Qwen2 model. Loaders, writers and the quantiser go through this one list.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace qwen2 {

// What the list and the shapes depend on.
struct ModelSizes {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  bool tied_head = false;  // the head is the embedding

  [[nodiscard]] int64_t q_size() const { return heads * head_dim; }
  [[nodiscard]] int64_t kv_size() const { return kv_heads * head_dim; }
};

// What the model computes with. Tensors of one role and layer are its rows, one after the other.
enum class MatrixRole { kEmbedding, kQkv, kAttentionOutput, kGateUp, kDown, kHead };
enum class VectorRole { kInputNorm, kPostAttentionNorm, kQkvBias, kFinalNorm };

// Hugging Face names that code also uses by themselves.
constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
constexpr std::string_view kHeadName = "lm_head.weight";

struct ModelTensor {
  std::variant<MatrixRole, VectorRole> role;
  std::optional<int64_t> layer;  // none: the model has it once
  std::string name;              // Hugging Face's
  int64_t rows;
  int64_t cols;       // 1 for a vector
  int64_t first_row;  // among the rows of its role

  [[nodiscard]] bool is_matrix() const { return std::holds_alternative<MatrixRole>(role); }
  // These are what the quantiser rounds.
  [[nodiscard]] bool is_layer_matrix() const { return layer && is_matrix(); }
};

// Every tensor that a model of these sizes has, layer by layer.
std::vector<ModelTensor> model_tensors(const ModelSizes& sizes);

// Those of one layer.
std::vector<ModelTensor> layer_tensors(const ModelSizes& sizes, int64_t layer);

// Biases of linear layers that Qwen2 does not have, with their sizes: files of models that were changed may hold
// them.
std::vector<std::pair<std::string, int64_t>> foreign_biases(const ModelSizes& sizes);

// The GGUF name of the tensor with this Hugging Face name, such as "blk.3.attn_q.weight"; empty for a name that
// Qwen2 does not have.
std::string gguf_tensor_name(std::string_view name);

}  // namespace qwen2
