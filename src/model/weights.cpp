#include "model/weights.h"

namespace qwen2 {
namespace {

// Hands out aligned pieces of one buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  float* vector(int64_t size) {
    return reinterpret_cast<float*>(take(static_cast<size_t>(size) * sizeof(float)));
  }
  PackedMatrix matrix(int64_t rows, int64_t cols) {
    return {reinterpret_cast<uint16_t*>(take(PackedMatrix::packed_bytes(rows, cols))), rows, cols};
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  std::byte* take(size_t bytes) {
    std::byte* place = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 255) / 256 * 256;
    return place;
  }

  std::byte* base_;
  size_t used_ = 0;
};

Qwen2Weights lay_out(const Qwen2Config& c, Arena& arena) {
  Qwen2Weights w;
  w.embedding = arena.matrix(c.vocab_size, c.hidden_size);
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerWeights layer;
    layer.input_norm = arena.vector(c.hidden_size);
    layer.qkv = arena.matrix(c.qkv_size(), c.hidden_size);
    layer.qkv_bias = arena.vector(c.qkv_size());
    layer.attention_output = arena.matrix(c.hidden_size, c.q_size());
    layer.post_attention_norm = arena.vector(c.hidden_size);
    layer.gate_up = arena.matrix(2 * c.intermediate_size, c.hidden_size);
    layer.down = arena.matrix(c.hidden_size, c.intermediate_size);
    w.layers.push_back(layer);
  }
  w.final_norm = arena.vector(c.hidden_size);
  w.head = c.tied_head ? w.embedding : arena.matrix(c.vocab_size, c.hidden_size);
  return w;
}

Status load_layer(const Checkpoint& checkpoint, const Qwen2Config& c, int64_t index, const LayerWeights& w) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const auto matrix = [&](std::string_view name, int64_t rows, const PackedMatrix& target,
                          int64_t first_row) {
    return checkpoint.load_matrix(prefix + std::string(name), rows, target, first_row);
  };
  const auto vector = [&](std::string_view name, int64_t size, float* out) {
    return checkpoint.load_vector(prefix + std::string(name), size, out);
  };
  const int64_t q = c.q_size();
  const int64_t kv = c.kv_size();
  QWEN2_CHECK(vector("input_layernorm.weight", c.hidden_size, w.input_norm));
  QWEN2_CHECK(matrix("self_attn.q_proj.weight", q, w.qkv, 0));
  QWEN2_CHECK(matrix("self_attn.k_proj.weight", kv, w.qkv, q));
  QWEN2_CHECK(matrix("self_attn.v_proj.weight", kv, w.qkv, q + kv));
  QWEN2_CHECK(vector("self_attn.q_proj.bias", q, w.qkv_bias));
  QWEN2_CHECK(vector("self_attn.k_proj.bias", kv, w.qkv_bias + q));
  QWEN2_CHECK(vector("self_attn.v_proj.bias", kv, w.qkv_bias + q + kv));
  QWEN2_CHECK(matrix("self_attn.o_proj.weight", c.hidden_size, w.attention_output, 0));
  QWEN2_CHECK(vector("post_attention_layernorm.weight", c.hidden_size, w.post_attention_norm));
  QWEN2_CHECK(matrix("mlp.gate_proj.weight", c.intermediate_size, w.gate_up, 0));
  QWEN2_CHECK(matrix("mlp.up_proj.weight", c.intermediate_size, w.gate_up, c.intermediate_size));
  return matrix("mlp.down_proj.weight", c.hidden_size, w.down, 0);
}

}  // namespace

size_t Qwen2Weights::bytes_per_decode_step() const {
  size_t bytes = head.bytes();
  for (const LayerWeights& layer : layers) {
    bytes += layer.qkv.bytes() + layer.attention_output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
  }
  return bytes;
}

size_t weight_bytes(const Qwen2Config& config) {
  Arena counter(nullptr);
  lay_out(config, counter);
  return counter.used();
}

Result<Qwen2Weights> load_weights(const Checkpoint& checkpoint, const Qwen2Config& config) {
  if (!config.tied_head && !checkpoint.has("lm_head.weight")) {
    return fail(ErrorKind::kNotFound,
                "tensor 'lm_head.weight' is missing and 'tie_word_embeddings' is false");
  }
  QWEN2_TRY(auto storage, LargeBuffer::allocate(weight_bytes(config), "the weights"));
  Arena arena(storage.data());
  Qwen2Weights w = lay_out(config, arena);
  w.storage = std::move(storage);
  QWEN2_CHECK(checkpoint.load_matrix("model.embed_tokens.weight", config.vocab_size, w.embedding, 0));
  for (int64_t i = 0; i < config.layers; ++i) {
    QWEN2_CHECK(load_layer(checkpoint, config, i, w.layers[static_cast<size_t>(i)]));
  }
  QWEN2_CHECK(checkpoint.load_vector("model.norm.weight", config.hidden_size, w.final_norm));
  if (!config.tied_head) {
    QWEN2_CHECK(checkpoint.load_matrix("lm_head.weight", config.vocab_size, w.head, 0));
  }
  return w;
}

}  // namespace qwen2
