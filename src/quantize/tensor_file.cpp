#include "quantize/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

namespace qwen2::quantize {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr size_t kAlignment = 8;  // of the data section, as the reference implementation has it

std::unexpected<Error> system_error(std::string_view action, const fs::path& path, int code) {
  return fail(ErrorKind::kIo, "cannot {} '{}': {}", action, path.string(), std::strerror(code));
}

uint64_t byte_size(const TensorSpec& tensor) {
  uint64_t bytes = tensor.dtype == "F32" || tensor.dtype == "I32" ? 4 : 2;
  for (const int64_t size : tensor.shape) bytes *= static_cast<uint64_t>(size);
  return bytes;
}

}  // namespace

Result<std::unique_ptr<TensorFile>> create_safetensors(const fs::path& path,
                                                       std::span<const TensorSpec> tensors) {
  json::object header{{"__metadata__", json::object{{"format", "pt"}}}};
  uint64_t end = 0;
  for (const TensorSpec& tensor : tensors) {
    const uint64_t begin = std::exchange(end, end + byte_size(tensor));
    header[tensor.name] = json::object{{"dtype", tensor.dtype},
                                       {"shape", json::value_from(tensor.shape)},
                                       {"data_offsets", json::value_from(std::vector<uint64_t>{begin, end})}};
  }
  std::string text = json::serialize(header);
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  const uint64_t length = text.size();
  std::vector<std::byte> bytes(sizeof length + length);
  std::memcpy(bytes.data(), &length, sizeof length);
  std::memcpy(bytes.data() + sizeof length, text.data(), length);
  std::map<std::string, TensorFile::Place, std::less<>> places;
  uint64_t begin = bytes.size();
  for (const TensorSpec& tensor : tensors) {
    places[tensor.name] = {begin, byte_size(tensor)};
    begin += byte_size(tensor);
  }
  return TensorFile::create(path, bytes, std::move(places));
}

Result<std::unique_ptr<TensorFile>> TensorFile::create(const fs::path& path,
                                                       std::span<const std::byte> header,
                                                       std::map<std::string, Place, std::less<>> places) {
  std::unique_ptr<TensorFile> writer(new TensorFile);
  writer->file_bytes_ = header.size();
  for (const auto& [name, place] : places) {
    writer->data_bytes_ += place.size;
    writer->file_bytes_ = std::max(writer->file_bytes_, place.begin + place.size);
  }
  writer->places_ = std::move(places);
  writer->path_ = path;
  const fs::path temporary = path.string() + ".tmp";
  writer->file_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer->file_ < 0) return system_error("create", temporary, errno);
  writer->temporary_ = temporary;
  QWEN2_CHECK(writer->write_at(0, header));
  // Asks for the room now: a full disk is better known before the work than after it. Where the file system
  // cannot reserve, writes report it.
  const int full = ::posix_fallocate(writer->file_, 0, static_cast<off_t>(writer->file_bytes()));
  if (full == ENOSPC || full == EFBIG) return system_error("write", temporary, full);
  return writer;
}

TensorFile::~TensorFile() {
  if (file_ >= 0) ::close(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status TensorFile::write_at(uint64_t offset, std::span<const std::byte> data) const {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(file_, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return system_error("write", temporary_, count == 0 ? ENOSPC : errno);
    data = data.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

Status TensorFile::write(std::string_view name, uint64_t offset, std::span<const std::byte> data) {
  const auto found = places_.find(name);
  if (found == places_.end())
    return fail(ErrorKind::kInternal, "'{}' has no tensor '{}'", path_.string(), name);
  const Place& place = found->second;
  if (offset > place.size || data.size() > place.size - offset) {
    return fail(ErrorKind::kInternal, "'{}': {} bytes at {} are outside of tensor '{}' of {}", path_.string(),
                data.size(), offset, name, place.size);
  }
  QWEN2_CHECK(write_at(place.begin + offset, data));
  written_ += data.size();
  return {};
}

Status TensorFile::finish() {
  if (written_ != data_bytes_) {
    return fail(ErrorKind::kInternal, "'{}': {} of {} bytes were written", path_.string(), written_.load(),
                data_bytes_);
  }
  if (::fsync(file_) != 0) return system_error("write", temporary_, errno);
  const int file = std::exchange(file_, -1);
  if (::close(file) != 0) return system_error("close", temporary_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return system_error("rename", temporary_, errno);
  temporary_.clear();
  return {};
}

}  // namespace qwen2::quantize
