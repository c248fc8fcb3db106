#include "quantize/layer_rounding.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "quantize/awq.h"
#include "quantize/gptq.h"
#include "quantize/products.h"

namespace qwen2::quantize {
namespace {

int64_t widest(const Qwen2Config& c) {
  return std::max({c.hidden_size, c.q_size(), c.intermediate_size});
}

}  // namespace

uint64_t LayerRounder::workspace_bytes(const Qwen2Config& c, const QuantizeOptions& options) {
  if (options.method == Method::kRtn) return 0;
  const auto cols = static_cast<uint64_t>(widest(c));
  // Beside the Hessian: 256 of its columns, or two panels of 512 rows.
  return cols * (cols + (options.method == Method::kAwq ? 1024 : 256)) * sizeof(float);
}

Result<LayerRounder> LayerRounder::create(const Qwen2Config& config, const cpu::Kernels& kernels,
                                          const QuantizeOptions& options, DType stored) {
  LayerRounder rounder(config, kernels, options, stored);
  if (options.method != Method::kRtn) {
    const auto cols = static_cast<size_t>(widest(config));
    QWEN2_TRY(rounder.hessian_, LargeBuffer::allocate(cols * cols * sizeof(float), "the Hessian"));
  }
  return rounder;
}

LayerRounder::Matrix LayerRounder::qkv(FloatLayer& layer) const {
  return {layer.qkv.as<float>(), config_.qkv_size(), config_.hidden_size};
}
LayerRounder::Matrix LayerRounder::attention_output(FloatLayer& layer) const {
  return {layer.attention_output.as<float>(), config_.hidden_size, config_.q_size()};
}
LayerRounder::Matrix LayerRounder::gate_up(FloatLayer& layer) const {
  return {layer.gate_up.as<float>(), 2 * config_.intermediate_size, config_.hidden_size};
}
LayerRounder::Matrix LayerRounder::down(FloatLayer& layer) const {
  return {layer.down.as<float>(), config_.hidden_size, config_.intermediate_size};
}

GroupedWeights LayerRounder::replaced(const Matrix& m, GroupedWeights rounded) {
  parallel_items(m.rows, [&](int64_t row) { rounded.expand_row(row, m.w + row * m.cols); });
  return rounded;
}

LayerForward::Visitor LayerRounder::sums(int64_t cols) {
  auto* h = hessian_.as<float>();
  std::fill_n(h, cols * cols, 0.0F);
  magnitudes_.assign(static_cast<size_t>(cols), 0.0);
  tokens_ = 0;
  return [this, h, cols](const float* x, int64_t count) -> Status {
    tokens_ += count;
    if (options_.method == Method::kAwq) {
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t k = 0; k < cols; ++k) magnitudes_[static_cast<size_t>(k)] += std::abs(x[i * cols + k]);
      }
    }
    return add_gram(2.0F, x, count, cols, h);
  };
}

Result<RoundedLayer> LayerRounder::round(FloatLayer& layer, LayerForward* forward) {
  if (options_.method == Method::kRtn) return round_rtn(layer);
  if (forward == nullptr) return fail(ErrorKind::kInternal, "GPTQ and AWQ need calibration tokens");
  return options_.method == Method::kGptq ? round_gptq_layer(layer, *forward)
                                          : round_awq_layer(layer, *forward);
}

Result<RoundedLayer> LayerRounder::round_rtn(FloatLayer& layer) {
  const auto rtn = [&](const Matrix& m) {
    return replaced(m, round_symmetric(*kernels_, m.w, m.rows, m.cols, options_.bits, options_.group));
  };
  return RoundedLayer{rtn(qkv(layer)), rtn(attention_output(layer)), rtn(gate_up(layer)), rtn(down(layer))};
}

Result<GroupedWeights> LayerRounder::gptq(const Matrix& m) {
  QWEN2_TRY(GroupedWeights rounded,
            round_gptq(*kernels_, m.w, m.rows, m.cols, hessian_.as<float>(),
                       {options_.bits, options_.group, options_.damping, options_.act_order}));
  return replaced(m, std::move(rounded));
}

Result<RoundedLayer> LayerRounder::round_gptq_layer(FloatLayer& layer, LayerForward& forward) {
  QWEN2_CHECK(forward.visit_attention_inputs(layer, sums(config_.hidden_size)));
  QWEN2_TRY(GroupedWeights qkv_codes, gptq(qkv(layer)));
  QWEN2_CHECK(forward.attend(layer));
  QWEN2_CHECK(forward.visit_attended(sums(config_.q_size())));
  QWEN2_TRY(GroupedWeights output_codes, gptq(attention_output(layer)));
  QWEN2_CHECK(forward.add_attention(layer));
  QWEN2_CHECK(forward.visit_mlp_inputs(layer, sums(config_.hidden_size)));
  QWEN2_TRY(GroupedWeights gate_up_codes, gptq(gate_up(layer)));
  QWEN2_CHECK(forward.visit_activations(layer, sums(config_.intermediate_size)));
  QWEN2_TRY(GroupedWeights down_codes, gptq(down(layer)));
  QWEN2_CHECK(forward.add_mlp(layer));
  return RoundedLayer{std::move(qkv_codes), std::move(output_codes), std::move(gate_up_codes),
                      std::move(down_codes)};
}

Result<std::vector<float>> LayerRounder::awq_scales(const Matrix& m) {
  std::vector<float> means(magnitudes_.size());
  for (size_t k = 0; k < means.size(); ++k)
    means[k] = static_cast<float>(magnitudes_[k] / static_cast<double>(tokens_));
  QWEN2_TRY(AwqSearch found, search_awq_scales(m.w, m.rows, m.cols, hessian_.as<float>(), means,
                                               options_.bits, options_.group));
  return std::move(found.scales);
}

Result<std::vector<float>> LayerRounder::scale_after_norm(const Matrix& m, std::vector<float>& norm) {
  QWEN2_TRY(std::vector<float> scales, awq_scales(m));
  fold_into_norm(norm, scales, stored_);
  scale_columns(m.w, m.rows, m.cols, scales);
  return scales;
}

std::vector<float> LayerRounder::importance(int64_t cols, const std::vector<float>& scales) const {
  const auto* h = hessian_.as<float>();
  std::vector<float> squares(static_cast<size_t>(cols));
  for (int64_t k = 0; k < cols; ++k) {
    const float scale = scales.empty() ? 1.0F : scales[static_cast<size_t>(k)];
    squares[static_cast<size_t>(k)] = h[k * (cols + 1)] / static_cast<float>(2 * tokens_) / (scale * scale);
  }
  return squares;
}

Result<RoundedLayer> LayerRounder::round_awq_layer(FloatLayer& layer, LayerForward& forward) {
  const auto round = [&](const Matrix& m, const std::vector<float>& squares, int64_t unclipped_rows) {
    return replaced(m, round_asymmetric(m.w, m.rows, m.cols, options_.bits, options_.group, squares.data(),
                                        unclipped_rows));
  };
  QWEN2_CHECK(forward.visit_attention_inputs(layer, sums(config_.hidden_size)));
  QWEN2_TRY(std::vector<float> scales, scale_after_norm(qkv(layer), layer.input_norm));
  const auto qkv_squares = importance(config_.hidden_size, scales);
  QWEN2_CHECK(forward.attend(layer));
  QWEN2_CHECK(forward.visit_attended(sums(config_.q_size())));
  scales.clear();
  if (config_.heads == config_.kv_heads) {  // otherwise a value row feeds several columns
    const Matrix m = attention_output(layer);
    QWEN2_TRY(scales, awq_scales(m));
    const int64_t first = config_.q_size() + config_.kv_size();
    divide_rows(layer.qkv.as<float>() + first * config_.hidden_size, config_.hidden_size, scales);
    divide_rows(layer.qkv_bias.data() + first, 1, scales);
    scale_columns(m.w, m.rows, m.cols, scales);
  }
  // Clipped queries and keys cost more in the softmax than they save, as AWQ's authors found.
  GroupedWeights qkv_codes = round(qkv(layer), qkv_squares, config_.q_size() + config_.kv_size());
  GroupedWeights output_codes = round(attention_output(layer), importance(config_.q_size(), scales), 0);
  QWEN2_CHECK(forward.attend(layer));
  QWEN2_CHECK(forward.add_attention(layer));

  QWEN2_CHECK(forward.visit_mlp_inputs(layer, sums(config_.hidden_size)));
  QWEN2_TRY(scales, scale_after_norm(gate_up(layer), layer.post_attention_norm));
  const auto gate_up_squares = importance(config_.hidden_size, scales);
  QWEN2_CHECK(forward.visit_activations(layer, sums(config_.intermediate_size)));
  QWEN2_TRY(scales, awq_scales(down(layer)));
  divide_rows(layer.gate_up.as<float>() + config_.intermediate_size * config_.hidden_size,
              config_.hidden_size, scales);
  scale_columns(layer.down.as<float>(), config_.hidden_size, config_.intermediate_size, scales);
  GroupedWeights gate_up_codes = round(gate_up(layer), gate_up_squares, 0);
  GroupedWeights down_codes = round(down(layer), importance(config_.intermediate_size, scales), 0);
  QWEN2_CHECK(forward.add_mlp(layer));
  return RoundedLayer{std::move(qkv_codes), std::move(output_codes), std::move(gate_up_codes),
                      std::move(down_codes)};
}

}  // namespace qwen2::quantize
