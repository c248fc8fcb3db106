// The tensors of a safetensors folder by name, as stored, with the checks that every reader of them makes.
#pragma once

#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "tensor/dtype.h"

namespace qwen2 {

struct RawTensor {
  std::string dtype;  // as in the file: "BF16", "I32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // not aligned
  const MappedFile* file = nullptr;
  std::string path;  // of the file, for messages

  template <class T>
  [[nodiscard]] T at(int64_t index) const {
    T value;
    std::memcpy(&value, bytes.data() + static_cast<size_t>(index) * sizeof(T), sizeof(T));
    return value;
  }
  void release() const { file->release(bytes); }
};

// A tensor of BF16, F16 or F32 whose elements are read one by one: scales, minima, tables.
class FloatTensor {
 public:
  FloatTensor() = default;
  FloatTensor(const RawTensor& tensor, DType type) : tensor_(&tensor), type_(type) {}

  [[nodiscard]] const RawTensor& raw() const { return *tensor_; }
  [[nodiscard]] DType type() const { return type_; }
  [[nodiscard]] int64_t size() const {
    return static_cast<int64_t>(tensor_->bytes.size() / dtype_bytes(type_));
  }
  [[nodiscard]] float at(int64_t index) const {
    float value = 0;
    to_floats(tensor_->bytes.data() + static_cast<size_t>(index) * dtype_bytes(type_), type_, 1, &value);
    return value;
  }

 private:
  const RawTensor* tensor_ = nullptr;
  DType type_ = DType::kF32;
};

class TensorTable {
 public:
  explicit TensorTable(std::filesystem::path folder) : folder_(std::move(folder)) {}

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  void add(const std::string& name, RawTensor tensor) { tensors_.emplace(name, std::move(tensor)); }
  // Null when there is none.
  [[nodiscard]] const RawTensor* find(std::string_view name) const;
  // A missing tensor or another shape is an error.
  [[nodiscard]] Result<const RawTensor*> get(std::string_view name, const std::vector<int64_t>& shape) const;
  // The same; another dtype is an error too.
  [[nodiscard]] Result<const RawTensor*> get(std::string_view name, std::string_view dtype,
                                             const std::vector<int64_t>& shape) const;
  // The same for a tensor of floats: BF16, F16 or F32.
  [[nodiscard]] Result<FloatTensor> get_floats(std::string_view name,
                                               const std::vector<int64_t>& shape) const;

 private:
  std::filesystem::path folder_;
  std::map<std::string, RawTensor, std::less<>> tensors_;
};

// The element type of an unquantised tensor; any but BF16, F16 and F32 is an error.
Result<DType> float_dtype(std::string_view name, const RawTensor& tensor);

// A tensor of this shape whose elements are all finite.
Result<FloatTensor> finite_floats(const TensorTable& tensors, std::string_view name,
                                  const std::vector<int64_t>& shape);
// An infinite or NaN element is an error.
Status check_finite(std::string_view name, const FloatTensor& tensor);

}  // namespace qwen2
