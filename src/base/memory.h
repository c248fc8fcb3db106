// Memory from the operating system: mapped files and large zeroed buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/error.h"

namespace qwen2 {

// A read-only mapping of a whole file. Empty files map to an empty span.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::filesystem::path& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Drops the pages of `part` from this process; they are read again when touched. Keeps the resident size
  // near one copy while a checkpoint is converted.
  void release(std::span<const std::byte> part) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A zeroed buffer, aligned to a huge page where it is large, and backed by huge pages where the kernel has
// them: decoding streams through gigabytes, and small pages would stop the hardware prefetcher every 4 KiB.
class LargeBuffer {
 public:
  static Result<LargeBuffer> allocate(size_t bytes, std::string_view what);

  LargeBuffer() = default;
  LargeBuffer(LargeBuffer&& other) noexcept;
  LargeBuffer& operator=(LargeBuffer&& other) noexcept;
  LargeBuffer(const LargeBuffer&) = delete;
  LargeBuffer& operator=(const LargeBuffer&) = delete;
  ~LargeBuffer();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }
  template <class T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;  // aligned, inside the mapping
  size_t size_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_size_ = 0;
};

// Reads a whole text file of at most `limit` bytes.
Result<std::string> read_text_file(const std::filesystem::path& path, size_t limit = size_t{256} << 20);

// Writes to a temporary file beside `path` and renames it, so that a reader never sees half a file.
Status write_file(const std::filesystem::path& path, std::string_view contents);

}  // namespace qwen2
