#include "engine/scheduler.h"

#include <algorithm>

namespace qwen2 {

Sequence::Sequence(GenerationRequest request_, const Tokenizer* tokenizer, int64_t vocab_size,
                   EventCallback callback_)
    : request(std::move(request_)),
      tokens(request.prompt),
      sampler(request.sampling, request.prompt, vocab_size),
      stops(request.stop),
      callback(std::move(callback_)) {
  if (tokenizer != nullptr) decoder.emplace(*tokenizer);
}

void Scheduler::admit(double now) {
  const int64_t places = policy_ == Policy::kSerial ? 1 : limits_.max_num_seqs;
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < places) {
    Sequence& next = *waiting_.front();
    auto pages = pool_->reserve(next.prompt_size() + next.request.max_new_tokens);
    if (!pages) return;  // the first in the queue goes first, so that long requests are not starved
    next.pages = std::move(*pages);
    next.admitted = now;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  const int64_t boundary = (sequence.computed / limits_.prefill_chunk + 1) * limits_.prefill_chunk;
  return std::min(boundary, sequence.prompt_size()) - sequence.computed;
}

std::vector<StepItem> Scheduler::next_step() const {
  std::vector<StepItem> step;
  int64_t budget = limits_.max_batch_tokens;
  for (const SequencePtr& sequence : running_) {
    if (sequence->in_prompt()) continue;
    // Its last token is on its way.
    if (sequence->generated() + sequence->pending >= sequence->request.max_new_tokens) continue;
    step.push_back({sequence.get(), 1});
    --budget;
  }
  bool any_chunk = false;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->in_prompt()) continue;
    const int64_t count = chunk_size(*sequence);
    if (any_chunk && count > budget) break;
    step.push_back({sequence.get(), count});
    budget -= count;
    any_chunk = true;
  }
  return step;
}

void Scheduler::remove(const Sequence* sequence) {
  const auto same = [&](const SequencePtr& other) { return other.get() == sequence; };
  std::erase_if(running_, same);
  std::erase_if(waiting_, same);
}

}  // namespace qwen2
