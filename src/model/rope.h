// Rotary position embedding: pair i of a head is rotated by position * frequency i.
// Source: RoFormer (https://arxiv.org/abs/2104.09864), YaRN (https://arxiv.org/abs/2309.00071).
#pragma once

#include <vector>

#include "model/qwen2_config.h"

namespace qwen2 {

struct Rotation {
  std::vector<double> frequencies;  // [head_dim / 2], radians a position
  double magnitude = 1;             // cosines and sines are multiplied by it
};

// With the configuration's scaling, which is the same for every length of a text.
Rotation rotation_of(const Qwen2Config& config);

}  // namespace qwen2
