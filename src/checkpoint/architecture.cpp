#include "checkpoint/architecture.h"

#include <fmt/format.h>

#include <array>
#include <span>

namespace qwen2 {
namespace {

using enum MatrixRole;
using enum VectorRole;

using Size = int64_t (*)(const ModelSizes&);
constexpr Size kOne = [](const ModelSizes& /*m*/) { return int64_t{1}; };
constexpr Size kVocabulary = [](const ModelSizes& m) { return m.vocab_size; };
constexpr Size kHidden = [](const ModelSizes& m) { return m.hidden_size; };
constexpr Size kIntermediate = [](const ModelSizes& m) { return m.intermediate_size; };
constexpr Size kQuery = [](const ModelSizes& m) { return m.q_size(); };
constexpr Size kKeyValue = [](const ModelSizes& m) { return m.kv_size(); };

using Condition = bool (*)(const ModelSizes&);
constexpr Condition kAlways = [](const ModelSizes& /*m*/) { return true; };
constexpr Condition kUntied = [](const ModelSizes& m) { return !m.tied_head; };

struct TensorRow {
  std::variant<MatrixRole, VectorRole> role;
  std::string_view name;  // Hugging Face's
  std::string_view gguf_name;
  Size rows;
  Size cols = kOne;
  Condition present = kAlways;
};

// A tensor that only some models have is a row with a condition. Rows of one role are neighbours. The rows of
// q and k keep Hugging Face's order: GGUF permutes them only for architectures whose RoPE turns neighbouring
// elements, and Qwen2's turns the halves of a head.
constexpr auto kBeforeLayers = std::to_array<TensorRow>({
    {kEmbedding, kEmbeddingName, "token_embd.weight", kVocabulary, kHidden},
});
constexpr auto kEachLayer = std::to_array<TensorRow>({
    {kInputNorm, "input_layernorm.weight", "attn_norm.weight", kHidden},
    {kQkv, "self_attn.q_proj.weight", "attn_q.weight", kQuery, kHidden},
    {kQkv, "self_attn.k_proj.weight", "attn_k.weight", kKeyValue, kHidden},
    {kQkv, "self_attn.v_proj.weight", "attn_v.weight", kKeyValue, kHidden},
    {kAttentionOutput, "self_attn.o_proj.weight", "attn_output.weight", kHidden, kQuery},
    {kGateUp, "mlp.gate_proj.weight", "ffn_gate.weight", kIntermediate, kHidden},
    {kGateUp, "mlp.up_proj.weight", "ffn_up.weight", kIntermediate, kHidden},
    {kDown, "mlp.down_proj.weight", "ffn_down.weight", kHidden, kIntermediate},
    {kQkvBias, "self_attn.q_proj.bias", "attn_q.bias", kQuery},
    {kQkvBias, "self_attn.k_proj.bias", "attn_k.bias", kKeyValue},
    {kQkvBias, "self_attn.v_proj.bias", "attn_v.bias", kKeyValue},
    {kPostAttentionNorm, "post_attention_layernorm.weight", "ffn_norm.weight", kHidden},
});
constexpr auto kAfterLayers = std::to_array<TensorRow>({
    {kFinalNorm, "model.norm.weight", "output_norm.weight", kHidden},
    {kHead, kHeadName, "output.weight", kVocabulary, kHidden, kUntied},
});
constexpr std::string_view kLayersPrefix = "model.layers.";

void append(std::vector<ModelTensor>& tensors, std::span<const TensorRow> rows, const ModelSizes& sizes,
            std::optional<int64_t> layer) {
  const std::string prefix = layer ? fmt::format("{}{}.", kLayersPrefix, *layer) : "";
  for (const TensorRow& row : rows) {
    if (!row.present(sizes)) continue;
    int64_t first_row = 0;
    if (!tensors.empty() && tensors.back().role == row.role && tensors.back().layer == layer)
      first_row = tensors.back().first_row + tensors.back().rows;
    tensors.push_back({row.role, layer, fmt::format("{}{}", prefix, row.name), row.rows(sizes),
                       row.cols(sizes), first_row});
  }
}

}  // namespace

std::vector<ModelTensor> model_tensors(const ModelSizes& sizes) {
  std::vector<ModelTensor> tensors;
  append(tensors, kBeforeLayers, sizes, std::nullopt);
  for (int64_t i = 0; i < sizes.layers; ++i) append(tensors, kEachLayer, sizes, i);
  append(tensors, kAfterLayers, sizes, std::nullopt);
  return tensors;
}

std::vector<ModelTensor> layer_tensors(const ModelSizes& sizes, int64_t layer) {
  std::vector<ModelTensor> tensors;
  append(tensors, kEachLayer, sizes, layer);
  return tensors;
}

namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kBias = ".bias";

// NAME.bias for NAME.weight.
std::string bias_of(std::string_view weight) {
  return fmt::format("{}{}", weight.substr(0, weight.size() - kWeight.size()), kBias);
}

bool has_no_bias(const TensorRow& row) {
  const MatrixRole* role = std::get_if<MatrixRole>(&row.role);
  return role != nullptr && *role != kQkv;
}

}  // namespace

std::vector<std::pair<std::string, int64_t>> foreign_biases(const ModelSizes& sizes) {
  std::vector<std::pair<std::string, int64_t>> biases;
  for (int64_t layer = 0; layer < sizes.layers; ++layer) {
    for (const TensorRow& row : kEachLayer) {
      if (has_no_bias(row))
        biases.emplace_back(fmt::format("{}{}.{}", kLayersPrefix, layer, bias_of(row.name)), row.rows(sizes));
    }
  }
  biases.emplace_back(bias_of(kHeadName), sizes.vocab_size);
  return biases;
}

std::string gguf_tensor_name(std::string_view name) {
  using Rows = std::span<const TensorRow>;
  for (const Rows rows : {Rows(kBeforeLayers), Rows(kAfterLayers)}) {
    for (const TensorRow& row : rows) {
      if (name == row.name) return std::string(row.gguf_name);
      if (has_no_bias(row) && name == bias_of(row.name)) return bias_of(row.gguf_name);
    }
  }
  if (!name.starts_with(kLayersPrefix)) return {};
  name.remove_prefix(kLayersPrefix.size());
  const size_t dot = name.find('.');
  if (dot == std::string_view::npos) return {};
  for (const TensorRow& row : kEachLayer) {
    const std::string_view part = name.substr(dot + 1);
    if (part == row.name) return fmt::format("blk.{}.{}", name.substr(0, dot), row.gguf_name);
    if (has_no_bias(row) && part == bias_of(row.name))
      return fmt::format("blk.{}.{}", name.substr(0, dot), bias_of(row.gguf_name));
  }
  return {};
}

}  // namespace qwen2
