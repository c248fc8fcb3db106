#include "backend/key_bias.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

// Biases up to this much cost a key less than one of its own elements does.
constexpr float kLargeBias = 2.0F;

}  // namespace

std::vector<cpu::KeyBias> take_large_key_bias(const Qwen2Config& config, float* key_bias) {
  const int64_t half = config.head_dim / 2;
  std::vector<cpu::KeyBias> taken(static_cast<size_t>(config.kv_heads));
  for (int64_t h = 0; h < config.kv_heads; ++h) {
    float* first = key_bias + h * config.head_dim;
    float* second = first + half;
    std::vector<int32_t> order(static_cast<size_t>(half));
    std::iota(order.begin(), order.end(), 0);
    const auto size = [&](int32_t i) { return std::hypot(first[i], second[i]); };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return size(a) > size(b); });
    cpu::KeyBias& own = taken[static_cast<size_t>(h)];
    for (const int32_t pair : order) {
      if (own.pairs == cpu::kMaxBiasPairs || !(size(pair) > kLargeBias)) break;
      own.index[own.pairs] = pair;
      own.first[own.pairs] = std::exchange(first[pair], 0.0F);
      own.second[own.pairs] = std::exchange(second[pair], 0.0F);
      ++own.pairs;
    }
  }
  return taken;
}

int64_t angle_count(const Qwen2Config& config, int64_t positions) {
  return round_up(positions, cpu::kPageTokens) * config.head_dim;
}

void fill_angles(const Qwen2Config& config, const Rotation& rotation, int64_t positions, float* angles) {
  constexpr int64_t kPage = cpu::kPageTokens;
  parallel_ranges(round_up(positions, kPage), [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      float* page = angles + position / kPage * kPage * config.head_dim + position % kPage;
      for (size_t i = 0; i < rotation.frequencies.size(); ++i) {
        const double angle = static_cast<double>(position) * rotation.frequencies[i];
        page[i * 2 * kPage] = static_cast<float>(std::cos(angle) * rotation.magnitude);
        page[i * 2 * kPage + kPage] = static_cast<float>(std::sin(angle) * rotation.magnitude);
      }
    }
  });
}

}  // namespace qwen2
