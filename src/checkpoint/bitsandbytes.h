// The two layouts of bitsandbytes. A folder may have modules of either and plain ones: tensors say which.
#pragma once

#include <memory>

#include "checkpoint/quantized_reader.h"

namespace qwen2 {

std::unique_ptr<QuantizedReader> bitsandbytes_8bit_reader(const TensorTable& tensors);
std::unique_ptr<QuantizedReader> bitsandbytes_4bit_reader(const TensorTable& tensors);

}  // namespace qwen2
