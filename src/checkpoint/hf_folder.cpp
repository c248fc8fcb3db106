#include <algorithm>
#include <boost/json.hpp>
#include <map>

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/folder_checks.h"
#include "checkpoint/plain_tensor.h"
#include "checkpoint/quantized_reader.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_table.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

class HfFolder final : public Checkpoint {
 public:
  explicit HfFolder(const fs::path& folder) : folder_(folder), tensors_(folder) {}

  Status open() {
    QWEN2_CHECK(check_config_is_there(folder_));
    QWEN2_TRY(config_, read_text_file(folder_ / "config.json", size_t{1} << 20));
    if (fs::exists(folder_ / "generation_config.json")) {
      QWEN2_TRY(generation_config_, read_text_file(folder_ / "generation_config.json", size_t{1} << 20));
    }
    QWEN2_TRY(quantized_, open_quantized_reader(tensors_, config_));
    QWEN2_CHECK(add_weights());
    // A tied head may be all that was saved of the two.
    const auto fields = JsonFields::parse(config_, "config.json");
    const bool tied = fields && fields->find<bool>("tie_word_embeddings").value_or(false);
    const RawTensor* head = tensors_.find(kHeadName);
    if (tied && head != nullptr && !has(kEmbeddingName))
      tensors_.add(std::string(kEmbeddingName), RawTensor(*head));
    return {};
  }

  std::string config_json() const override { return config_; }
  std::string generation_config_json() const override { return generation_config_; }
  std::string note() const override { return adapter_note(folder_); }
  bool has(std::string_view name) const override {
    return tensors_.find(name) != nullptr || quantized_module(name).has_value();
  }

  Status read_matrix(std::string_view name, int64_t rows, int64_t cols, const RowSink& sink) const override {
    if (const auto module = quantized_module(name)) return quantized_->read_rows(*module, rows, cols, sink);
    QWEN2_TRY(const RawTensor* tensor, tensors_.get(name, {rows, cols}));
    QWEN2_TRY(const DType dtype, float_dtype(name, *tensor));
    read_plain_rows(tensor->bytes.data(), dtype, rows, cols, sink);
    tensor->release();
    return {};
  }

  Status load_vector(std::string_view name, int64_t size, float* out) const override {
    QWEN2_TRY(const RawTensor* tensor, tensors_.get(name, {size}));
    QWEN2_TRY(const DType dtype, float_dtype(name, *tensor));
    to_floats(tensor->bytes.data(), dtype, size, out);
    return {};
  }

  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view name, int64_t rows,
                                                       int64_t cols) const override {
    if (const auto module = quantized_module(name)) return quantized_->format(*module, rows, cols);
    QWEN2_TRY(const RawTensor* tensor, tensors_.get(name, {rows, cols}));
    QWEN2_TRY([[maybe_unused]] const DType dtype, float_dtype(name, *tensor));
    return std::nullopt;
  }

  Status load_quantized(std::string_view name, int64_t rows, const QuantizedMatrix& target,
                        int64_t first_row) const override {
    if (const auto module = quantized_module(name)) {
      return quantized_->load(*module, rows, target, first_row);
    }
    return Checkpoint::load_quantized(name, rows, target, first_row);
  }

 private:
  // NAME of "NAME.weight" where that is stored quantised.
  std::optional<std::string_view> quantized_module(std::string_view name) const {
    static constexpr std::string_view kSuffix = ".weight";
    if (quantized_ == nullptr || !name.ends_with(kSuffix)) return std::nullopt;
    const std::string_view module = name.substr(0, name.size() - kSuffix.size());
    return quantized_->has(module) ? std::optional(module) : std::nullopt;
  }

  // Names of files in the folder that end in `suffix`, in order.
  std::vector<std::string> files_named(std::string_view suffix) const {
    std::vector<std::string> names;
    std::error_code code;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_, code)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(suffix) && entry.is_regular_file(code)) names.push_back(name);
    }
    std::ranges::sort(names);
    return names;
  }

  // model.safetensors, or an index with its shards, or whatever files there are: writers have names of their own.
  Status add_weights() {
    static constexpr std::string_view kSingle = "model.safetensors";
    static constexpr std::string_view kIndex = "model.safetensors.index.json";
    if (fs::exists(folder_ / kSingle)) return add_file(std::string(kSingle), nullptr);
    if (fs::exists(folder_ / kIndex)) return add_shards(folder_ / kIndex);
    const std::vector<std::string> indices = files_named(".safetensors.index.json");
    if (indices.size() == 1) return add_shards(folder_ / indices[0]);
    if (indices.size() > 1) {
      return fail(ErrorKind::kUnsupported, "'{}' has several indices: {}; one was expected", folder_.string(),
                  fmt::join(indices, ", "));
    }
    const std::vector<std::string> files = files_named(".safetensors");
    if (files.empty()) return no_weights_error(folder_);
    for (const std::string& file : files) QWEN2_CHECK(add_file(file, nullptr));
    return {};
  }

  // Adds the tensors of one file; with `wanted`, only those that the index assigns to it.
  Status add_file(const std::string& name, const std::vector<std::string>* wanted) {
    const fs::path path = folder_ / name;
    QWEN2_TRY(auto mapped, MappedFile::open(path));
    files_.push_back(std::make_unique<MappedFile>(std::move(mapped)));
    const MappedFile& file = *files_.back();
    if (is_lfs_pointer({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()})) {
      return lfs_pointer_error(path);
    }
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
    const std::string canonical = canonical_name(name);
    if (const RawTensor* other = tensors_.find(canonical)) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' is in '{}' too, and no index says which one counts",
                  path.string(), name, other->path);
    }
    const auto bytes = data.subspan(entry.begin, entry.end - entry.begin);
    tensors_.add(canonical, {entry.dtype, entry.shape, bytes, &file, path.string()});
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
  TensorTable tensors_;
  std::unique_ptr<QuantizedReader> quantized_;  // null without "quantization_config"
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_hf_folder(const fs::path& folder) {
  auto checkpoint = std::make_unique<HfFolder>(folder);
  QWEN2_CHECK(checkpoint->open());
  return checkpoint;
}

}  // namespace qwen2
