#include <algorithm>
#include <array>

#include "base/memory.h"
#include "checkpoint/architecture.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_metadata.h"
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
    path_ = path;
    QWEN2_TRY(file_, MappedFile::open(path));
    const auto read = [&]() -> Status {
      QWEN2_TRY(header_, parse_gguf(file_.bytes()));
      QWEN2_TRY(config_, gguf_config_json(header_));
      QWEN2_TRY(generation_config_, gguf_generation_config_json(header_));
      return {};
    };
    if (auto status = read(); !status) return within(fmt::format("'{}'", path.string()), status.error());
    return {};
  }

  std::string config_json() const override { return config_; }
  std::string generation_config_json() const override { return generation_config_; }
  bool has(std::string_view name) const override { return header_.tensors.contains(gguf_tensor_name(name)); }

  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view name, int64_t rows,
                                                       int64_t cols) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {cols, rows, 1, 1}));
    return gguf_format(tensor->type);
  }

  Status read_matrix(std::string_view name, int64_t rows, int64_t cols, const RowSink& sink) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {cols, rows, 1, 1}));
    const auto type = plain_type(tensor->type);
    if (!type) return fail(ErrorKind::kInternal, "tensor '{}' is quantised", name);
    const auto bytes = bytes_of(*tensor);
    read_plain_rows(bytes.data(), *type, rows, cols, sink);
    file_.release(bytes);
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
    const auto bytes = bytes_of(*tensor);
    const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
    int64_t bad_row = rows;
    // Whole blocks of rows a thread, so that no two threads write the same cache lines.
#pragma omp parallel for schedule(static, kBlockRows) reduction(min : bad_row)
    for (int64_t row = 0; row < rows; ++row) {
      const std::byte* const source = bytes.data() + static_cast<size_t>(row) * row_bytes;
      if (!copy_gguf_row(tensor->type, source, target, first_row + row)) bad_row = std::min(bad_row, row);
    }
    file_.release(bytes);
    if (bad_row == rows) return {};
    return fail(ErrorKind::kFormat,
                "'{}': tensor '{}' holds an infinite or NaN scale in row {}; finite ones were expected",
                path_.string(), gguf_tensor_name(name), bad_row);
  }

  Status load_vector(std::string_view name, int64_t size, float* out) const override {
    QWEN2_TRY(const GgufTensor* tensor, find(name, {size, 1, 1, 1}));
    const auto type = plain_type(tensor->type);
    if (!type) {
      return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has type {}; F32, F16 or BF16 was expected",
                  path_.string(), gguf_tensor_name(name), ggml_type_name(tensor->type));
    }
    to_floats(bytes_of(*tensor).data(), *type, size, out);
    return {};
  }

 private:
  // `shape` as GGUF has it, the fastest dimension first.
  Result<const GgufTensor*> find(std::string_view name, const std::array<int64_t, 4>& shape) const {
    const std::string theirs = gguf_tensor_name(name);
    const auto found = header_.tensors.find(theirs);
    if (found == header_.tensors.end()) {
      return fail(ErrorKind::kNotFound, "'{}': tensor '{}' ('{}') is missing", path_.string(), theirs, name);
    }
    if (found->second.shape != shape) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' has shape [{}], the configuration wants [{}]",
                  path_.string(), theirs, fmt::join(found->second.shape, ", "), fmt::join(shape, ", "));
    }
    return &found->second;
  }

  [[nodiscard]] std::span<const std::byte> bytes_of(const GgufTensor& tensor) const {
    return file_.bytes().subspan(tensor.begin, tensor.bytes);
  }

  fs::path path_;
  MappedFile file_;
  GgufFile header_;  // views into file_
  std::string config_;
  std::string generation_config_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> open_gguf(const fs::path& path) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  QWEN2_CHECK(checkpoint->open(path));
  return checkpoint;
}

bool is_gguf_file(const std::string& model) {
  std::error_code ignored;
  return model.ends_with(".gguf") && fs::is_regular_file(model, ignored);
}

namespace {

// read(the parsed file), with errors that name the path.
template <class T>
Result<T> from_gguf(const fs::path& path, Result<T> (*read)(const GgufFile&)) {
  QWEN2_TRY(const auto mapped, MappedFile::open(path));
  const auto file = parse_gguf(mapped.bytes());
  if (!file) return within(fmt::format("'{}'", path.string()), file.error());
  auto result = read(*file);
  if (!result) return within(fmt::format("'{}'", path.string()), result.error());
  return result;
}

}  // namespace

Result<TokenizerTexts> gguf_tokenizer(const fs::path& path) {
  return from_gguf<TokenizerTexts>(path, gguf_tokenizer);
}

Result<std::string> gguf_tokenizer_config(const fs::path& path) {
  return from_gguf<std::string>(path, gguf_tokenizer_config);
}

}  // namespace qwen2
