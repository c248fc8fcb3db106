// The CPU kernels: plain-data arguments, no engine types, no threads. Each kernel works on a range that its
// caller chooses, so that the caller decides how work is spread over threads.
//
// Every instruction set has one table of the same kernels, built from the same source (kernels.inl).
// reference.h holds a slow, obvious version of each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "tensor/quantized_matrix.h"

namespace qwen2::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

std::string_view isa_name(Isa isa);
std::optional<Isa> parse_isa(std::string_view name);
// The best instruction set that this processor (and its operating system) runs.
Isa detect_isa();

// Rows of one call; also the size of the kernel's accumulator on the stack.
constexpr int kMaxGemvBatch = 64;

// y[b][n] (+)= bias[n] + sum_k W[n][k] x[b][k], accumulated in float in the order of k, whatever the batch:
// a row's result does not depend on its neighbours.
struct GemvArgs {
  const uint16_t* weights;  // PackedMatrix::data, bf16
  int64_t rows;
  int64_t cols;  // even
  const float* x;
  int64_t x_stride;
  int batch;  // 1..kMaxGemvBatch
  float* y;
  int64_t y_stride;  // at least `rows` rounded up to 64: the padding is written too
  bool accumulate;   // add to y instead of overwriting it
};

// Columns of a quantised product that are summed as integers: a group's, but at most this many. Groups, and
// so chunks, have at least eight columns.
constexpr int64_t kMaxChunk = 128;
constexpr int64_t kMinChunk = 8;
inline int64_t chunk_columns(const QuantizedMatrix& w) {
  return w.format.group < kMaxChunk ? w.format.group : kMaxChunk;
}
inline int64_t chunk_count(const QuantizedMatrix& w) {
  return (w.cols + chunk_columns(w) - 1) / chunk_columns(w);
}

// The same for a quantised matrix. Activations are 16-bit integers: x[k] stands for x[k] * x_scales[k /
// chunk_columns]. A chunk's products are summed exactly, in 32 bits, chunks in float in their order.
struct QuantizedGemvArgs {
  const QuantizedMatrix* w;
  const int16_t* x;       // [w.cols / 2][batch][2]: a pair of columns of every row, then the next pair
  const float* x_scales;  // [batch][chunks]
  const int32_t* x_sums;  // [batch][chunks]: the sum of each chunk's x
  int64_t chunk_columns;  // min(group, kMaxChunk)
  int64_t chunks;         // cols / chunk_columns, rounded up
  int batch;              // 1..kMaxGemvBatch
  float* y;
  int64_t y_stride;
  bool accumulate;
};

// y[i][n] (+)= sum_k W[n][k] x[i][k] with activations of 8 bits: x[k] stands for x[k] * scale. The same
// results as gemv_quantized has for such activations, whatever m.
struct Int8GemmArgs {
  const QuantizedMatrix* w;
  const int8_t* x;        // [m][w.cols], as order_for_int8() leaves them
  const float* x_scales;  // [m][chunks]
  const int32_t* x_sums;  // [m][chunks]
  int64_t chunk_columns;  // min(group, kMaxChunk)
  int64_t chunks;
  int64_t m;
  float* y;
  int64_t y_stride;
  bool accumulate;
};

// Tokens of one KV page. A page of one layer and KV head holds K transposed, [head_dim][32], then V
// [32][head_dim]: both fp16, or both 8-bit codes, followed by the fp16 scales of K [32] and of V [32].
constexpr int kPageTokens = 32;

// Bytes of one page of one layer and KV head.
constexpr int64_t kv_page_bytes(int kv_bits, int64_t head_dim) {
  const int64_t values = 2 * kPageTokens * head_dim;
  return kv_bits == 8 ? values + 2 * kPageTokens * static_cast<int64_t>(sizeof(uint16_t)) : values * 2;
}

// A part of the key bias that is not in the cached keys: rotation pairs whose bias is so large that a key
// which holds it would lose what its token contributes. It is added to the scores instead, in float.
constexpr int kMaxBiasPairs = 32;
struct KeyBias {
  int pairs = 0;
  int32_t index[kMaxBiasPairs] = {};  // pair i is dimensions i and i + head_dim / 2
  float first[kMaxBiasPairs] = {};
  float second[kMaxBiasPairs] = {};
};
// Rows (tokens x query heads of one KV head) of one attention call.
constexpr int kMaxAttentionRows = 48;
constexpr int kMaxHeadDim = 256;

// Softmax(q K^T) V over keys [key_begin, key_end) for `tokens` consecutive tokens and the `group` query heads
// of one KV head. Token t sees keys up to first_position + t. q is already scaled. Scores stay in float.
struct AttentionArgs {
  const float* q;  // token t, head g: q + t * q_stride + g * head_dim
  int64_t q_stride;
  int tokens;  // tokens * group <= kMaxAttentionRows
  int group;
  int head_dim;  // multiple of 16, at most kMaxHeadDim
  int64_t first_position;
  int64_t key_begin;  // multiple of kPageTokens
  int64_t key_end;
  const std::byte* cache;  // this layer and KV head in page 0
  int64_t page_stride;     // bytes from one page to the next
  const uint32_t* pages;   // the sequence's page table
  // Not normalised, row r = t * group + g: partial sums, running maximum, running denominator.
  float* sums;  // [rows][head_dim]
  float* maxima;
  float* denominators;
  int kv_bits = 16;                   // or 8
  const KeyBias* key_bias = nullptr;  // of this layer and KV head; null: the keys hold all of it
  const float* angles = nullptr;      // for key_bias: cosines and sines [position / 32][head_dim / 2][2][32]
};

// Splits q, k and v of one token, adds their biases, rotates q and k (rotate-half convention), scales q, and
// writes k and v to the cache as fp16 (saturating) or as 8-bit codes with a scale for each token.
struct RopeArgs {
  float* qkv;            // [q_heads + 2 * kv_heads][head_dim]; q is left rotated and scaled
  const float* bias;     // the same shape, without what KeyBias holds
  const float* cosines;  // [head_dim / 2] of this token's position
  const float* sines;
  int q_heads;
  int kv_heads;
  int head_dim;
  float q_scale;
  std::byte* page;      // this layer, KV head 0, the token's page
  int64_t head_stride;  // bytes from one KV head to the next
  int slot;             // the token's place in the page
  int kv_bits = 16;     // or 8
};

struct Kernels {
  Isa isa;
  void (*gemv_bf16)(const GemvArgs& args, int64_t block_begin, int64_t block_end);
  void (*gemv_quantized)(const QuantizedGemvArgs& args, int64_t block_begin, int64_t block_end);
  // Rounds x to integers of magnitude at most `levels` (127 or 32767), a scale for each `chunk` columns.
  void (*quantize_activations)(const float* x, int64_t cols, int64_t chunk, int levels, int16_t* out,
                               float* scales, int32_t* sums);
  float (*sum_magnitudes)(const float* x, int64_t size);
  // These two are null where the instruction set has no product of bytes.
  void (*gemm_int8)(const Int8GemmArgs& args, int64_t block_begin, int64_t block_end);
  // Integers of quantize_activations() (127 levels) as bytes, in the order in which `bits`-bit codes unpack.
  void (*order_for_int8)(const int16_t* x, int64_t cols, int bits, int8_t* out);
  // One block of 64 rows as a block of PackedMatrix, rounded to bf16.
  void (*dequantize_block)(const QuantizedMatrix& w, int64_t block, uint16_t* out);
  // One column (as it is stored) of a block, in float [64].
  void (*dequantize_column)(const QuantizedMatrix& w, int64_t block, int64_t column, float* out);
  // y[i] += x[i] * factor
  void (*add_scaled)(const float* x, float factor, int64_t size, float* y);
  // Codes and scale of one group of `size` weights: symmetric, round to nearest, with the scale that leaves
  // the least squared error among several clips. Returns the fp16 scale; codes are -8..7 or -127..127. `size`
  // is a multiple of 16.
  uint16_t (*quantize_group)(const float* weights, int64_t size, int bits, int8_t* codes);
  void (*attention)(const AttentionArgs& args);
  // out[head_dim] = the merge of `parts` partial results whose rows lie `sums_stride` and `scalar_stride`
  // apart.
  void (*merge_attention)(const float* sums, int64_t sums_stride, const float* maxima,
                          const float* denominators, int64_t scalar_stride, int parts, int head_dim,
                          float* out);
  void (*rope)(const RopeArgs& args);
  // out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t size, float* out);
  // out[i] = gate[i] * sigmoid(gate[i]) * up[i]
  void (*swiglu)(const float* gate, const float* up, int64_t size, float* out);
  void (*to_bf16)(const float* x, int64_t size, uint16_t* out);
  // x as the sum of two bf16 numbers, 16 bits of mantissa: high = bf16(x), low = bf16(x - high).
  void (*split_bf16)(const float* x, int64_t size, uint16_t* high, uint16_t* low);
  // Row-major float [cols][ld] from one packed block: out[k * ld + n], n < 64.
  void (*widen_block)(const uint16_t* block, int64_t cols, float* out, int64_t ld);
  // Reads 64-byte lines and returns a value that depends on all of them: the plain read that decoding is held
  // against.
  uint64_t (*read_lines)(const std::byte* data, int64_t lines);
};

// `isa` must not exceed detect_isa().
const Kernels& kernels_for(Isa isa);

}  // namespace qwen2::cpu
