// Prompts of an exact token length that differ from each other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {

// Makes texts of exactly `length` tokens out of the tokeniser's whole words in a random order: every prompt
// starts differently, so that no server can share a prefix, unless `shared` tokens at its start are asked
// for. The same seed and index give the same text.
class PromptMaker {
 public:
  static Result<PromptMaker> create(const Tokenizer& tokenizer);

  [[nodiscard]] std::string make(int64_t length, uint64_t seed, uint64_t index, int64_t shared = 0) const;

 private:
  [[nodiscard]] std::string words(int64_t count, uint64_t seed, uint64_t index) const;

  std::vector<std::string> words_;  // each one token, also next to each other
};

}  // namespace qwen2
