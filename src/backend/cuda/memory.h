// CUDA's error codes as Status, and owners of device and page-locked memory.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>
#include <utility>

#include "base/error.h"

namespace qwen2 {

inline Status cuda_status(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  const ErrorKind kind = error == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kInternal;
  return fail(kind, "CUDA: {}: {}", what, cudaGetErrorString(error));
}

// A device allocation. They are counted, so that tests can show that a running backend makes none.
class DeviceBuffer {
 public:
  static Result<DeviceBuffer> allocate(size_t bytes, std::string_view what) {
    DeviceBuffer buffer;
    void* data = nullptr;
    QWEN2_CHECK(cuda_status(cudaMalloc(&data, bytes), what));
    buffer.data_ = static_cast<std::byte*>(data);
    buffer.size_ = bytes;
    ++count;
    return buffer;
  }
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) cudaFree(data_);
  }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }

  inline static int count = 0;  // of allocations so far

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Page-locked host memory, which the GPU reads and writes itself.
class PinnedBuffer {
 public:
  static Result<PinnedBuffer> allocate(size_t bytes, std::string_view what) {
    PinnedBuffer buffer;
    void* data = nullptr;
    QWEN2_CHECK(cuda_status(cudaMallocHost(&data, bytes), what));
    buffer.data_ = static_cast<std::byte*>(data);
    return buffer;
  }
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept { std::swap(data_, other.data_); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  [[nodiscard]] std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

}  // namespace qwen2
