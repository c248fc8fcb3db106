// Codes in the words of the formats that checkpoint/gptq.cpp and checkpoint/awq.cpp read.
#pragma once

#include <cstdint>
#include <vector>

#include "quantize/rounding.h"

namespace qwen2::quantize {

// The tensors of one module: rows [first, first + count) of a rounded matrix. `count` is a multiple of 8.
struct PackedModule {
  std::vector<uint32_t> qweight;
  std::vector<uint32_t> qzeros;
  std::vector<uint16_t> scales;  // [groups][count]
  std::vector<int32_t> g_idx;    // [cols]; GPTQ only
};

// "checkpoint_format": "gptq", whose zeros are stored less one; a zero of 0 is not allowed.
// qweight [cols / per][count], qzeros [groups][count / per] with per = 32 / bits.
PackedModule pack_gptq(const GroupedWeights& w, int64_t first, int64_t count);

// "version": "gemm", 4 bits: qweight [cols][count / 8], qzeros [groups][count / 8].
PackedModule pack_awq(const GroupedWeights& w, int64_t first, int64_t count);

}  // namespace qwen2::quantize
