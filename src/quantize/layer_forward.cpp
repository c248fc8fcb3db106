#include "quantize/layer_forward.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <map>

#include "base/parallel.h"
#include "model/rope.h"
#include "quantize/products.h"

namespace qwen2::quantize {
namespace {

constexpr int64_t kChunk = 512;  // tokens of one product, unless a sequence is longer

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstBlock = Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>;
using Block = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

Result<LargeBuffer> floats(int64_t count, std::string_view what) {
  return LargeBuffer::allocate(static_cast<size_t>(count) * sizeof(float), what);
}

int64_t wide_columns(const Qwen2Config& c) {
  return std::max(c.qkv_size(), 2 * c.intermediate_size);
}

// Softmax of row t over its first t + 1 elements; the rest becomes 0.
void causal_softmax(Matrix& scores) {
  for (Eigen::Index t = 0; t < scores.rows(); ++t) {
    auto seen = scores.row(t).head(t + 1);
    const float largest = seen.maxCoeff();
    seen = (seen.array() - largest).exp();
    seen /= seen.sum();
    scores.row(t).tail(scores.cols() - t - 1).setZero();
  }
}

}  // namespace

Result<FloatLayer> FloatLayer::allocate(const Qwen2Config& c) {
  FloatLayer layer;
  layer.input_norm.resize(static_cast<size_t>(c.hidden_size));
  layer.post_attention_norm.resize(static_cast<size_t>(c.hidden_size));
  layer.qkv_bias.resize(static_cast<size_t>(c.qkv_size()));
  QWEN2_TRY(layer.qkv, floats(c.qkv_size() * c.hidden_size, "a layer's weights in float"));
  QWEN2_TRY(layer.attention_output, floats(c.hidden_size * c.q_size(), "a layer's weights in float"));
  QWEN2_TRY(layer.gate_up, floats(2 * c.intermediate_size * c.hidden_size, "a layer's weights in float"));
  QWEN2_TRY(layer.down, floats(c.hidden_size * c.intermediate_size, "a layer's weights in float"));
  return layer;
}

uint64_t LayerForward::state_bytes(const Qwen2Config& c, int64_t tokens, int64_t longest) {
  const int64_t chunk = std::max(kChunk, longest);
  const int64_t rows = tokens * (c.hidden_size + c.q_size());
  return static_cast<uint64_t>(rows + chunk * (c.hidden_size + wide_columns(c) + c.intermediate_size)) *
         sizeof(float);
}

Result<LayerForward> LayerForward::create(const Checkpoint& checkpoint, const Qwen2Config& c,
                                          const cpu::Kernels& kernels,
                                          std::span<const std::vector<TokenId>> sequences) {
  LayerForward forward(c, kernels);
  int64_t longest = 0;
  forward.starts_.push_back(0);
  for (const auto& sequence : sequences) {
    const auto size = static_cast<int64_t>(sequence.size());
    if (size == 0) continue;
    longest = std::max(longest, size);
    for (int64_t i = 0; i < size; ++i) forward.positions_.push_back(i);
    forward.starts_.push_back(forward.starts_.back() + size);
  }
  if (longest == 0) return fail(ErrorKind::kInvalidArgument, "the calibration text has no tokens");
  forward.chunk_ = std::max(kChunk, longest);
  const int64_t half = c.head_dim / 2;
  const Rotation rope = rotation_of(c);
  for (int64_t i = 0; i < longest * half; ++i) {
    const int64_t position = i / half;
    const double angle = static_cast<double>(position) * rope.frequencies[static_cast<size_t>(i % half)];
    forward.cosines_.push_back(static_cast<float>(std::cos(angle) * rope.magnitude));
    forward.sines_.push_back(static_cast<float>(std::sin(angle) * rope.magnitude));
  }
  const int64_t tokens = forward.tokens();
  QWEN2_TRY(forward.hidden_, floats(tokens * c.hidden_size, "the calibration's hidden states"));
  QWEN2_TRY(forward.attended_, floats(tokens * c.q_size(), "the calibration's attention outputs"));
  QWEN2_TRY(forward.normed_, floats(forward.chunk_ * c.hidden_size, "calibration workspace"));
  QWEN2_TRY(forward.wide_, floats(forward.chunk_ * wide_columns(c), "calibration workspace"));
  QWEN2_TRY(forward.activated_, floats(forward.chunk_ * c.intermediate_size, "calibration workspace"));
  QWEN2_CHECK(forward.load_embeddings(checkpoint, sequences));
  return forward;
}

Status LayerForward::load_embeddings(const Checkpoint& checkpoint,
                                     std::span<const std::vector<TokenId>> sequences) {
  std::map<int64_t, std::vector<int64_t>> uses;  // of a token, as rows of hidden_
  int64_t next = 0;
  for (const auto& sequence : sequences) {
    for (const TokenId token : sequence) {
      if (token < 0 || token >= config_.vocab_size) {
        return fail(ErrorKind::kInvalidArgument,
                    "the calibration text has token {}, the model's vocabulary {} tokens", token,
                    config_.vocab_size);
      }
      uses[token].push_back(next++);
    }
  }
  return read_expanded(checkpoint, kEmbeddingName, config_.vocab_size, config_.hidden_size,
                       [&](int64_t row, const float* values) {
                         const auto found = uses.find(row);
                         if (found == uses.end()) return;
                         for (const int64_t at : found->second) {
                           std::copy_n(values, config_.hidden_size,
                                       hidden_.as<float>() + at * config_.hidden_size);
                         }
                       });
}

void LayerForward::normalise(const std::vector<float>& weight, int64_t first, int64_t count) {
  parallel_items(count, [&](int64_t i) {
    kernels_->rms_norm(hidden_.as<float>() + (first + i) * config_.hidden_size, weight.data(),
                       config_.rms_norm_eps, config_.hidden_size,
                       normed_.as<float>() + i * config_.hidden_size);
  });
}

Status LayerForward::visit_attention_inputs(const FloatLayer& layer, const Visitor& visit) {
  for (int64_t first = 0; first < tokens(); first += chunk_) {
    const int64_t count = std::min(chunk_, tokens() - first);
    normalise(layer.input_norm, first, count);
    QWEN2_CHECK(visit(normed_.as<float>(), count));
  }
  return {};
}

// Rotate-half RoPE of every query and key; the queries are scaled too.
void LayerForward::rotate(float* qkv, int64_t count, int64_t first_token) {
  const int64_t half = config_.head_dim / 2;
  const float q_scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim));
  parallel_items(count, [&](int64_t i) {
    const int64_t position = positions_[static_cast<size_t>(first_token + i)];
    const float* cosines = cosines_.data() + position * half;
    const float* sines = sines_.data() + position * half;
    for (int64_t h = 0; h < config_.heads + config_.kv_heads; ++h) {
      float* head = qkv + i * config_.qkv_size() + h * config_.head_dim;
      const float scale = h < config_.heads ? q_scale : 1.0F;
      for (int64_t d = 0; d < half; ++d) {
        const float a = head[d];
        const float b = head[half + d];
        head[d] = (a * cosines[d] - b * sines[d]) * scale;
        head[half + d] = (b * cosines[d] + a * sines[d]) * scale;
      }
    }
  });
}

// One query head of the sequence at [first, first + count), whose rotated rows are `qkv`.
void LayerForward::attend_sequence(int64_t first, int64_t count, int64_t head, const float* qkv) {
  const int64_t dim = config_.head_dim;
  const Eigen::OuterStride<> stride(config_.qkv_size());
  const int64_t kv_head = head / config_.group();
  const ConstBlock q(qkv + head * dim, count, dim, stride);
  const ConstBlock k(qkv + config_.q_size() + kv_head * dim, count, dim, stride);
  const ConstBlock v(qkv + config_.q_size() + config_.kv_size() + kv_head * dim, count, dim, stride);
  Matrix scores = q * k.transpose();
  causal_softmax(scores);
  Block out(attended_.as<float>() + first * config_.q_size() + head * dim, count, dim,
            Eigen::OuterStride<>(config_.q_size()));
  out.noalias() = scores * v;
}

Status LayerForward::attend(const FloatLayer& layer) {
  const int64_t width = config_.qkv_size();
  auto* qkv = wide_.as<float>();
  const auto sequences = static_cast<int64_t>(starts_.size()) - 1;
  for (int64_t s = 0; s < sequences;) {
    const int64_t first = starts_[static_cast<size_t>(s)];
    int64_t end = s + 1;  // whole sequences, as many as fit
    while (end < sequences && starts_[static_cast<size_t>(end + 1)] - first <= chunk_) ++end;
    const int64_t count = starts_[static_cast<size_t>(end)] - first;
    normalise(layer.input_norm, first, count);
    for (int64_t i = 0; i < count; ++i) std::ranges::copy(layer.qkv_bias, qkv + i * width);
    QWEN2_CHECK(multiply_transposed(normed_.as<float>(), count, layer.qkv.as<float>(), width,
                                    config_.hidden_size, 1.0F, qkv, width));
    rotate(qkv, count, first);
    parallel_items((end - s) * config_.heads, [&](int64_t item) {
      const auto own = static_cast<size_t>(s + item / config_.heads);
      attend_sequence(starts_[own], starts_[own + 1] - starts_[own], item % config_.heads,
                      qkv + (starts_[own] - first) * width);
    });
    s = end;
  }
  return {};
}

Status LayerForward::visit_attended(const Visitor& visit) {
  for (int64_t first = 0; first < tokens(); first += chunk_) {
    QWEN2_CHECK(visit(attended_.as<float>() + first * config_.q_size(), std::min(chunk_, tokens() - first)));
  }
  return {};
}

Status LayerForward::add_attention(const FloatLayer& layer) {
  return multiply_transposed(attended_.as<float>(), tokens(), layer.attention_output.as<float>(),
                             config_.hidden_size, config_.q_size(), 1.0F, hidden_.as<float>(),
                             config_.hidden_size);
}

Status LayerForward::visit_mlp_inputs(const FloatLayer& layer, const Visitor& visit) {
  for (int64_t first = 0; first < tokens(); first += chunk_) {
    const int64_t count = std::min(chunk_, tokens() - first);
    normalise(layer.post_attention_norm, first, count);
    QWEN2_CHECK(visit(normed_.as<float>(), count));
  }
  return {};
}

Status LayerForward::activate(const FloatLayer& layer, int64_t first, int64_t count) {
  const int64_t width = config_.intermediate_size;
  auto* gate_up = wide_.as<float>();
  normalise(layer.post_attention_norm, first, count);
  QWEN2_CHECK(multiply_transposed(normed_.as<float>(), count, layer.gate_up.as<float>(), 2 * width,
                                  config_.hidden_size, 0.0F, gate_up, 2 * width));
  parallel_items(count, [&](int64_t i) {
    const float* gate = gate_up + i * 2 * width;
    kernels_->swiglu(gate, gate + width, width, activated_.as<float>() + i * width);
  });
  return {};
}

Status LayerForward::visit_activations(const FloatLayer& layer, const Visitor& visit) {
  for (int64_t first = 0; first < tokens(); first += chunk_) {
    const int64_t count = std::min(chunk_, tokens() - first);
    QWEN2_CHECK(activate(layer, first, count));
    QWEN2_CHECK(visit(activated_.as<float>(), count));
  }
  return {};
}

Status LayerForward::add_mlp(const FloatLayer& layer) {
  for (int64_t first = 0; first < tokens(); first += chunk_) {
    const int64_t count = std::min(chunk_, tokens() - first);
    QWEN2_CHECK(activate(layer, first, count));
    QWEN2_CHECK(multiply_transposed(activated_.as<float>(), count, layer.down.as<float>(),
                                    config_.hidden_size, config_.intermediate_size, 1.0F,
                                    hidden_.as<float>() + first * config_.hidden_size, config_.hidden_size));
  }
  return {};
}

}  // namespace qwen2::quantize
