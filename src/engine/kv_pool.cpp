#include "engine/kv_pool.h"

namespace qwen2 {

PageLease::~PageLease() {
  if (pool_ != nullptr) pool_->free_.insert(pool_->free_.end(), pages_.rbegin(), pages_.rend());
}

KvPool::KvPool(int64_t pages, int64_t page_tokens) : total_(pages), page_tokens_(page_tokens) {
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages; page > 0; --page) free_.push_back(static_cast<uint32_t>(page - 1));
}

std::optional<PageLease> KvPool::reserve(int64_t tokens) {
  const int64_t count = pages_for(tokens);
  if (count > free_pages()) return std::nullopt;
  std::vector<uint32_t> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - static_cast<size_t>(count));
  return PageLease(this, std::move(pages));
}

}  // namespace qwen2
