#include "quantize/quantize.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/memory.h"
#include "checkpoint/architecture.h"
#include "model/inventory.h"
#include "quantize/model_writer.h"

namespace qwen2::quantize {
namespace {

namespace fs = std::filesystem;

Status make_folder(const fs::path& output) {
  std::error_code code;
  if (fs::exists(output) && !fs::is_directory(output))
    return fail(ErrorKind::kInvalidArgument, "--output '{}' is not a folder", output.string());
  fs::create_directories(output, code);
  if (code) return fail(ErrorKind::kIo, "cannot create '{}': {}", output.string(), code.message());
  const bool empty = fs::is_empty(output, code);
  if (code) return fail(ErrorKind::kIo, "cannot read '{}': {}", output.string(), code.message());
  if (!empty) {
    return fail(ErrorKind::kInvalidArgument, "--output '{}' is not empty; a new folder was expected",
                output.string());
  }
  return {};
}

Status check_options(const QuantizeOptions& options) {
  static constexpr std::array<int64_t, 4> kGroups{16, 32, 64, 128};
  if (options.bits != 4 && options.bits != 8)
    return fail(ErrorKind::kInvalidArgument, "--bits is {}; 4 or 8 was expected", options.bits);
  if (options.method == Method::kAwq && options.bits != 4) {
    return fail(ErrorKind::kInvalidArgument, "--bits is {}; --method awq has a layout for 4 only",
                options.bits);
  }
  if (std::ranges::find(kGroups, options.group) == kGroups.end()) {
    return fail(ErrorKind::kInvalidArgument, "--group-size is {}; 16, 32, 64 or 128 was expected",
                options.group);
  }
  if (options.act_order && options.method != Method::kGptq)
    return fail(ErrorKind::kInvalidArgument, "--act-order goes with --method gptq only");
  if (!(options.damping > 0 && options.damping <= 1)) {
    return fail(ErrorKind::kInvalidArgument, "--damping is {}; more than 0 and at most 1 was expected",
                options.damping);
  }
  return {};
}

}  // namespace

Status read_layer(const Checkpoint& checkpoint, const Qwen2Config& config, int64_t index, FloatLayer& layer) {
  for (const ModelTensor& tensor : layer_tensors(config, index)) {
    if (const auto* role = std::get_if<MatrixRole>(&tensor.role)) {
      float* out = layer_matrix(layer, *role).as<float>() + tensor.first_row * tensor.cols;
      QWEN2_CHECK(read_expanded(checkpoint, tensor.name, tensor.rows, tensor.cols,
                                [&](int64_t row, const float* values) {
                                  std::copy_n(values, tensor.cols, out + row * tensor.cols);
                                }));
    } else {
      float* out = layer_vector(layer, std::get<VectorRole>(tensor.role)).data() + tensor.first_row;
      QWEN2_CHECK(checkpoint.load_vector(tensor.name, tensor.rows, out));
    }
  }
  return {};
}

Status check_quantizable(const Checkpoint& checkpoint, const Qwen2Config& config,
                         const QuantizeOptions& options) {
  QWEN2_CHECK(check_options(options));
  QWEN2_CHECK(check_biases(checkpoint, config));
  for (const ModelTensor& tensor : model_tensors(config)) {
    if (!tensor.is_layer_matrix()) continue;
    if (tensor.cols % options.group != 0) {
      return fail(ErrorKind::kInvalidArgument,
                  "--group-size is {}, which does not divide the {} columns of '{}'", options.group,
                  tensor.cols, tensor.name);
    }
    if (tensor.rows % 8 != 0) {
      return fail(ErrorKind::kUnsupported, "tensor '{}' has {} rows; a multiple of 8 was expected",
                  tensor.name, tensor.rows);
    }
    QWEN2_CHECK(check_plain(checkpoint, tensor));
  }
  return {};
}

uint64_t peak_bytes(const Qwen2Config& c, const QuantizeOptions& options,
                    std::span<const std::vector<TokenId>> calibration) {
  uint64_t weights = 0;
  for (const ModelTensor& tensor : layer_tensors(c, 0)) {
    if (tensor.is_matrix()) weights += static_cast<uint64_t>(tensor.rows * tensor.cols);
  }
  // In float, a byte a code, and the words that are written.
  uint64_t bytes = weights * (sizeof(float) + 1) + weights / 2;
  if (options.method == Method::kRtn) return bytes;
  int64_t tokens = 0;
  int64_t longest = 0;
  for (const auto& sequence : calibration) {
    tokens += static_cast<int64_t>(sequence.size());
    longest = std::max(longest, static_cast<int64_t>(sequence.size()));
  }
  bytes += LayerRounder::workspace_bytes(c, options);
  return bytes + LayerForward::state_bytes(c, tokens, longest);
}

Status quantize_model(const QuantizeJob& job) {
  const Checkpoint& checkpoint = job.checkpoint;
  QWEN2_TRY(const Qwen2Config config,
            parse_qwen2_config(checkpoint.config_json(), checkpoint.generation_config_json()));
  QWEN2_CHECK(check_quantizable(checkpoint, config, job.options));
  QWEN2_TRY(const DType stored, stored_dtype(checkpoint.config_json()));
  QWEN2_TRY(const std::string config_text, quantized_config_json(checkpoint.config_json(), job.options));
  const cpu::Kernels& kernels = cpu::kernels_for(cpu::detect_isa());
  std::optional<LayerForward> forward;
  if (job.options.method != Method::kRtn) {
    QWEN2_TRY(forward, LayerForward::create(checkpoint, config, kernels, job.calibration));
  }
  QWEN2_TRY(FloatLayer layer, FloatLayer::allocate(config));
  QWEN2_TRY(LayerRounder rounder, LayerRounder::create(config, kernels, job.options, stored));
  QWEN2_CHECK(make_folder(job.output));
  QWEN2_TRY(const auto writer,
            ModelWriter::create(job.output / "model.safetensors", config, job.options, stored));
  for (int64_t i = 0; i < config.layers; ++i) {
    QWEN2_CHECK(read_layer(checkpoint, config, i, layer));
    const auto rounded = rounder.round(layer, forward ? &*forward : nullptr);
    if (!rounded) return within(fmt::format("layer {}", i), rounded.error());
    QWEN2_CHECK(writer->write_layer(i, layer, *rounded));
    if (job.progress) job.progress(i + 1, config.layers);
  }
  QWEN2_CHECK(writer->write_unquantized(checkpoint));
  QWEN2_CHECK(writer->finish());
  for (const ExtraFile& file : job.files) QWEN2_CHECK(write_file(job.output / file.name, file.contents));
  if (const std::string text = checkpoint.generation_config_json(); !text.empty())
    QWEN2_CHECK(write_file(job.output / "generation_config.json", text));
  return write_file(job.output / "config.json", config_text);
}

}  // namespace qwen2::quantize
