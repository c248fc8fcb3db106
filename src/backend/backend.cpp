#include "backend/backend.h"

#include "base/parallel.h"

namespace qwen2 {

// Each sampler is one thread's work.
Status Backend::begin(std::span<const Chunk> chunks, std::span<Sampler* const> samplers) {
  QWEN2_TRY(const Logits logits, forward(chunks));
  begun_.resize(samplers.size());
  const auto sample_one = [&](int64_t i) {
    const auto row = static_cast<size_t>(i);
    begun_[row] = samplers[row]->sample(logits.row(row));
  };
  if (samplers.size() > 1) {
    parallel_items(static_cast<int64_t>(samplers.size()), sample_one);
  } else if (samplers.size() == 1) {
    sample_one(0);  // shorter than waking the other threads
  }
  return {};
}

Result<std::vector<TokenId>> Backend::finish() {
  return std::move(begun_);
}

Result<std::vector<TokenId>> Backend::sample(std::span<const Chunk> chunks,
                                             std::span<Sampler* const> samplers) {
  QWEN2_CHECK(begin(chunks, samplers));
  return finish();
}

}  // namespace qwen2
