// The safetensors container: an 8-byte little-endian header length, a JSON header, raw tensors.
// Format: https://github.com/huggingface/safetensors#format
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "tensor/dtype.h"

namespace qwen2 {

struct SafetensorsEntry {
  std::string dtype;  // "BF16", "F16", "F32", "I32", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data section
  uint64_t end = 0;
};

struct SafetensorsHeader {
  uint64_t data_start = 0;  // bytes from the start of the file
  std::map<std::string, SafetensorsEntry> tensors;
};

// Parses and checks a whole file: every size and offset is held against the file's length, a tensor's bytes
// against its shape and type, and tensors must cover the data section without overlap, gap or rest.
Result<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file);

}  // namespace qwen2
