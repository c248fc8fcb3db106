// Byte-level BPE: pieces of text to token ids.
#pragma once

#include <atomic>
#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace qwen2 {

using TokenId = int32_t;

class Bpe {
 public:
  // `tokens`: (raw bytes, id); `merges`: pairs of raw bytes, the most important first. Every byte must be a
  // token and every merge's parts and result too.
  static Result<Bpe> create(std::vector<std::pair<std::string, TokenId>> tokens,
                            const std::vector<std::pair<std::string, std::string>>& merges);

  // Appends the ids of one piece. Thread-safe.
  void encode(std::string_view piece, std::vector<TokenId>& out) const;

 private:
  struct Merge {
    uint32_t rank;
    TokenId result;
  };
  struct Hash {
    size_t operator()(uint64_t key) const {
      return static_cast<size_t>((key ^ (key >> 29)) * 0x9e3779b97f4a7c15U);
    }
  };
  struct TextHash {
    size_t operator()(std::string_view text) const;
  };

  [[nodiscard]] const Merge* find_merge(TokenId left, TokenId right) const;
  void merge_short(std::string_view piece, std::vector<TokenId>& out) const;
  void merge_long(std::string_view piece, std::vector<TokenId>& out) const;

  std::vector<std::pair<std::string, TokenId>> tokens_;
  boost::unordered_flat_map<std::string_view, uint32_t, TextHash> by_text_;  // to an index of tokens_
  boost::unordered_flat_map<uint64_t, Merge, Hash> merges_;
  std::array<TokenId, 256> bytes_{};
  // What merging the bytes of tokens_[i] gives: 0 not known yet, 1 the token itself, 2 something else.
  mutable std::vector<std::atomic<uint8_t>> whole_;
};

}  // namespace qwen2
