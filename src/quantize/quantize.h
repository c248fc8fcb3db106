// Quantises a 16-bit model layer by layer and writes a Hugging Face folder: GPTQ's layout for GPTQ and for
// rounding to nearest, AWQ's for AWQ.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/qwen2_config.h"
#include "quantize/layer_rounding.h"

namespace qwen2::quantize {

// A file that is put into the folder as it is.
struct ExtraFile {
  std::string name;
  std::string contents;
};

struct QuantizeJob {
  const Checkpoint& checkpoint;
  QuantizeOptions options;
  std::vector<std::vector<TokenId>> calibration;  // not needed for kRtn
  std::filesystem::path output;                   // new, or an empty folder
  std::vector<ExtraFile> files;                   // beside config.json and generation_config.json
  std::function<void(int64_t done, int64_t layers)> progress;  // after each layer; may be empty
};

// Bits, group, method and shapes that do not go together, and a model that is quantised already, are errors
// that name what is wrong.
Status check_quantizable(const Checkpoint& checkpoint, const Qwen2Config& config,
                         const QuantizeOptions& options);

// Bytes that the job needs at its peak, beside the mapped checkpoint: one layer in float and rounded, the
// calibration's states and the Hessian.
uint64_t peak_bytes(const Qwen2Config& config, const QuantizeOptions& options,
                    std::span<const std::vector<TokenId>> calibration);

// Layer `index` in float, expanded where the checkpoint has it quantised.
Status read_layer(const Checkpoint& checkpoint, const Qwen2Config& config, int64_t index, FloatLayer& layer);

// Writes the weights first and config.json last, so that a folder which can be opened is complete.
Status quantize_model(const QuantizeJob& job);

}  // namespace qwen2::quantize
