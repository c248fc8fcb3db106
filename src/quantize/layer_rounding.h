// Rounds one layer by one of the methods, and moves the calibration's hidden states through what came out.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "model/qwen2_config.h"
#include "quantize/layer_forward.h"
#include "quantize/rounding.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {

enum class Method {
  kRtn,   // to the nearest code; needs no calibration
  kAwq,   // see awq.h
  kGptq,  // see gptq.h
};

struct QuantizeOptions {
  Method method = Method::kGptq;
  int bits = 4;            // 4 or 8; 4 for kAwq
  int64_t group = 128;     // 16, 32, 64 or 128
  bool act_order = false;  // kGptq
  double damping = 0.01;   // kGptq
};

// Matrices in the shapes of FloatLayer.
struct RoundedLayer {
  GroupedWeights qkv, attention_output, gate_up, down;
};

class LayerRounder {
 public:
  // Norms are stored as `stored`, which AWQ's scales allow for.
  static Result<LayerRounder> create(const Qwen2Config& config, const cpu::Kernels& kernels,
                                     const QuantizeOptions& options, DType stored);
  // Bytes of the Hessian and of what rounding needs beside it.
  static uint64_t workspace_bytes(const Qwen2Config& config, const QuantizeOptions& options);

  // The matrices of `layer` become their rounded values; AWQ also changes its norms and value biases. Each
  // stage sees the outputs of the rounded stages before it. `forward` may be null for kRtn.
  Result<RoundedLayer> round(FloatLayer& layer, LayerForward* forward);

 private:
  struct Matrix {
    float* w;
    int64_t rows, cols;
  };
  LayerRounder(const Qwen2Config& config, const cpu::Kernels& kernels, const QuantizeOptions& options,
               DType stored)
      : config_(config), kernels_(&kernels), options_(options), stored_(stored) {}
  Result<RoundedLayer> round_rtn(FloatLayer& layer);
  Result<RoundedLayer> round_gptq_layer(FloatLayer& layer, LayerForward& forward);
  Result<RoundedLayer> round_awq_layer(FloatLayer& layer, LayerForward& forward);

  // Starts the sums for inputs of `cols` columns; the visitor adds to them.
  LayerForward::Visitor sums(int64_t cols);
  Result<GroupedWeights> gptq(const Matrix& m);
  // Scales for `m` from the sums.
  Result<std::vector<float>> awq_scales(const Matrix& m);
  // The same, applied to `m` and to the norm before it.
  Result<std::vector<float>> scale_after_norm(const Matrix& m, std::vector<float>& norm);
  // The mean squares of the inputs once they are divided by `scales` (empty: 1), for the clip search.
  [[nodiscard]] std::vector<float> importance(int64_t cols, const std::vector<float>& scales) const;
  static GroupedWeights replaced(const Matrix& m, GroupedWeights rounded);
  [[nodiscard]] Matrix qkv(FloatLayer& layer) const;
  [[nodiscard]] Matrix attention_output(FloatLayer& layer) const;
  [[nodiscard]] Matrix gate_up(FloatLayer& layer) const;
  [[nodiscard]] Matrix down(FloatLayer& layer) const;

  Qwen2Config config_;
  const cpu::Kernels* kernels_;
  QuantizeOptions options_;
  DType stored_;
  LargeBuffer hessian_;             // [cols][cols] of the stage
  std::vector<double> magnitudes_;  // [cols], sums of |x|; kAwq
  int64_t tokens_ = 0;              // that were summed
};

}  // namespace qwen2::quantize
