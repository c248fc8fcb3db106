// The model.safetensors and config.json of a quantised model, in the layout that Transformers and vLLM read.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"
#include "checkpoint/architecture.h"
#include "checkpoint/checkpoint.h"
#include "model/qwen2_config.h"
#include "quantize/layer_rounding.h"
#include "quantize/tensor_file.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {

// How what is not quantised is stored: as config.json's "torch_dtype" (or "dtype") says, bf16 without one.
Result<DType> stored_dtype(std::string_view config_json);

// config.json with "quantization_config".
Result<std::string> quantized_config_json(std::string_view config_json, const QuantizeOptions& options);

class ModelWriter {
 public:
  static Result<std::unique_ptr<ModelWriter>> create(const std::filesystem::path& path,
                                                     const Qwen2Config& config,
                                                     const QuantizeOptions& options, DType stored);
  // The tensors that are not in a layer.
  Status write_unquantized(const Checkpoint& checkpoint);
  Status write_layer(int64_t index, const FloatLayer& layer, const RoundedLayer& rounded);
  Status finish() { return file_->finish(); }
  [[nodiscard]] uint64_t file_bytes() const { return file_->file_bytes(); }

 private:
  ModelWriter(const Qwen2Config& config, const QuantizeOptions& options, DType stored)
      : config_(config), options_(options), stored_(stored) {}
  Status write_floats(std::string_view name, int64_t offset, std::span<const float> values);
  Status write_module(const std::string& name, const GroupedWeights& w, int64_t first, int64_t count);

  Qwen2Config config_;
  QuantizeOptions options_;
  DType stored_;
  std::unique_ptr<TensorFile> file_;
};

// Calls `visit` with each row of a matrix in float, on several threads; returns the first error.
Status visit_rows(const Checkpoint& checkpoint, const ModelTensor& matrix,
                  const std::function<Status(int64_t row, const float* values)>& visit);

// An error that says so where a matrix is quantised already.
Status check_plain(const Checkpoint& checkpoint, const ModelTensor& matrix);

}  // namespace qwen2::quantize
