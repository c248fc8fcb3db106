#include "tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <queue>

namespace qwen2 {
namespace {

constexpr size_t kShortPiece = 24;  // bytes up to which scanning for the best merge beats a heap
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

uint64_t pair_key(TokenId left, TokenId right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

size_t Bpe::TextHash::operator()(std::string_view text) const {
  uint64_t hash = text.size() * 0x9e3779b97f4a7c15U;
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + i, 8);
    hash = (hash ^ word) * 0xff51afd7ed558ccdU;
    hash ^= hash >> 32;
  }
  uint64_t tail = 0;
  std::memcpy(&tail, text.data() + i, text.size() - i);
  hash = (hash ^ tail) * 0xff51afd7ed558ccdU;
  return static_cast<size_t>(hash ^ (hash >> 32));
}

Result<Bpe> Bpe::create(std::vector<std::pair<std::string, TokenId>> tokens,
                        const std::vector<std::pair<std::string, std::string>>& merges) {
  Bpe bpe;
  bpe.tokens_ = std::move(tokens);
  bpe.by_text_.reserve(bpe.tokens_.size());
  for (size_t i = 0; i < bpe.tokens_.size(); ++i) {
    bpe.by_text_.emplace(bpe.tokens_[i].first, static_cast<uint32_t>(i));
  }
  const auto id_of = [&](std::string_view text) -> TokenId {
    const auto found = bpe.by_text_.find(text);
    return found == bpe.by_text_.end() ? -1 : bpe.tokens_[found->second].second;
  };
  for (size_t byte = 0; byte < 256; ++byte) {
    bpe.bytes_[byte] = id_of(std::string(1, static_cast<char>(byte)));
    if (bpe.bytes_[byte] < 0)
      return fail(ErrorKind::kFormat, "byte {:#04x} has no token in the vocabulary", byte);
  }
  bpe.merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const TokenId a = id_of(left);
    const TokenId b = id_of(right);
    const TokenId result = id_of(left + right);
    if (a < 0 || b < 0 || result < 0) {
      return fail(ErrorKind::kFormat, "merge {} has a part or a result that is not in the vocabulary", rank);
    }
    bpe.merges_.emplace(pair_key(a, b), Merge{static_cast<uint32_t>(rank), result});
  }
  bpe.whole_ = std::vector<std::atomic<uint8_t>>(bpe.tokens_.size());
  return bpe;
}

const Bpe::Merge* Bpe::find_merge(TokenId left, TokenId right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view piece, std::vector<TokenId>& out) const {
  // Most pieces are tokens already. Whether merging would really end there is found out once a token.
  const auto found = by_text_.find(piece);
  if (found == by_text_.end())
    return piece.size() <= kShortPiece ? merge_short(piece, out) : merge_long(piece, out);
  std::atomic<uint8_t>& whole = whole_[found->second];
  const uint8_t state = whole.load(std::memory_order_relaxed);
  const size_t start = out.size();
  if (state != 1) {
    merge_long(piece, out);
    const bool same = out.size() == start + 1 && out.back() == tokens_[found->second].second;
    whole.store(same ? 1 : 2, std::memory_order_relaxed);
    return;
  }
  out.push_back(tokens_[found->second].second);
}

void Bpe::merge_short(std::string_view piece, std::vector<TokenId>& out) const {
  std::array<TokenId, kShortPiece> ids{};
  std::array<const Merge*, kShortPiece> candidates{};  // of ids[i] and ids[i + 1]
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) ids[i] = bytes_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < count; ++i) candidates[i] = find_merge(ids[i], ids[i + 1]);
  while (count > 1) {
    size_t best = count;
    uint32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (candidates[i] != nullptr && candidates[i]->rank < best_rank) {
        best_rank = candidates[i]->rank;
        best = i;
      }
    }
    if (best == count) break;
    ids[best] = candidates[best]->result;
    std::copy(ids.begin() + static_cast<ptrdiff_t>(best) + 2, ids.begin() + static_cast<ptrdiff_t>(count),
              ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    std::copy(candidates.begin() + static_cast<ptrdiff_t>(best) + 1,
              candidates.begin() + static_cast<ptrdiff_t>(count) - 1,
              candidates.begin() + static_cast<ptrdiff_t>(best));
    --count;
    if (best + 1 < count) candidates[best] = find_merge(ids[best], ids[best + 1]);
    if (best > 0) candidates[best - 1] = find_merge(ids[best - 1], ids[best]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count));
}

// The same merges in O(n log n): a linked list of symbols and a heap of candidates, checked when taken.
void Bpe::merge_long(std::string_view piece, std::vector<TokenId>& out) const {
  struct Symbol {
    TokenId id;
    int32_t previous, next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;
    TokenId left, right, result;
    bool operator<(const Candidate& other) const {
      return std::pair(rank, position) > std::pair(other.rank, other.position);
    }
  };
  const auto size = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  std::priority_queue<Candidate> heap;
  const auto offer = [&](int32_t position) {
    if (position < 0) return;
    const Symbol& left = symbols[static_cast<size_t>(position)];
    if (left.next >= size) return;
    const Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (const Merge* merge = find_merge(left.id, right.id)) {
      heap.push({merge->rank, position, left.id, right.id, merge->result});
    }
  };
  for (int32_t i = 0; i < size; ++i) {
    symbols[static_cast<size_t>(i)] = {bytes_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])], i - 1,
                                       i + 1};
  }
  for (int32_t i = 0; i + 1 < size; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate candidate = heap.top();
    heap.pop();
    Symbol& left = symbols[static_cast<size_t>(candidate.position)];
    if (left.id != candidate.left || left.next >= size) continue;  // merged away since
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != candidate.right) continue;
    left.id = candidate.result;
    right.id = -1;
    left.next = right.next;
    if (left.next < size) symbols[static_cast<size_t>(left.next)].previous = candidate.position;
    offer(left.previous);
    offer(candidate.position);
  }
  for (int32_t i = 0; i < size; i = symbols[static_cast<size_t>(i)].next)
    out.push_back(symbols[static_cast<size_t>(i)].id);
}

}  // namespace qwen2
