#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/units.h"

namespace qwen2 {

Engine::Engine(std::unique_ptr<Backend> backend, const Tokenizer* tokenizer, const EngineOptions& options)
    : backend_(std::move(backend)),
      tokenizer_(tokenizer),
      options_(options),
      pool_(backend_->plan().kv_pages, backend_->page_tokens()),
      scheduler_(options.policy, backend_->plan().limits, pool_) {
  publish_stats();
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
  abort();
  thread_.join();
}

int64_t Engine::places() const {
  return options_.policy == Policy::kSerial ? 1 : backend_->plan().limits.max_num_seqs;
}

Status Engine::check_request(const GenerationRequest& request) const {
  const Limits& limits = backend_->plan().limits;
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0) return fail(ErrorKind::kInvalidArgument, "the prompt is empty");
  if (request.max_new_tokens < 1) return fail(ErrorKind::kInvalidArgument, "'max_tokens' must be at least 1");
  if (prompt > limits.max_model_len || request.max_new_tokens > limits.max_model_len - prompt) {
    return fail(ErrorKind::kInvalidArgument,
                "the prompt has {} tokens and {} more were asked for; together at most {} are allowed",
                prompt, request.max_new_tokens, limits.max_model_len);
  }
  if (pool_.pages_for(prompt + request.max_new_tokens) > pool_.total_pages()) {
    return fail(ErrorKind::kInvalidArgument, "the request needs more KV cache than the memory plan has");
  }
  for (const TokenId token : request.prompt) {
    if (token < 0 || token >= backend_->config().vocab_size) {
      return fail(ErrorKind::kInvalidArgument, "token id {} is not in the vocabulary of {}", token,
                  backend_->config().vocab_size);
    }
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return fail(ErrorKind::kInvalidArgument, "'stop' must not hold an empty string");
  }
  return check(request.sampling);
}

Result<std::shared_ptr<RequestHandle>> Engine::submit(GenerationRequest request, EventCallback callback) {
  QWEN2_CHECK(check_request(request));
  auto sequence = std::make_shared<Sequence>(std::move(request), tokenizer_, backend_->config().vocab_size,
                                             std::move(callback));
  sequence->submitted = now_seconds();
  const std::scoped_lock lock(mutex_);
  if (closing_) return fail(ErrorKind::kUnavailable, "the service is shutting down");
  if (in_engine_ >= places() + options_.max_queue_requests) {
    ++rejected_;
    return fail(ErrorKind::kUnavailable, "the queue is full: {} requests run or wait, {} may", in_engine_,
                places() + options_.max_queue_requests);
  }
  ++in_engine_;
  submitted_.push_back(sequence);
  wake_.notify_one();
  return std::make_shared<RequestHandle>(std::move(sequence));
}

void Engine::begin_shutdown() {
  const std::scoped_lock lock(mutex_);
  closing_ = true;
  wake_.notify_one();
}

void Engine::abort() {
  const std::scoped_lock lock(mutex_);
  closing_ = true;
  aborting_ = true;
  wake_.notify_one();
}

EngineStats Engine::stats() const {
  const std::scoped_lock lock(mutex_);
  EngineStats stats = published_;
  stats.rejected = rejected_;
  stats.waiting = std::max<int64_t>(0, in_engine_ - stats.running);
  return stats;
}

int64_t Engine::retry_after_seconds() const {
  const EngineStats now = stats();
  const double wait =
      now.mean_request_seconds * static_cast<double>(now.waiting + 1) / static_cast<double>(places());
  return std::clamp<int64_t>(static_cast<int64_t>(std::ceil(wait)), 1, 60);
}

void Engine::run() {
  std::unique_lock lock(mutex_);
  while (take_submitted(lock)) {
    lock.unlock();
    drop_cancelled();
    scheduler_.admit(now_seconds());
    step();
    lock.lock();
  }
}

// Sleeps until there is work; false when the engine is to end.
bool Engine::take_submitted(std::unique_lock<std::mutex>& lock) {
  while (true) {
    for (SequencePtr& sequence : submitted_) scheduler_.enqueue(std::move(sequence));
    submitted_.clear();
    if (aborting_) {
      for (const SequencePtr& sequence : scheduler_.running()) sequence->cancelled = true;
    }
    if (closing_ && !scheduler_.waiting().empty()) {
      lock.unlock();
      while (!scheduler_.waiting().empty()) {
        const SequencePtr sequence = scheduler_.waiting().front();
        TokenEvent event;
        event.finish = FinishReason::kError;
        event.error = {ErrorKind::kUnavailable, "the service is shutting down"};
        finish(*sequence, std::move(event));
      }
      lock.lock();
      continue;
    }
    if (!scheduler_.running().empty() || !scheduler_.waiting().empty()) return true;
    if (aborting_) return false;
    wake_.wait(lock);
  }
}

void Engine::drop_cancelled() {
  std::vector<SequencePtr> cancelled;
  for (const SequencePtr& sequence : scheduler_.running()) {
    if (sequence->cancelled) cancelled.push_back(sequence);
  }
  for (const SequencePtr& sequence : scheduler_.waiting()) {
    if (sequence->cancelled) cancelled.push_back(sequence);
  }
  for (const SequencePtr& sequence : cancelled) {
    TokenEvent event;
    event.finish = FinishReason::kCancelled;
    finish(*sequence, std::move(event));
  }
}

// Where the backend overlaps, the next step is begun before this one's tokens are waited for: it takes them
// from the device. A request that ends with them has one row too many in the next step, which is dropped.
void Engine::step() {
  const std::vector<StepItem> items = scheduler_.next_step();
  std::optional<Flight> next;
  if (!items.empty()) {
    auto begun = begin_step(items);
    if (!begun) {
      std::vector<SequencePtr> sequences;
      sequences.reserve(items.size());
      for (const StepItem& item : items) sequences.push_back(item.sequence->shared_from_this());
      fail_step(sequences, begun.error());
    } else {
      next = std::move(*begun);
    }
  }
  if (flight_) finish_step(*std::exchange(flight_, std::nullopt));
  flight_ = std::move(next);
  // Nothing to begin behind it, or no use in waiting.
  if (flight_ && (!backend_->overlaps() || scheduler_.running().empty()))
    finish_step(*std::exchange(flight_, std::nullopt));
  publish_stats();
}

Result<Engine::Flight> Engine::begin_step(const std::vector<StepItem>& items) {
  static constexpr TokenId kUnknown = -1;
  std::vector<Chunk> chunks;
  std::vector<Sampler*> samplers;
  Flight flight;
  for (const StepItem& item : items) {
    Sequence& sequence = *item.sequence;
    Chunk chunk;
    chunk.position = sequence.computed;
    chunk.pages = sequence.pages.pages();
    chunk.needs_logits = item.samples();
    if (sequence.pending > 0) {
      chunk.tokens = std::span(&kUnknown, 1);
      chunk.pending = sequence.place;
    } else {
      chunk.tokens = std::span(sequence.tokens)
                         .subspan(static_cast<size_t>(sequence.computed), static_cast<size_t>(item.count));
    }
    chunks.push_back(chunk);
    flight.sequences.push_back(sequence.shared_from_this());
    flight.prompt_tokens.push_back(sequence.in_prompt() ? item.count : 0);
    flight.samples.push_back(chunk.needs_logits);
    if (chunk.needs_logits) samplers.push_back(&sequence.sampler);
  }
  QWEN2_CHECK(backend_->begin(chunks, samplers));
  int64_t place = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    Sequence& sequence = *items[i].sequence;
    sequence.computed += items[i].count;
    sequence.pending = flight.samples[i] ? 1 : 0;
    if (flight.samples[i]) sequence.place = place++;
  }
  return flight;
}

void Engine::finish_step(const Flight& flight) {
  const auto tokens = backend_->finish();
  if (!tokens) return fail_step(flight.sequences, tokens.error());
  ++counters_.steps;
  const double now = now_seconds();
  size_t row = 0;
  for (size_t i = 0; i < flight.sequences.size(); ++i) {
    Sequence& sequence = *flight.sequences[i];
    counters_.prompt_tokens += flight.prompt_tokens[i];
    if (!flight.samples[i]) continue;
    const TokenId token = (*tokens)[row++];
    if (!sequence.ended) accept_token(sequence, token, now);
  }
}

void Engine::fail_step(const std::vector<SequencePtr>& sequences, const Error& error) {
  for (const SequencePtr& sequence : sequences) {
    if (sequence->ended) continue;
    TokenEvent event;
    event.finish = FinishReason::kError;
    event.error = error;
    finish(*sequence, std::move(event));
  }
}

void Engine::accept_token(Sequence& sequence, TokenId token, double now) {
  if (sequence.generated() == 0) sequence.first_token = now;
  sequence.tokens.push_back(token);
  // Unless the next one has been begun already.
  if (sequence.computed < static_cast<int64_t>(sequence.tokens.size())) sequence.pending = 0;
  ++counters_.generated_tokens;

  TokenEvent event;
  event.token = token;
  event.completion_tokens = sequence.generated();
  const auto ends = [token](const std::vector<TokenId>& ids) {
    return std::ranges::find(ids, token) != ids.end();
  };
  const bool ended = !sequence.request.ignore_eos &&
                     (ends(backend_->config().eos_token_ids) || ends(sequence.request.end_tokens));
  if (sequence.decoder && !ended) event.text = sequence.stops.push(sequence.decoder->push(token));
  if (ended || sequence.stops.stopped()) {
    event.finish = FinishReason::kStop;
  } else if (sequence.generated() >= sequence.request.max_new_tokens) {
    event.finish = FinishReason::kLength;
  }
  if (!event.finish) return sequence.callback(event);
  if (sequence.decoder && !sequence.stops.stopped()) {
    event.text += sequence.stops.push(sequence.decoder->finish());
    event.text += sequence.stops.finish();
  }
  finish(sequence, std::move(event));
}

// Frees the request's pages and place before the callback, so that its receiver finds them free.
void Engine::finish(Sequence& sequence, TokenEvent event) {
  const double now = now_seconds();
  const double admitted = sequence.admitted > 0 ? sequence.admitted : now;
  const double first = sequence.first_token > 0 ? sequence.first_token : now;
  event.completion_tokens = sequence.generated();
  event.timings = {admitted - sequence.submitted, first - admitted, now - first};
  const EventCallback callback = std::move(sequence.callback);
  sequence.ended = true;
  sequence.pages = PageLease();
  ++(event.finish == FinishReason::kCancelled ? counters_.cancelled : counters_.finished);
  double& mean = counters_.mean_request_seconds;
  mean = mean == 0 ? now - admitted : 0.9 * mean + 0.1 * (now - admitted);
  scheduler_.remove(&sequence);  // destroys `sequence`, but for a step in flight that holds it
  {
    const std::scoped_lock lock(mutex_);
    --in_engine_;
  }
  publish_stats();
  callback(event);
}

void Engine::publish_stats() {
  counters_.running = static_cast<int64_t>(scheduler_.running().size());
  counters_.kv_pages = pool_.total_pages();
  counters_.kv_pages_free = pool_.free_pages();
  const std::scoped_lock lock(mutex_);
  published_ = counters_;
}

}  // namespace qwen2
