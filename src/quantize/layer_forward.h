// One layer's forward pass in float over all calibration tokens, a stage at a time, so that the weights of a
// stage can be replaced by their rounded values before the next one sees its inputs.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "kernels/cpu/kernels.h"
#include "model/qwen2_config.h"

namespace qwen2::quantize {

// One layer's weights in float, row-major, in LayerWeights' shapes.
struct FloatLayer {
  std::vector<float> input_norm;           // [hidden]
  LargeBuffer qkv;                         // [q + 2 kv, hidden]
  std::vector<float> qkv_bias;             // [q + 2 kv]
  LargeBuffer attention_output;            // [hidden, q]
  std::vector<float> post_attention_norm;  // [hidden]
  LargeBuffer gate_up;                     // [2 intermediate, hidden]
  LargeBuffer down;                        // [hidden, intermediate]

  static Result<FloatLayer> allocate(const Qwen2Config& config);
};

class LayerForward {
 public:
  // Takes the embeddings of `sequences`, whose tokens are in the vocabulary; empty sequences are left out.
  static Result<LayerForward> create(const Checkpoint& checkpoint, const Qwen2Config& config,
                                     const cpu::Kernels& kernels,
                                     std::span<const std::vector<TokenId>> sequences);
  // Bytes of what is kept for `tokens` tokens, the longest sequence of `longest`.
  static uint64_t state_bytes(const Qwen2Config& config, int64_t tokens, int64_t longest);

  // x [count][columns of the stage's matrix], every token once.
  using Visitor = std::function<Status(const float* x, int64_t count)>;

  // In the order of a layer:
  Status visit_attention_inputs(const FloatLayer& layer, const Visitor& visit);
  Status attend(const FloatLayer& layer);  // fills what the next two read; may be repeated
  Status visit_attended(const Visitor& visit);
  Status add_attention(const FloatLayer& layer);  // to the residual stream
  Status visit_mlp_inputs(const FloatLayer& layer, const Visitor& visit);
  Status visit_activations(const FloatLayer& layer, const Visitor& visit);
  Status add_mlp(const FloatLayer& layer);  // to the residual stream

  // The residual stream, [tokens][hidden].
  [[nodiscard]] std::span<const float> hidden() const {
    return {hidden_.as<float>(), static_cast<size_t>(tokens() * config_.hidden_size)};
  }
  [[nodiscard]] int64_t tokens() const { return starts_.back(); }

 private:
  LayerForward(const Qwen2Config& config, const cpu::Kernels& kernels)
      : config_(config), kernels_(&kernels) {}
  Status load_embeddings(const Checkpoint& checkpoint, std::span<const std::vector<TokenId>> sequences);
  void normalise(const std::vector<float>& weight, int64_t first, int64_t count);
  void attend_sequence(int64_t first, int64_t count, int64_t head, const float* qkv);
  void rotate(float* qkv, int64_t count, int64_t first_token);
  Status activate(const FloatLayer& layer, int64_t first, int64_t count);

  Qwen2Config config_;
  const cpu::Kernels* kernels_;
  std::vector<int64_t> starts_;     // of the sequences, and the number of tokens
  std::vector<int64_t> positions_;  // [tokens]
  int64_t chunk_ = 0;               // most tokens of one product
  std::vector<float> cosines_;      // [positions][head_dim / 2]
  std::vector<float> sines_;
  LargeBuffer hidden_;     // [tokens][hidden]
  LargeBuffer attended_;   // [tokens][q]
  LargeBuffer normed_;     // [chunk][hidden]
  LargeBuffer wide_;       // [chunk][q + 2 kv or 2 intermediate]
  LargeBuffer activated_;  // [chunk][intermediate]
};

}  // namespace qwen2::quantize
