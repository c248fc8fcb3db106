#include "checkpoint/tensor_table.h"

#include <cmath>

namespace qwen2 {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

const RawTensor* TensorTable::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<const RawTensor*> TensorTable::get(std::string_view name, const std::vector<int64_t>& shape) const {
  const RawTensor* tensor = find(name);
  if (tensor == nullptr) {
    return fail(ErrorKind::kNotFound, "'{}': tensor '{}' is missing", folder_.string(), name);
  }
  if (tensor->shape != shape) {
    return fail(ErrorKind::kFormat, "'{}': tensor '{}' has shape {}, the configuration wants {}",
                tensor->path, name, shape_text(tensor->shape), shape_text(shape));
  }
  return tensor;
}

Result<const RawTensor*> TensorTable::get(std::string_view name, std::string_view dtype,
                                          const std::vector<int64_t>& shape) const {
  QWEN2_TRY(const RawTensor* tensor, get(name, shape));
  if (tensor->dtype != dtype) {
    return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has dtype {}; {} was expected", tensor->path,
                name, tensor->dtype, dtype);
  }
  return tensor;
}

Result<FloatTensor> TensorTable::get_floats(std::string_view name, const std::vector<int64_t>& shape) const {
  QWEN2_TRY(const RawTensor* tensor, get(name, shape));
  QWEN2_TRY(const DType type, float_dtype(name, *tensor));
  return FloatTensor(*tensor, type);
}

Result<DType> float_dtype(std::string_view name, const RawTensor& tensor) {
  if (tensor.dtype == "BF16") return DType::kBF16;
  if (tensor.dtype == "F16") return DType::kF16;
  if (tensor.dtype == "F32") return DType::kF32;
  return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has dtype {}; BF16, F16 or F32 was expected",
              tensor.path, name, tensor.dtype);
}

Result<FloatTensor> finite_floats(const TensorTable& tensors, std::string_view name,
                                  const std::vector<int64_t>& shape) {
  QWEN2_TRY(const FloatTensor floats, tensors.get_floats(name, shape));
  QWEN2_CHECK(check_finite(name, floats));
  return floats;
}

Status check_finite(std::string_view name, const FloatTensor& tensor) {
  const std::vector<int64_t>& shape = tensor.raw().shape;
  for (int64_t i = 0; i < tensor.size(); ++i) {
    if (std::isfinite(tensor.at(i))) continue;
    const std::string place =
        shape.size() == 2 ? fmt::format("{}, {}", i / shape[1], i % shape[1]) : fmt::format("{}", i);
    return fail(ErrorKind::kFormat,
                "'{}': tensor '{}' holds an infinite or NaN value at [{}]; finite ones were expected",
                tensor.raw().path, name, place);
  }
  return {};
}

}  // namespace qwen2
