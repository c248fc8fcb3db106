#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "checkpoint/architecture.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_metadata.h"
#include "checkpoint/gguf_shards.h"
#include "checkpoint/plain_tensor.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

// The plain type of a tensor; nothing for quantised ones.
std::optional<DType> plain_type(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return DType::kF32;
    case GgmlType::kF16:
      return DType::kF16;
    case GgmlType::kBF16:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

class GgufCheckpoint final : public Checkpoint {
 public:
  Status open(const fs::path& path) {
    QWEN2_TRY(files_, GgufShards::open(path));
    const auto read = [&]() -> Status {
      QWEN2_TRY(config_, gguf_config_json(contents()));
      QWEN2_TRY(generation_config_, gguf_generation_config_json(contents()));
      return {};
    };
    if (auto status = read(); !status) return within(fmt::format("'{}'", path.string()), status.error());
    return {};
  }

  std::string config_json() const override { return config_; }
  std::string generation_config_json() const override { return generation_config_; }
  bool has(std::string_view name) const override {
    return contents().tensors.contains(gguf_tensor_name(name));
  }

  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view name, int64_t rows,
                                                       int64_t cols) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {cols, rows, 1, 1}));
    return gguf_format(tensor->type);
  }

  Status read_matrix(std::string_view name, int64_t rows, int64_t cols, const RowSink& sink) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {cols, rows, 1, 1}));
    const auto type = plain_type(tensor->type);
    if (!type) return fail(ErrorKind::kInternal, "tensor '{}' is quantised", name);
    read_plain_rows(files_.bytes_of(*tensor).data(), *type, rows, cols, sink);
    files_.release(*tensor);
    return {};
  }

  Status load_quantized(std::string_view name, int64_t rows, const QuantizedMatrix& target,
                        int64_t first_row) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {target.cols, rows, 1, 1}));
    const auto format = gguf_format(tensor->type);
    if (!format || *format != target.format) {
      return fail(ErrorKind::kInternal, "tensor '{}' of type {} is loaded into another format", name,
                  ggml_type_name(tensor->type));
    }
    const auto bytes = files_.bytes_of(*tensor);
    const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
    int64_t bad_row = rows;
    // Whole blocks of rows a thread, so that no two threads write the same cache lines.
#pragma omp parallel for schedule(static, kBlockRows) reduction(min : bad_row)
    for (int64_t row = 0; row < rows; ++row) {
      const std::byte* const source = bytes.data() + static_cast<size_t>(row) * row_bytes;
      if (!copy_gguf_row(tensor->type, source, target, first_row + row)) bad_row = std::min(bad_row, row);
    }
    files_.release(*tensor);
    if (bad_row == rows) return {};
    return fail(ErrorKind::kFormat,
                "'{}': tensor '{}' holds an infinite or NaN scale in row {}; finite ones were expected",
                files_.path_of(*tensor).string(), gguf_tensor_name(name), bad_row);
  }

  Status load_vector(std::string_view name, int64_t size, float* out) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {size, 1, 1, 1}));
    const auto type = plain_type(tensor->type);
    if (!type) {
      return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has type {}; F32, F16 or BF16 was expected",
                  files_.path_of(*tensor).string(), gguf_tensor_name(name), ggml_type_name(tensor->type));
    }
    to_floats(files_.bytes_of(*tensor).data(), *type, size, out);
    return {};
  }

 private:
  [[nodiscard]] const GgufFile& contents() const { return files_.contents(); }

  // `shape` as GGUF has it, the fastest dimension first.
  Result<const GgufTensor*> find(std::string_view name, const std::array<int64_t, 4>& shape) const {
    const std::string theirs = gguf_tensor_name(name);
    const auto found = contents().tensors.find(theirs);
    if (found == contents().tensors.end()) {
      return fail(ErrorKind::kNotFound, "'{}': tensor '{}' ('{}') is missing",
                  files_.paths().front().string(), theirs, name);
    }
    const GgufTensor& tensor = found->second;
    if (tensor.shape != shape) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' has shape [{}], the configuration wants [{}]",
                  files_.path_of(tensor).string(), theirs, fmt::join(tensor.shape, ", "),
                  fmt::join(shape, ", "));
    }
    return &tensor;
  }

  GgufShards files_;
  std::string config_;
  std::string generation_config_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_gguf(const fs::path& path) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  QWEN2_CHECK(checkpoint->open(path));
  return checkpoint;
}

namespace {

Result<GgufShards> open_shards(const std::string& model) {
  QWEN2_TRY(const ModelSource source, find_model(model));
  if (source.kind == ModelKind::kGguf) return GgufShards::open(source.path);
  return fail(ErrorKind::kInvalidArgument, "'{}' is no GGUF model", model);
}

// read(the model's metadata), with errors that name the model.
template <class T>
Result<T> from_gguf(const fs::path& model, Result<T> (*read)(const GgufFile&)) {
  QWEN2_TRY(const GgufShards shards, open_shards(model.string()));
  auto result = read(shards.contents());
  if (!result) return within(fmt::format("'{}'", model.string()), result.error());
  return result;
}

}  // namespace

Result<std::vector<fs::path>> gguf_paths(const std::string& model) {
  QWEN2_TRY(const GgufShards shards, open_shards(model));
  return shards.paths();
}

Result<TokenizerTexts> gguf_tokenizer(const fs::path& model) {
  return from_gguf<TokenizerTexts>(model, gguf_tokenizer);
}

Result<std::string> gguf_tokenizer_config(const fs::path& model) {
  return from_gguf<std::string>(model, gguf_tokenizer_config);
}

}  // namespace qwen2
