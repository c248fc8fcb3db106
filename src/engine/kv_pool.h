// The pages of the KV cache: which are free, and which request holds each of the others.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace qwen2 {

class KvPool;

// Pages held by one request; gives them back when destroyed.
class PageLease {
 public:
  PageLease() = default;
  PageLease(PageLease&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), pages_(std::move(other.pages_)) {}
  PageLease& operator=(PageLease&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(pages_, other.pages_);
    return *this;
  }
  PageLease(const PageLease&) = delete;
  PageLease& operator=(const PageLease&) = delete;
  ~PageLease();

  [[nodiscard]] const std::vector<uint32_t>& pages() const { return pages_; }

 private:
  friend class KvPool;
  PageLease(KvPool* pool, std::vector<uint32_t> pages) : pool_(pool), pages_(std::move(pages)) {}
  KvPool* pool_ = nullptr;
  std::vector<uint32_t> pages_;
};

// Reservation at admission: a request takes all the pages it can ever need, so that no running request can
// run out of memory or be evicted. Not thread-safe.
class KvPool {
 public:
  KvPool(int64_t pages, int64_t page_tokens);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  // Pages for `tokens` tokens; nothing when too few are free.
  [[nodiscard]] std::optional<PageLease> reserve(int64_t tokens);
  [[nodiscard]] int64_t pages_for(int64_t tokens) const { return (tokens + page_tokens_ - 1) / page_tokens_; }
  [[nodiscard]] int64_t total_pages() const { return total_; }
  [[nodiscard]] int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }

 private:
  friend class PageLease;
  int64_t total_;
  int64_t page_tokens_;
  std::vector<uint32_t> free_;
};

}  // namespace qwen2
