#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qwen2 {
namespace {

// The pair, as a real number, that turns `turns` times in the original context.
double pair_of_turns(const Qwen2Config& config, double turns) {
  const auto size = static_cast<double>(config.head_dim);
  const auto context = static_cast<double>(config.yarn->original_context);
  return size * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta));
}

// YaRN: pairs that turn often keep their frequency, those that turn less than once are slowed down by the factor.
void scale_frequencies(const Qwen2Config& config, std::vector<double>& frequencies) {
  const double low = std::max(std::floor(pair_of_turns(config, config.yarn->beta_fast)), 0.0);
  const double high = std::min(std::ceil(pair_of_turns(config, config.yarn->beta_slow)),
                               static_cast<double>(config.head_dim - 1));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = (static_cast<double>(i) - low) / std::max(high - low, 0.001);
    const double keep = 1 - std::clamp(ramp, 0.0, 1.0);
    frequencies[i] *= keep + (1 - keep) / config.yarn->factor;
  }
}

}  // namespace

Rotation rotation_of(const Qwen2Config& config) {
  Rotation rotation;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    rotation.frequencies.push_back(std::pow(config.rope_theta, exponent));
  }
  if (!config.yarn) return rotation;
  scale_frequencies(config, rotation.frequencies);
  rotation.magnitude = config.yarn->attention_factor;
  return rotation;
}

}  // namespace qwen2
