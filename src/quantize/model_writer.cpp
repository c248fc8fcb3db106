#include "quantize/model_writer.h"

#include <boost/json.hpp>
#include <mutex>
#include <optional>

#include "quantize/packing.h"

namespace qwen2::quantize {
namespace {

namespace json = boost::json;

std::string_view safetensors_dtype(DType type) {
  if (type == DType::kF32) return "F32";
  return type == DType::kF16 ? "F16" : "BF16";
}

void add_module(std::vector<TensorSpec>& specs, const std::string& name, const LinearModule& m,
                const QuantizeOptions& options) {
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

std::vector<TensorSpec> specs_of(const Qwen2Config& c, const QuantizeOptions& options, DType stored) {
  const std::string dtype(safetensors_dtype(stored));
  std::vector<TensorSpec> specs;
  specs.push_back({"model.embed_tokens.weight", dtype, {c.vocab_size, c.hidden_size}});
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string prefix = layer_prefix(i);
    for (const LinearModule& module : linear_modules(c))
      add_module(specs, prefix + module.name, module, options);
    specs.push_back({prefix + "input_layernorm.weight", dtype, {c.hidden_size}});
    specs.push_back({prefix + "post_attention_layernorm.weight", dtype, {c.hidden_size}});
    specs.push_back({prefix + "self_attn.q_proj.bias", dtype, {c.q_size()}});
    specs.push_back({prefix + "self_attn.k_proj.bias", dtype, {c.kv_size()}});
    specs.push_back({prefix + "self_attn.v_proj.bias", dtype, {c.kv_size()}});
  }
  specs.push_back({"model.norm.weight", dtype, {c.hidden_size}});
  if (!c.tied_head) specs.push_back({"lm_head.weight", dtype, {c.vocab_size, c.hidden_size}});
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

std::array<LinearModule, 7> linear_modules(const Qwen2Config& c) {
  return {{{"self_attn.q_proj", c.q_size(), c.hidden_size},
           {"self_attn.k_proj", c.kv_size(), c.hidden_size},
           {"self_attn.v_proj", c.kv_size(), c.hidden_size},
           {"self_attn.o_proj", c.hidden_size, c.q_size()},
           {"mlp.gate_proj", c.intermediate_size, c.hidden_size},
           {"mlp.up_proj", c.intermediate_size, c.hidden_size},
           {"mlp.down_proj", c.hidden_size, c.intermediate_size}}};
}

Status visit_rows(const Checkpoint& checkpoint, std::string_view name, int64_t rows, int64_t cols,
                  const std::function<Status(int64_t row, const float* values)>& visit) {
  std::mutex mutex;
  std::optional<Error> first_error;
  QWEN2_CHECK(read_expanded(checkpoint, name, rows, cols, [&](int64_t row, const float* values) {
    const Status status = visit(row, values);
    if (status) return;
    const std::lock_guard lock(mutex);
    if (!first_error) first_error = status.error();
  }));
  if (first_error) return std::unexpected(*std::move(first_error));
  return {};
}

Status check_plain(const Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols) {
  QWEN2_TRY(const auto format, checkpoint.matrix_format(name, rows, cols));
  if (!format) return {};
  return fail(ErrorKind::kInvalidArgument,
              "tensor '{}' is quantised to {} bits already; a model in 16 or 32 bits was expected", name,
              format->bits);
}

std::string layer_prefix(int64_t index) {
  return fmt::format("model.layers.{}.", index);
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

Status ModelWriter::write_matrix(const Checkpoint& checkpoint, std::string_view name, int64_t rows,
                                 int64_t cols) {
  return visit_rows(checkpoint, name, rows, cols, [&](int64_t row, const float* values) {
    return write_floats(name, row * cols, {values, static_cast<size_t>(cols)});
  });
}

Status ModelWriter::write_unquantized(const Checkpoint& checkpoint) {
  QWEN2_CHECK(write_matrix(checkpoint, "model.embed_tokens.weight", config_.vocab_size, config_.hidden_size));
  std::vector<float> norm(static_cast<size_t>(config_.hidden_size));
  QWEN2_CHECK(checkpoint.load_vector("model.norm.weight", config_.hidden_size, norm.data()));
  QWEN2_CHECK(write_floats("model.norm.weight", 0, norm));
  if (config_.tied_head) return {};
  return write_matrix(checkpoint, "lm_head.weight", config_.vocab_size, config_.hidden_size);
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
  const std::string prefix = layer_prefix(index);
  const std::span bias(layer.qkv_bias);
  int64_t first = 0;
  for (const auto& [name, rows] :
       {std::pair("q_proj", config_.q_size()), std::pair("k_proj", config_.kv_size()),
        std::pair("v_proj", config_.kv_size())}) {
    const std::string module = prefix + "self_attn." + name;
    QWEN2_CHECK(write_module(module, rounded.qkv, first, rows));
    QWEN2_CHECK(write_floats(module + ".bias", 0,
                             bias.subspan(static_cast<size_t>(first), static_cast<size_t>(rows))));
    first += rows;
  }
  const int64_t width = config_.intermediate_size;
  QWEN2_CHECK(write_module(prefix + "self_attn.o_proj", rounded.attention_output, 0, config_.hidden_size));
  QWEN2_CHECK(write_module(prefix + "mlp.gate_proj", rounded.gate_up, 0, width));
  QWEN2_CHECK(write_module(prefix + "mlp.up_proj", rounded.gate_up, width, width));
  QWEN2_CHECK(write_module(prefix + "mlp.down_proj", rounded.down, 0, config_.hidden_size));
  QWEN2_CHECK(write_floats(prefix + "input_layernorm.weight", 0, layer.input_norm));
  return write_floats(prefix + "post_attention_layernorm.weight", 0, layer.post_attention_norm);
}

}  // namespace qwen2::quantize
