// The configuration of a dense Qwen2 / Qwen2.5 model, from config.json.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/architecture.h"

namespace qwen2 {

using TokenId = int32_t;

struct Qwen2Config : ModelSizes {
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 1e-6F;
  double rope_theta = 10000.0;
  std::vector<TokenId> eos_token_ids;

  [[nodiscard]] int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
  [[nodiscard]] int64_t group() const { return heads / kv_heads; }
};

// Checks every field that is used; what the program does not implement (another architecture, RoPE scaling,
// sliding windows, other activations) is an error that names the field. The end-of-sequence ids come from
// `generation_config` where it has them.
Result<Qwen2Config> parse_qwen2_config(std::string_view config, std::string_view generation_config);

}  // namespace qwen2
