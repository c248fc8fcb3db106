#include "quantize/model_writer.h"

#include <algorithm>
#include <boost/json.hpp>
#include <mutex>
#include <optional>

#include "model/inventory.h"
#include "quantize/packing.h"

namespace qwen2::quantize {
namespace {

namespace json = boost::json;

std::string_view safetensors_dtype(DType type) {
  if (type == DType::kF32) return "F32";
  return type == DType::kF16 ? "F16" : "BF16";
}

// Of "NAME.weight".
std::string module_name(const ModelTensor& matrix) {
  return matrix.name.substr(0, matrix.name.rfind('.'));
}

void add_module(std::vector<TensorSpec>& specs, const ModelTensor& m, const QuantizeOptions& options) {
  const std::string name = module_name(m);
  const int64_t per = 32 / options.bits;
  const int64_t groups = m.cols / options.group;
  if (options.method == Method::kAwq) {
    specs.push_back({name + ".qweight", "I32", {m.cols, m.rows / 8}});
    specs.push_back({name + ".qzeros", "I32", {groups, m.rows / 8}});
  } else {
    specs.push_back({name + ".qweight", "I32", {m.cols / per, m.rows}});
    specs.push_back({name + ".qzeros", "I32", {groups, m.rows / per}});
    specs.push_back({name + ".g_idx", "I32", {m.cols}});
  }
  specs.push_back({name + ".scales", "F16", {groups, m.rows}});
}

// Layer by layer; within one, matrices, norms and biases in the order of their roles.
std::vector<ModelTensor> in_file_order(const Qwen2Config& config) {
  std::vector<ModelTensor> tensors = model_tensors(config);
  for (auto first = tensors.begin(); first != tensors.end();) {
    const auto last = std::find_if(first, tensors.end(),
                                   [&](const ModelTensor& tensor) { return tensor.layer != first->layer; });
    if (first->layer) std::ranges::stable_sort(first, last, {}, &ModelTensor::role);
    first = last;
  }
  return tensors;
}

std::vector<TensorSpec> specs_of(const Qwen2Config& config, const QuantizeOptions& options, DType stored) {
  const std::string dtype(safetensors_dtype(stored));
  std::vector<TensorSpec> specs;
  for (const ModelTensor& tensor : in_file_order(config)) {
    if (tensor.is_layer_matrix()) {
      add_module(specs, tensor, options);
    } else if (tensor.is_matrix()) {
      specs.push_back({tensor.name, dtype, {tensor.rows, tensor.cols}});
    } else {
      specs.push_back({tensor.name, dtype, {tensor.rows}});
    }
  }
  return specs;
}

json::object settings_of(const QuantizeOptions& options) {
  if (options.method == Method::kAwq) {
    return {{"quant_method", "awq"},
            {"bits", options.bits},
            {"group_size", options.group},
            {"version", "gemm"},
            {"zero_point", true},
            {"backend", "autoawq"},
            {"modules_to_not_convert", nullptr}};
  }
  return {{"quant_method", "gptq"},
          {"bits", options.bits},
          {"group_size", options.group},
          {"sym", true},
          {"desc_act", options.act_order},
          {"damp_percent", options.damping},
          {"true_sequential", true},
          {"static_groups", false},
          {"lm_head", false},
          {"checkpoint_format", "gptq"}};
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

}  // namespace

Status visit_rows(const Checkpoint& checkpoint, const ModelTensor& matrix,
                  const std::function<Status(int64_t row, const float* values)>& visit) {
  std::mutex mutex;
  std::optional<Error> first_error;
  QWEN2_CHECK(
      read_expanded(checkpoint, matrix.name, matrix.rows, matrix.cols, [&](int64_t row, const float* values) {
        const Status status = visit(row, values);
        if (status) return;
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = status.error();
      }));
  if (first_error) return std::unexpected(*std::move(first_error));
  return {};
}

Status check_plain(const Checkpoint& checkpoint, const ModelTensor& matrix) {
  QWEN2_TRY(const auto format, checkpoint.matrix_format(matrix.name, matrix.rows, matrix.cols));
  if (!format) return {};
  return fail(ErrorKind::kInvalidArgument,
              "tensor '{}' is quantised to {} bits already; a model in 16 or 32 bits was expected",
              matrix.name, format->bits);
}

Result<DType> stored_dtype(std::string_view config_json) {
  json::error_code code;
  const json::value config = json::parse(config_json, code);
  if (code || !config.is_object()) return fail(ErrorKind::kFormat, "config.json must be a JSON object");
  for (const char* key : {"torch_dtype", "dtype"}) {
    const json::value* value = config.get_object().if_contains(key);
    if (value == nullptr || !value->is_string()) continue;
    const std::string_view name = value->get_string();
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      if (name == dtype_name(type)) return type;
    }
    return fail(ErrorKind::kUnsupported,
                "'{}' in config.json is \"{}\"; float32, float16 or bfloat16 was expected", key,
                name.substr(0, 64));
  }
  return DType::kBF16;
}

Result<std::string> quantized_config_json(std::string_view config_json, const QuantizeOptions& options) {
  json::error_code code;
  json::value config = json::parse(config_json, code);
  if (code || !config.is_object()) return fail(ErrorKind::kFormat, "config.json must be a JSON object");
  config.get_object()["quantization_config"] = settings_of(options);
  return json::serialize(config) + "\n";
}

Result<std::unique_ptr<ModelWriter>> ModelWriter::create(const std::filesystem::path& path,
                                                         const Qwen2Config& config,
                                                         const QuantizeOptions& options, DType stored) {
  std::unique_ptr<ModelWriter> writer(new ModelWriter(config, options, stored));
  QWEN2_TRY(writer->file_, create_safetensors(path, specs_of(config, options, stored)));
  return writer;
}

// `offset` in elements.
Status ModelWriter::write_floats(std::string_view name, int64_t offset, std::span<const float> values) {
  const auto start = static_cast<uint64_t>(offset) * dtype_bytes(stored_);
  if (stored_ == DType::kF32) return file_->write(name, start, std::as_bytes(values));
  std::vector<uint16_t> halves;
  halves.reserve(values.size());
  for (const float value : values)
    halves.push_back(stored_ == DType::kF16 ? float_to_f16(value) : float_to_bf16(value));
  return file_->write(name, start, bytes_of(halves));
}

Status ModelWriter::write_unquantized(const Checkpoint& checkpoint) {
  for (const ModelTensor& tensor : model_tensors(config_)) {
    if (tensor.layer) continue;
    if (tensor.is_matrix()) {
      QWEN2_CHECK(visit_rows(checkpoint, tensor, [&](int64_t row, const float* values) {
        return write_floats(tensor.name, row * tensor.cols, {values, static_cast<size_t>(tensor.cols)});
      }));
    } else {
      std::vector<float> values(static_cast<size_t>(tensor.rows));
      QWEN2_CHECK(checkpoint.load_vector(tensor.name, tensor.rows, values.data()));
      QWEN2_CHECK(write_floats(tensor.name, 0, values));
    }
  }
  return {};
}

Status ModelWriter::write_module(const std::string& name, const GroupedWeights& w, int64_t first,
                                 int64_t count) {
  const bool awq = options_.method == Method::kAwq;
  const PackedModule module = awq ? pack_awq(w, first, count) : pack_gptq(w, first, count);
  QWEN2_CHECK(file_->write(name + ".qweight", 0, bytes_of(module.qweight)));
  QWEN2_CHECK(file_->write(name + ".qzeros", 0, bytes_of(module.qzeros)));
  if (!awq) QWEN2_CHECK(file_->write(name + ".g_idx", 0, bytes_of(module.g_idx)));
  return file_->write(name + ".scales", 0, bytes_of(module.scales));
}

Status ModelWriter::write_layer(int64_t index, const FloatLayer& layer, const RoundedLayer& rounded) {
  for (const ModelTensor& tensor : layer_tensors(config_, index)) {
    if (const auto* role = std::get_if<MatrixRole>(&tensor.role)) {
      QWEN2_CHECK(
          write_module(module_name(tensor), layer_matrix(rounded, *role), tensor.first_row, tensor.rows));
    } else {
      const std::span values(layer_vector(layer, std::get<VectorRole>(tensor.role)));
      QWEN2_CHECK(write_floats(
          tensor.name, 0,
          values.subspan(static_cast<size_t>(tensor.first_row), static_cast<size_t>(tensor.rows))));
    }
  }
  return {};
}

}  // namespace qwen2::quantize
