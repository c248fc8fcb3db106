#include <boost/json.hpp>
#include <map>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct Tensor {
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  const MappedFile* file = nullptr;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

class HfFolder final : public Checkpoint {
 public:
  Status open(const fs::path& folder) {
    folder_ = folder;
    QWEN2_TRY(config_, read_text_file(folder / "config.json", size_t{1} << 20));
    if (fs::exists(folder / "generation_config.json")) {
      QWEN2_TRY(generation_config_, read_text_file(folder / "generation_config.json", size_t{1} << 20));
    }
    const fs::path single = folder / "model.safetensors";
    const fs::path index = folder / "model.safetensors.index.json";
    if (fs::exists(single)) return add_file(single.filename().string(), nullptr);
    if (fs::exists(index)) return add_shards(index);
    return fail(ErrorKind::kNotFound, "'{}' has neither model.safetensors nor model.safetensors.index.json",
                folder.string());
  }

  std::string config_json() const override { return config_; }
  std::string generation_config_json() const override { return generation_config_; }
  bool has(std::string_view name) const override { return tensors_.contains(name); }

  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view name, int64_t rows,
                                                       int64_t cols) const override {
    QWEN2_TRY([[maybe_unused]] const Tensor* tensor, find(name, {rows, cols}));
    return std::nullopt;
  }

  Status read_matrix(std::string_view name, int64_t rows, int64_t cols, const RowSink& sink) const override {
    QWEN2_TRY(const Tensor* tensor, find(name, {rows, cols}));
    const size_t row_bytes = static_cast<size_t>(cols) * dtype_bytes(tensor->dtype);
#pragma omp parallel
    {
      std::vector<float> values(static_cast<size_t>(cols));
#pragma omp for schedule(static, kBlockRows)
      for (int64_t row = 0; row < rows; ++row) {
        to_floats(tensor->bytes.data() + static_cast<size_t>(row) * row_bytes, tensor->dtype, cols,
                  values.data());
        sink(row, values.data());
      }
    }
    tensor->file->release(tensor->bytes);
    return {};
  }

  Status load_vector(std::string_view name, int64_t size, float* out) const override {
    QWEN2_TRY(const Tensor* tensor, find(name, {size}));
    to_floats(tensor->bytes.data(), tensor->dtype, size, out);
    return {};
  }

 private:
  Result<const Tensor*> find(std::string_view name, const std::vector<int64_t>& shape) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return fail(ErrorKind::kNotFound, "'{}': tensor '{}' is missing", folder_.string(), name);
    }
    if (found->second.shape != shape) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' has shape {}, the configuration wants {}",
                  folder_.string(), name, shape_text(found->second.shape), shape_text(shape));
    }
    return &found->second;
  }

  // Adds the tensors of one file; with `wanted`, only those that the index assigns to it.
  Status add_file(const std::string& name, const std::vector<std::string>* wanted) {
    const fs::path path = folder_ / name;
    QWEN2_TRY(auto mapped, MappedFile::open(path));
    files_.push_back(std::make_unique<MappedFile>(std::move(mapped)));
    const MappedFile& file = *files_.back();
    auto header = parse_safetensors(file.bytes());
    if (!header) return within(fmt::format("'{}'", path.string()), header.error());
    const auto data = file.bytes().subspan(header->data_start);
    if (wanted == nullptr) {
      for (const auto& [tensor, entry] : header->tensors)
        QWEN2_CHECK(add_tensor(path, tensor, entry, data, file));
      return {};
    }
    for (const std::string& tensor : *wanted) {
      const auto found = header->tensors.find(tensor);
      if (found == header->tensors.end()) {
        return fail(ErrorKind::kFormat,
                    "'{}': the index places tensor '{}' here, but the file does not have it", path.string(),
                    tensor);
      }
      QWEN2_CHECK(add_tensor(path, tensor, found->second, data, file));
    }
    return {};
  }

  Status add_tensor(const fs::path& path, const std::string& name, const SafetensorsEntry& entry,
                    std::span<const std::byte> data, const MappedFile& file) {
    Tensor tensor{DType::kBF16, entry.shape, data.subspan(entry.begin, entry.end - entry.begin), &file};
    if (entry.dtype == "F32") {
      tensor.dtype = DType::kF32;
    } else if (entry.dtype == "F16") {
      tensor.dtype = DType::kF16;
    } else if (entry.dtype != "BF16") {
      return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has dtype {}; BF16, F16 or F32 was expected",
                  path.string(), name, entry.dtype);
    }
    tensors_.emplace(name, std::move(tensor));
    return {};
  }

  Status add_shards(const fs::path& index) {
    QWEN2_TRY(const std::string text, read_text_file(index, size_t{64} << 20));
    json::error_code code;
    const json::value parsed = json::parse(text, code);
    const json::object* map = nullptr;
    if (!code && parsed.is_object()) {
      if (const json::value* value = parsed.get_object().if_contains("weight_map")) map = value->if_object();
    }
    if (map == nullptr || map->empty()) {
      return fail(ErrorKind::kFormat, "'{}': expected a JSON object with a 'weight_map' object",
                  index.string());
    }
    std::map<std::string, std::vector<std::string>> shards;
    for (const auto& [tensor, file] : *map) {
      const std::string name = file.is_string() ? std::string(file.get_string()) : std::string();
      if (name.empty() || name.find('/') != std::string::npos || name.starts_with('.')) {
        return fail(ErrorKind::kFormat, "'{}': the file of tensor '{}' must be a plain file name",
                    index.string(), std::string_view(tensor));
      }
      shards[name].emplace_back(tensor);
    }
    for (const auto& [file, tensors] : shards) QWEN2_CHECK(add_file(file, &tensors));
    return {};
  }

  fs::path folder_;
  std::string config_;
  std::string generation_config_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_hf_folder(const fs::path& folder) {
  auto checkpoint = std::make_unique<HfFolder>();
  QWEN2_CHECK(checkpoint->open(folder));
  return checkpoint;
}

Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& model) {
  static constexpr std::string_view kSynthetic = "synthetic:";
  if (model.starts_with(kSynthetic)) return open_synthetic(std::string_view(model).substr(kSynthetic.size()));
  if (!fs::is_directory(model)) {
    return fail(ErrorKind::kNotFound, "model '{}' is neither a folder nor synthetic:NAME", model);
  }
  return open_hf_folder(model);
}

fs::path tokenizer_folder(const std::string& model) {
  return model.starts_with("synthetic:") ? fs::path() : fs::path(model);
}

}  // namespace qwen2
