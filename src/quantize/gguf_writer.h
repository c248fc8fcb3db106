// A .gguf file of a Qwen2 model, rounded to nearest in blocks of 32 weights: Q8_0, or Q4_0 with the embedding
// and the head in Q8_0. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks:
// `block_q8_0` and `block_q4_0` in https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#pragma once

#include <filesystem>
#include <functional>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "kernels/cpu/kernels.h"
#include "model/qwen2_config.h"

namespace qwen2::quantize {

constexpr int64_t kGgufGroup = 32;

struct GgufJob {
  const Checkpoint& checkpoint;
  int bits;                                                    // 8: Q8_0, 4: Q4_0
  TokenizerTexts tokenizer;                                    // may be empty: the file has no tokeniser then
  std::filesystem::path output;                                // a file that does not exist
  std::function<void(int64_t done, int64_t layers)> progress;  // may be empty
};

// Needs memory for the metadata and a few rows: matrices are read, rounded and written row by row. A model
// that is quantised already is an error.
Status write_gguf(const GgufJob& job);

}  // namespace qwen2::quantize
