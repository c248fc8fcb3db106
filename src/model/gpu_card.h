// What a memory plan and its rooflines need to know of a card; the cards are data (data/gpus.json).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"

namespace qwen2 {

struct GpuCard {
  std::string name;
  std::string title;
  uint64_t memory_bytes = 0;
  double bandwidth = 0;   // bytes a second
  double fp16_flops = 0;  // fp16 products with float sums, a second
  uint64_t context_bytes = 0;
  bool measured = false;
};

// A file with {"gpus": [...]}, or with one card's object.
Result<std::vector<GpuCard>> read_gpu_cards(const std::filesystem::path& file);

}  // namespace qwen2
