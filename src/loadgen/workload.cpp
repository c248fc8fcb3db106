#include "loadgen/workload.h"

#include <algorithm>
#include <random>

namespace qwen2 {
namespace {

bool is_word(std::string_view text) {
  return text.size() >= 4 && text[0] == ' ' &&
         std::all_of(text.begin() + 1, text.end(), [](char c) { return c >= 'a' && c <= 'z'; });
}

constexpr size_t kMinWords = 64;
constexpr size_t kMaxWords = 8192;

}  // namespace

Result<PromptMaker> PromptMaker::create(const Tokenizer& tokenizer) {
  PromptMaker maker;
  for (size_t id = 0; id < tokenizer.size() && maker.words_.size() < kMaxWords; ++id) {
    const std::string text(tokenizer.token_bytes(static_cast<TokenId>(id)));
    if (!is_word(text)) continue;
    QWEN2_TRY(const auto tokens, tokenizer.encode(MarkedText(text)));
    if (tokens.size() == 1) maker.words_.push_back(text);
  }
  if (maker.words_.size() < kMinWords) {
    return fail(ErrorKind::kUnsupported,
                "the tokeniser has only {} whole words; prompts of an exact length need {}",
                maker.words_.size(), kMinWords);
  }
  return maker;
}

std::string PromptMaker::make(int64_t length, uint64_t seed, uint64_t index, int64_t shared) const {
  const int64_t common = std::min(shared, length - 1);
  return words(common, seed, UINT64_MAX) + words(length - std::max<int64_t>(0, common), seed, index);
}

std::string PromptMaker::words(int64_t count, uint64_t seed, uint64_t index) const {
  std::seed_seq mixed{seed, seed >> 32, index, index >> 32};
  std::mt19937_64 random(mixed);
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += words_[random() % words_.size()];
  return text;
}

}  // namespace qwen2
