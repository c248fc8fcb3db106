// The engine: one thread that turns submitted requests into token events.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "engine/kv_pool.h"
#include "engine/request.h"
#include "engine/scheduler.h"

namespace qwen2 {

struct EngineOptions {
  Policy policy = Policy::kContinuous;
  int64_t max_queue_requests = 64;  // waiting beyond the running ones
};

struct EngineStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_pages = 0;
  int64_t kv_pages_free = 0;
  int64_t finished = 0;
  int64_t cancelled = 0;
  int64_t rejected = 0;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t steps = 0;
  double mean_request_seconds = 0;  // of recent requests, from admission to the end
};

// A submitted request; dropping the handle does not cancel it.
class RequestHandle {
 public:
  explicit RequestHandle(SequencePtr sequence) : sequence_(std::move(sequence)) {}
  // The request ends at the next step with FinishReason::kCancelled and its pages are free again.
  void cancel() { sequence_->cancelled.store(true, std::memory_order_relaxed); }

 private:
  SequencePtr sequence_;
};

class Engine {
 public:
  // `tokenizer` may be null (events then carry no text) and must outlive the engine.
  Engine(std::unique_ptr<Backend> backend, const Tokenizer* tokenizer, const EngineOptions& options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  // Checks the request against the model and the plan (kInvalidArgument) and the queue's bound
  // (kUnavailable), before any work is done for it.
  Result<std::shared_ptr<RequestHandle>> submit(GenerationRequest request, EventCallback callback);

  // New requests are refused and waiting ones fail with kUnavailable; running ones end.
  void begin_shutdown();
  // As begin_shutdown(), and running requests are cancelled.
  void abort();

  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] const Backend& backend() const { return *backend_; }
  // Whole seconds after which a refused request may find a place.
  [[nodiscard]] int64_t retry_after_seconds() const;

 private:
  [[nodiscard]] Status check_request(const GenerationRequest& request) const;
  [[nodiscard]] int64_t places() const;
  void run();
  bool take_submitted(std::unique_lock<std::mutex>& lock);
  void drop_cancelled();
  void step();
  // A step that the backend has begun.
  struct Flight {
    std::vector<SequencePtr> sequences;  // in the step's order
    std::vector<int64_t> prompt_tokens;  // of each
    std::vector<bool> samples;
  };
  Result<Flight> begin_step(const std::vector<StepItem>& items);
  void finish_step(const Flight& flight);
  void fail_step(const std::vector<SequencePtr>& sequences, const Error& error);
  void accept_token(Sequence& sequence, TokenId token, double now);
  void finish(Sequence& sequence, TokenEvent event);
  void publish_stats();

  std::unique_ptr<Backend> backend_;
  const Tokenizer* tokenizer_;
  EngineOptions options_;
  KvPool pool_;                   // engine thread only
  Scheduler scheduler_;           // engine thread only
  std::optional<Flight> flight_;  // engine thread only: the step whose tokens are awaited
  EngineStats counters_;          // engine thread only, published by publish_stats

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<SequencePtr> submitted_;
  int64_t in_engine_ = 0;  // submitted and not finished
  int64_t rejected_ = 0;
  bool closing_ = false;
  bool aborting_ = false;
  EngineStats published_;
  std::thread thread_;
};

}  // namespace qwen2
