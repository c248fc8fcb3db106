// A file of tensors whose places are known and whose data come piece by piece, in any order; and a
// safetensors file as one. Format: https://github.com/huggingface/safetensors#format
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qwen2::quantize {

// The data go to a temporary file beside `path`, which finish() renames; without finish() it is removed.
class TensorFile {
 public:
  // Bytes from the start of the file.
  struct Place {
    uint64_t begin, size;
  };
  static Result<std::unique_ptr<TensorFile>> create(const std::filesystem::path& path,
                                                    std::span<const std::byte> header,
                                                    std::map<std::string, Place, std::less<>> places);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  // Bytes [offset, offset + data.size()) of a tensor. Thread-safe. What lies outside of the tensor or is no
  // tensor is an error.
  Status write(std::string_view name, uint64_t offset, std::span<const std::byte> data);
  // An error unless as many bytes were written as there are.
  Status finish();
  [[nodiscard]] uint64_t file_bytes() const { return file_bytes_; }

 private:
  TensorFile() = default;
  Status write_at(uint64_t offset, std::span<const std::byte> data) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int file_ = -1;
  std::map<std::string, Place, std::less<>> places_;
  uint64_t file_bytes_ = 0;
  uint64_t data_bytes_ = 0;
  std::atomic<uint64_t> written_ = 0;
};

struct TensorSpec {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16" or "I32"
  std::vector<int64_t> shape;
};

Result<std::unique_ptr<TensorFile>> create_safetensors(const std::filesystem::path& path,
                                                       std::span<const TensorSpec> tensors);

}  // namespace qwen2::quantize
