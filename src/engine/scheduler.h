// Decides which requests run and what each forward pass contains.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "engine/kv_pool.h"
#include "engine/request.h"
#include "engine/stop_matcher.h"
#include "sampling/sampler.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {

enum class Policy {
  kSerial,      // a strict semaphore of one: a request runs alone from its first prompt token to its last
  kContinuous,  // continuous batching: a step holds every decode and the prompt chunks that fit the budget
};

// A request inside the engine. The engine's thread owns everything but `cancelled`.
struct Sequence : std::enable_shared_from_this<Sequence> {
  Sequence(GenerationRequest request_, const Tokenizer* tokenizer, int64_t vocab_size,
           EventCallback callback_);

  GenerationRequest request;
  std::vector<TokenId> tokens;  // prompt and answer
  int64_t computed =
      0;                // tokens whose K and V are in the cache, or will be when the steps in flight are done
  int64_t pending = 0;  // tokens that steps begun will sample: 0 or 1
  int64_t place = 0;    // index of that token among those that its step samples
  bool ended = false;   // whatever is still sampled for it is dropped
  PageLease pages;
  Sampler sampler;
  std::optional<StreamDecoder> decoder;  // none for a model without a tokeniser
  StopMatcher stops;
  EventCallback callback;
  std::atomic<bool> cancelled = false;
  double submitted = 0;
  double admitted = 0;
  double first_token = 0;

  [[nodiscard]] int64_t prompt_size() const { return static_cast<int64_t>(request.prompt.size()); }
  [[nodiscard]] int64_t generated() const { return static_cast<int64_t>(tokens.size()) - prompt_size(); }
  [[nodiscard]] bool in_prompt() const { return computed < prompt_size(); }
};

using SequencePtr = std::shared_ptr<Sequence>;

struct StepItem {
  Sequence* sequence;
  int64_t count;  // tokens from sequence->computed on

  // Whether this step, which has not begun, samples a token for the sequence.
  [[nodiscard]] bool samples() const {
    return sequence->computed + count == static_cast<int64_t>(sequence->tokens.size()) + sequence->pending;
  }
};

class Scheduler {
 public:
  Scheduler(Policy policy, const Limits& limits, KvPool& pool)
      : policy_(policy), limits_(limits), pool_(&pool) {}

  void enqueue(SequencePtr sequence) { waiting_.push_back(std::move(sequence)); }
  // Moves requests from the queue, first come first served, while there is a place and their pages are free.
  void admit(double now);
  // Decodes first, then the next prompt chunk of each request in the order of admission, within the token
  // budget; at least one chunk, so that prompts always move on. Prompts are cut at multiples of
  // prefill_chunk, whatever else runs: together with Backend's promise, a request's tokens do not depend on
  // its neighbours.
  [[nodiscard]] std::vector<StepItem> next_step() const;
  void remove(const Sequence* sequence);

  [[nodiscard]] const std::vector<SequencePtr>& running() const { return running_; }
  [[nodiscard]] std::deque<SequencePtr>& waiting() { return waiting_; }

 private:
  [[nodiscard]] int64_t chunk_size(const Sequence& sequence) const;

  Policy policy_;
  Limits limits_;
  KvPool* pool_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;
};

}  // namespace qwen2
