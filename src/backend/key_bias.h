// Large key biases, kept out of the KV cache.
//
// The first and last layers of Qwen2 models have key biases of several hundred on a few rotation pairs, where
// a token's own part of the key is about one. Rounded to 16 bits with such a bias, or to 8 bits with a scale
// that the bias sets, a key loses what its token contributes. Since rotation is linear, R(k + b) = R k + R b:
// the cache holds R k, and q . R b, which depends on positions only, is added to the scores in float.
#pragma once

#include <vector>

#include "kernels/cpu/kernels.h"
#include "model/qwen2_config.h"
#include "model/rope.h"

namespace qwen2 {

// Takes the pairs whose bias is large out of `key_bias` [kv_heads * head_dim], which keeps zeros there. One a
// KV head.
std::vector<cpu::KeyBias> take_large_key_bias(const Qwen2Config& config, float* key_bias);

// Floats of fill_angles()' table for positions below `positions`.
int64_t angle_count(const Qwen2Config& config, int64_t positions);

// The table that AttentionArgs::angles points to.
void fill_angles(const Qwen2Config& config, const Rotation& rotation, int64_t positions, float* angles);

}  // namespace qwen2
