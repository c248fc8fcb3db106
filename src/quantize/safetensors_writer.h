// Writes a safetensors file whose shapes are known and whose data comes piece by piece, in any order. Format:
// https://github.com/huggingface/safetensors#format
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

struct TensorSpec {
  std::string name;
  std::string dtype;  // "F32", "F16", "BF16" or "I32"
  std::vector<int64_t> shape;
};

// The data go to a temporary file beside `path`, which finish() renames; without finish() it is removed.
class SafetensorsWriter {
 public:
  static Result<std::unique_ptr<SafetensorsWriter>> create(const std::filesystem::path& path,
                                                           std::span<const TensorSpec> tensors);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Bytes [offset, offset + data.size()) of a tensor. Thread-safe. What lies outside of the tensor or is no
  // tensor is an error.
  Status write(std::string_view name, uint64_t offset, std::span<const std::byte> data);
  // An error unless as many bytes were written as there are.
  Status finish();
  [[nodiscard]] uint64_t file_bytes() const { return data_start_ + data_bytes_; }

 private:
  struct Place {
    uint64_t begin, size;
  };
  SafetensorsWriter() = default;
  Status write_at(uint64_t offset, std::span<const std::byte> data) const;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int file_ = -1;
  std::map<std::string, Place, std::less<>> places_;
  uint64_t data_start_ = 0;
  uint64_t data_bytes_ = 0;
  std::atomic<uint64_t> written_ = 0;
};

}  // namespace qwen2::quantize
