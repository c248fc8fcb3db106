// The files of a GGUF model, mapped: one, or the shards of a split one.
// Format: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "checkpoint/gguf.h"

namespace qwen2 {

// The name of a shard, "STEM-00002-of-00003.gguf"; counted from 1.
struct ShardName {
  std::string stem;
  int64_t number = 0;
  int64_t count = 0;

  // Nothing for any other name.
  static std::optional<ShardName> parse(std::string_view file_name);
  [[nodiscard]] std::string text() const;
};

class GgufShards {
 public:
  // Opens the whole model from any of its shards, which lie in one folder. Errors name the file.
  static Result<GgufShards> open(const std::filesystem::path& path);

  // The metadata of the first shard and the tensors of all. Views into the files.
  [[nodiscard]] const GgufFile& contents() const { return contents_; }
  // In the order of the shards.
  [[nodiscard]] const std::vector<std::filesystem::path>& paths() const { return paths_; }
  [[nodiscard]] const std::filesystem::path& path_of(const GgufTensor& tensor) const {
    return paths_[tensor.shard];
  }
  [[nodiscard]] std::span<const std::byte> bytes_of(const GgufTensor& tensor) const {
    return files_[tensor.shard].bytes().subspan(tensor.begin, tensor.bytes);
  }
  // See MappedFile::release().
  void release(const GgufTensor& tensor) const { files_[tensor.shard].release(bytes_of(tensor)); }

 private:
  Result<GgufFile> add_file(const std::filesystem::path& path);
  Status open_split(const std::filesystem::path& given, int64_t count);
  Status add_tensors(const GgufFile& shard);

  std::vector<std::filesystem::path> paths_;
  std::vector<MappedFile> files_;
  GgufFile contents_;
};

}  // namespace qwen2
