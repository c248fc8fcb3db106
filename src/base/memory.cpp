#include "base/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

namespace qwen2 {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

std::unexpected<Error> os_error(std::string_view action, const std::filesystem::path& path) {
  const int code = errno;
  return fail(code == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo, "cannot {} '{}': {}", action,
              path.string(), std::strerror(code));
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return os_error("open", path);
  struct stat info{};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return fail(ErrorKind::kIo, "'{}' is not a regular file", path.string());
  }
  MappedFile file;
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ > 0) {
    void* mapped = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      file.size_ = 0;
      auto error = os_error("map", path);
      ::close(fd);
      return error;
    }
    file.data_ = static_cast<const std::byte*>(mapped);
  }
  ::close(fd);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(std::span<const std::byte> part) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto offset = static_cast<size_t>(part.data() - data_);  // the mapping starts at a page
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + part.size()) / page * page;
  if (end > begin) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

Result<LargeBuffer> LargeBuffer::allocate(size_t bytes, std::string_view what) {
  LargeBuffer buffer;
  if (bytes == 0) return buffer;
  const bool large = bytes >= 4 * kHugePage;
  const size_t mapping_size = bytes + (large ? kHugePage : 0);
  void* mapped = mapping_size < bytes ? MAP_FAILED
                                      : ::mmap(nullptr, mapping_size, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    return fail(ErrorKind::kOutOfMemory, "cannot allocate {} bytes for {}", bytes, what);
  }
  buffer.mapping_ = mapped;
  buffer.mapping_size_ = mapping_size;
  buffer.size_ = bytes;
  buffer.data_ = static_cast<std::byte*>(mapped);
  if (large) {
    buffer.data_ += (kHugePage - reinterpret_cast<uintptr_t>(mapped) % kHugePage) % kHugePage;
    ::madvise(buffer.data_, bytes, MADV_HUGEPAGE);  // advice: failure is harmless
  }
  return buffer;
}

LargeBuffer::LargeBuffer(LargeBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(std::exchange(other.mapping_size_, 0)) {}

LargeBuffer& LargeBuffer::operator=(LargeBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  return *this;
}

LargeBuffer::~LargeBuffer() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_size_);
}

Result<std::string> read_text_file(const std::filesystem::path& path, size_t limit) {
  QWEN2_TRY(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  if (bytes.size() > limit) {
    return fail(ErrorKind::kFormat, "'{}' has {} bytes, at most {} were expected", path.string(),
                bytes.size(), limit);
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Status write_file(const std::filesystem::path& path, std::string_view contents) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out.write(contents.data(), static_cast<std::streamsize>(contents.size()));
    out.flush();
    if (!out) return os_error("write", temporary);
  }
  std::error_code code;
  std::filesystem::rename(temporary, path, code);
  if (code) return fail(ErrorKind::kIo, "cannot write '{}': {}", path.string(), code.message());
  return {};
}

}  // namespace qwen2
