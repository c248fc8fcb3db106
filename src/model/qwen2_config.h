// The configuration of a dense Qwen2 / Qwen2.5 model, from config.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/architecture.h"

namespace qwen2 {

using TokenId = int32_t;

// RoPE stretched over a longer context, see model/rope.h.
struct Yarn {
  double factor = 1;  // 1 or more
  int64_t original_context = 0;
  double beta_fast = 32;  // turns in the original context from which on a frequency is kept
  double beta_slow = 1;   // turns below which it is divided by the factor
  double attention_factor = 1;
};

struct Qwen2Config : ModelSizes {
  int64_t max_position_embeddings = 0;  // also where scaling or a window sets the limit
  float rms_norm_eps = 1e-6F;
  double rope_theta = 10000.0;
  std::optional<Yarn> yarn;
  std::vector<TokenId> eos_token_ids;

  [[nodiscard]] int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
  [[nodiscard]] int64_t group() const { return heads / kv_heads; }
};

// Checks every field that is used; what the program does not implement (another architecture, other RoPE scaling
// than YaRN, other activations) is an error that names the field. With sliding windows the context ends where the
// window does. The end-of-sequence ids are those of both texts.
Result<Qwen2Config> parse_qwen2_config(std::string_view config, std::string_view generation_config);

}  // namespace qwen2
