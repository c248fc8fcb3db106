#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <semaphore>

#include "paths.h"
#include "random_data.h"

namespace qwen2 {
namespace {

// ---- parts ---------------------------------------------------------------------------------------------

TEST(KvPool, LeasesComeBack) {
  KvPool pool(10, 32);
  {
    auto a = pool.reserve(33);
    ASSERT_TRUE(a);
    EXPECT_EQ(a->pages().size(), 2U);
    auto b = pool.reserve(8 * 32);
    ASSERT_TRUE(b);
    EXPECT_EQ(pool.free_pages(), 0);
    EXPECT_FALSE(pool.reserve(1));
    std::vector<uint32_t> all = a->pages();
    all.insert(all.end(), b->pages().begin(), b->pages().end());
    std::sort(all.begin(), all.end());
    EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
    const PageLease moved = std::move(*a);
    EXPECT_EQ(pool.free_pages(), 0);
  }
  EXPECT_EQ(pool.free_pages(), 10);
}

TEST(StopMatcher, FindsStopsAcrossPieces) {
  StopMatcher stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("abE"), "ab");
  EXPECT_EQ(stops.push("N"), "");
  EXPECT_EQ(stops.push("x"), "ENx");  // it was none after all
  EXPECT_EQ(stops.push("y\n"), "y");
  EXPECT_EQ(stops.push("\nz"), "");
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopMatcher, SamePiecesGiveTheSameTextAsTheWhole) {
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int64_t i = test::uniform(0, 30); i > 0; --i) text += static_cast<char>('a' + test::uniform(0, 2));
    std::vector<std::string> stops;
    for (int64_t i = test::uniform(1, 3); i > 0; --i) {
      std::string& stop = stops.emplace_back();
      for (int64_t n = test::uniform(1, 4); n > 0; --n) stop += static_cast<char>('a' + test::uniform(0, 2));
    }
    StopMatcher matcher(stops);
    std::string shown;
    for (size_t at = 0; at < text.size() && !matcher.stopped();) {
      const auto count = static_cast<size_t>(test::uniform(1, 3));
      shown += matcher.push(std::string_view(text).substr(at, count));
      at += count;
    }
    shown += matcher.finish();
    // No stop string is shown, and what is shown begins the text.
    EXPECT_TRUE(text.starts_with(shown));
    for (const std::string& stop : stops) EXPECT_EQ(shown.find(stop), std::string::npos) << text;
    size_t first = std::string::npos;
    for (const std::string& stop : stops) first = std::min(first, text.find(stop));
    EXPECT_EQ(matcher.stopped(), first != std::string::npos);
    if (!matcher.stopped()) {
      EXPECT_EQ(shown, text);
    }
  }
}

TEST(Sampler, GreedyTakesTheLargestAndItsFirst) {
  Sampler sampler({.temperature = 0}, {}, 4);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 3, 2}), 1);
}

TEST(Sampler, FollowsTheDistribution) {
  const std::vector<float> logits{std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)};
  const auto frequencies = [&](SamplingParams params) {
    params.seed = static_cast<uint64_t>(test::uniform(0, 1 << 30));
    Sampler sampler(params, {}, 4);
    std::vector<double> counts(4);
    for (int i = 0; i < 40000; ++i) counts[static_cast<size_t>(sampler.sample(logits))] += 1.0 / 40000;
    return counts;
  };
  const auto expect = [](const std::vector<double>& actual, const std::vector<double>& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(actual[i], expected[i], 0.015) << i;  // six sigma
    };
  };
  expect(frequencies({}), {0.5, 0.3, 0.15, 0.05});
  expect(frequencies({.top_k = 2}), {0.625, 0.375, 0, 0});
  expect(frequencies({.top_p = 0.75F}), {0.625, 0.375, 0, 0});
  expect(frequencies({.top_p = 0.4F}), {1, 0, 0, 0});
  expect(frequencies({.temperature = 0.5F}), {0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365});
}

TEST(Sampler, ASeedRepeatsAndSeedsDiffer) {
  const auto logits = test::normal(500);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.seed = seed}, {}, 500);
    std::vector<TokenId> tokens;
    tokens.reserve(50);
    for (int i = 0; i < 50; ++i) tokens.push_back(sampler.sample(logits));
    return tokens;
  };
  EXPECT_EQ(draw(7), draw(7));
  EXPECT_NE(draw(7), draw(8));
}

TEST(Sampler, PenalisesWhatHasOccurred) {
  const std::vector<TokenId> prompt{0};
  Sampler sampler({.temperature = 0, .repetition_penalty = 2.0F}, prompt, 3);
  const std::vector<float> logits{3.0F, 2.0F, -1.0F};
  EXPECT_EQ(sampler.sample(logits), 1);                                   // 3 / 2 < 2
  EXPECT_EQ(sampler.sample(std::vector<float>{-1.0F, -1.0F, -1.5F}), 2);  // -2, -2, -1.5
}

TEST(Sampler, ChecksRangesAndReadsDefaults) {
  EXPECT_FALSE(check({.temperature = -1}));
  EXPECT_FALSE(check({.temperature = NAN}));
  EXPECT_FALSE(check({.top_k = -2}));
  EXPECT_FALSE(check({.top_p = 0}));
  EXPECT_FALSE(check({.repetition_penalty = 0}));
  const auto defaults =
      sampling_defaults(R"({"temperature":0.7,"top_p":0.8,"top_k":20,"repetition_penalty":1.05})");
  ASSERT_TRUE(defaults);
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_EQ(sampling_defaults(R"({"do_sample":false})")->temperature, 0.0F);
  EXPECT_FALSE(sampling_defaults(R"({"temperature":"hot"})"));
}

// ---- scheduler -----------------------------------------------------------------------------------------

class SchedulerTest : public testing::Test {
 protected:
  SequencePtr add(Scheduler& scheduler, int64_t prompt, int64_t generate) {
    GenerationRequest request;
    request.prompt.assign(static_cast<size_t>(prompt), 1);
    request.max_new_tokens = generate;
    auto sequence = std::make_shared<Sequence>(request, nullptr, 10, [](const TokenEvent&) {});
    scheduler.enqueue(sequence);
    return sequence;
  }
  static void advance(const std::vector<StepItem>& step) {
    for (const StepItem& item : step) {
      const bool samples = item.samples();
      item.sequence->computed += item.count;
      if (samples) item.sequence->tokens.push_back(1);
    }
  }

  Limits limits_{.max_model_len = 1000, .max_num_seqs = 3, .prefill_chunk = 100, .max_batch_tokens = 150};
  KvPool pool_{100, 10};
};

TEST_F(SchedulerTest, SerialRunsOneAtATime) {
  Scheduler scheduler(Policy::kSerial, limits_, pool_);
  const auto first = add(scheduler, 250, 2);
  const auto second = add(scheduler, 10, 2);
  for (const int64_t expected : {100, 100, 50, 1}) {
    scheduler.admit(0);
    ASSERT_EQ(scheduler.running().size(), 1U);
    const auto step = scheduler.next_step();
    ASSERT_EQ(step.size(), 1U);
    EXPECT_EQ(step[0].sequence, first.get());
    EXPECT_EQ(step[0].count, expected);
    advance(step);
  }
  scheduler.remove(first.get());
  scheduler.admit(0);
  EXPECT_EQ(scheduler.running().at(0), second);
}

TEST_F(SchedulerTest, DecodesComeFirstAndPromptsFillTheBudget) {
  Scheduler scheduler(Policy::kContinuous, limits_, pool_);
  const auto decoding = add(scheduler, 10, 5);
  scheduler.admit(0);
  advance(scheduler.next_step());
  const auto big = add(scheduler, 230, 5);
  const auto small = add(scheduler, 40, 5);
  scheduler.admit(0);
  const auto step = scheduler.next_step();
  ASSERT_EQ(step.size(), 3U);
  EXPECT_EQ(step[0].sequence, decoding.get());
  EXPECT_EQ(step[0].count, 1);
  EXPECT_EQ(step[1].sequence, big.get());
  EXPECT_EQ(step[1].count, 100);
  EXPECT_FALSE(step[1].samples());
  EXPECT_EQ(step[2].sequence, small.get());  // 1 + 100 + 40 fit in 150
  EXPECT_TRUE(step[2].samples());
}

TEST_F(SchedulerTest, PromptsMoveOnUnderASmallBudgetAndAreCutAtFixedPlaces) {
  limits_.max_batch_tokens = 1;
  Scheduler scheduler(Policy::kContinuous, limits_, pool_);
  const auto sequence = add(scheduler, 230, 5);
  scheduler.admit(0);
  std::vector<int64_t> counts;
  while (sequence->in_prompt()) {
    const auto step = scheduler.next_step();
    ASSERT_EQ(step.size(), 1U);
    counts.push_back(step[0].count);
    advance(step);
  }
  EXPECT_EQ(counts, (std::vector<int64_t>{100, 100, 30}));
}

TEST_F(SchedulerTest, AdmissionReservesEverythingAndKeepsTheOrder) {
  Scheduler scheduler(Policy::kContinuous, limits_, pool_);
  const auto big = add(scheduler, 500, 300);  // 80 of 100 pages
  const auto second = add(scheduler, 200, 100);
  const auto small = add(scheduler, 5, 5);
  scheduler.admit(0);
  EXPECT_EQ(scheduler.running().size(), 1U);  // the second does not fit, and the third does not overtake it
  EXPECT_EQ(pool_.free_pages(), 20);
  big->pages = PageLease();
  scheduler.remove(big.get());
  scheduler.admit(0);
  EXPECT_EQ(scheduler.running().size(), 2U);
  EXPECT_EQ(scheduler.running().at(0), second);
  EXPECT_EQ(scheduler.running().at(1), small);
}

// ---- engine over a backend whose steps the test lets pass
// ----------------------------------------------------

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(Limits limits) {
    config_.vocab_size = 16;
    config_.eos_token_ids = {15};
    plan_.limits = limits;
    plan_.kv_pages = 64;
    logits_.resize(static_cast<size_t>(16 * limits.max_num_seqs));
  }
  [[nodiscard]] const Qwen2Config& config() const override { return config_; }
  [[nodiscard]] const MemoryPlan& plan() const override { return plan_; }
  [[nodiscard]] int64_t page_tokens() const override { return 8; }
  [[nodiscard]] size_t bytes_per_decode_step() const override { return 0; }
  [[nodiscard]] double measure_read_bandwidth() const override { return 1; }
  [[nodiscard]] std::string describe() const override { return "fake"; }

  Status forward_all(const Chunk& /*chunk*/, const LogitSink& /*sink*/) override {
    return fail(ErrorKind::kUnsupported, "the fake backend has no logits of every token");
  }
  // The next token is the last one plus one.
  Result<Logits> forward(std::span<const Chunk> chunks) override {
    gate.acquire();
    if (failing) return fail(ErrorKind::kInternal, "the fake backend fails");
    std::fill(logits_.begin(), logits_.end(), 0.0F);
    size_t row = 0;
    for (const Chunk& chunk : chunks) {
      if (chunk.needs_logits)
        logits_[16 * row++ + static_cast<size_t>((chunk.tokens.back() + 1) % 16)] = 1.0F;
    }
    largest_batch = std::max(largest_batch.load(), chunks.size());
    order_.clear();
    for (size_t i = 0; i < row; ++i) order_.push_back(static_cast<int64_t>(i));
    return Logits{logits_.data(), 16, 16, order_};
  }

  std::counting_semaphore<> gate{0};
  std::atomic<bool> failing = false;
  std::atomic<size_t> largest_batch = 0;

 private:
  Qwen2Config config_;
  MemoryPlan plan_;
  std::vector<float> logits_;
  std::vector<int64_t> order_;
};

// Collects one request's events.
struct Collector {
  std::vector<TokenId> tokens;
  std::promise<TokenEvent> promise;
  std::future<TokenEvent> ended = promise.get_future();

  EventCallback callback() {
    return [this](const TokenEvent& event) {
      if (event.token >= 0) tokens.push_back(event.token);
      if (event.finish) promise.set_value(event);
    };
  }
};

class EngineTest : public testing::Test {
 protected:
  void start(Policy policy, int64_t max_num_seqs, int64_t queue) {
    auto backend = std::make_unique<FakeBackend>(Limits{
        .max_model_len = 100, .max_num_seqs = max_num_seqs, .prefill_chunk = 16, .max_batch_tokens = 64});
    backend_ = backend.get();
    engine_.emplace(std::move(backend), nullptr, EngineOptions{policy, queue});
  }
  void TearDown() override {
    if (engine_) backend_->gate.release(100000);
  }
  static GenerationRequest request(std::vector<TokenId> prompt, int64_t max_new_tokens) {
    GenerationRequest r;
    r.prompt = std::move(prompt);
    r.max_new_tokens = max_new_tokens;
    r.sampling.temperature = 0;
    return r;
  }

  FakeBackend* backend_ = nullptr;
  std::optional<Engine> engine_;
};

TEST_F(EngineTest, CountsUpToLengthAndStopsAtTheEnd) {
  start(Policy::kContinuous, 2, 2);
  backend_->gate.release(1000);
  Collector length, eos, ignoring;
  ASSERT_TRUE(engine_->submit(request({3}, 4), length.callback()));
  EXPECT_EQ(length.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(length.tokens, (std::vector<TokenId>{4, 5, 6, 7}));
  ASSERT_TRUE(engine_->submit(request({12}, 10), eos.callback()));
  const TokenEvent last = eos.ended.get();
  EXPECT_EQ(last.finish, FinishReason::kStop);
  EXPECT_EQ(eos.tokens, (std::vector<TokenId>{13, 14, 15}));
  EXPECT_EQ(last.completion_tokens, 3);
  auto on = request({12}, 6);
  on.ignore_eos = true;
  ASSERT_TRUE(engine_->submit(on, ignoring.callback()));
  EXPECT_EQ(ignoring.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(ignoring.tokens, (std::vector<TokenId>{13, 14, 15, 0, 1, 2}));
  EXPECT_EQ(engine_->stats().kv_pages_free, 64);
}

TEST_F(EngineTest, RefusesBadRequestsBeforeAnyWork) {
  start(Policy::kContinuous, 2, 2);
  const auto kind = [&](GenerationRequest r) {
    const auto handle = engine_->submit(std::move(r), [](const TokenEvent&) {});
    return handle ? "accepted" : handle.error().message;
  };
  EXPECT_NE(kind(request({}, 1)).find("empty"), std::string::npos);
  EXPECT_NE(kind(request({1}, 0)).find("max_tokens"), std::string::npos);
  EXPECT_NE(kind(request({1}, 100)).find("at most 100"), std::string::npos);
  EXPECT_NE(kind(request({1}, INT64_MAX)).find("at most 100"), std::string::npos);
  EXPECT_NE(kind(request({16}, 1)).find("vocabulary"), std::string::npos);
  EXPECT_NE(kind(request({-1}, 1)).find("vocabulary"), std::string::npos);
  auto bad = request({1}, 1);
  bad.stop = {""};
  EXPECT_NE(kind(bad).find("stop"), std::string::npos);
  bad = request({1}, 1);
  bad.sampling.top_p = 2;
  EXPECT_NE(kind(bad).find("top_p"), std::string::npos);
  EXPECT_EQ(engine_->stats().steps, 0);
}

TEST_F(EngineTest, BoundsTheQueue) {
  start(Policy::kContinuous, 2, 1);
  Collector running[2], waiting;
  for (Collector& c : running) ASSERT_TRUE(engine_->submit(request({1}, 2), c.callback()));
  ASSERT_TRUE(engine_->submit(request({1}, 2), waiting.callback()));
  const auto refused = engine_->submit(request({1}, 2), [](const TokenEvent&) {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnavailable);
  EXPECT_EQ(engine_->stats().rejected, 1);
  EXPECT_GE(engine_->retry_after_seconds(), 1);
  backend_->gate.release(100);
  for (Collector& c : running) EXPECT_EQ(c.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(waiting.ended.get().finish, FinishReason::kLength);
  Collector again;
  EXPECT_TRUE(engine_->submit(request({1}, 2), again.callback()));
  again.ended.wait();
}

TEST_F(EngineTest, SerialNeverBatches) {
  start(Policy::kSerial, 4, 8);
  std::vector<Collector> collectors(5);
  for (Collector& c : collectors) ASSERT_TRUE(engine_->submit(request({1, 2}, 3), c.callback()));
  backend_->gate.release(1000);
  for (Collector& c : collectors) EXPECT_EQ(c.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(backend_->largest_batch, 1U);
}

TEST_F(EngineTest, CancelsRunningAndWaitingRequestsWithoutTouchingOthers) {
  start(Policy::kContinuous, 2, 4);
  Collector kept, cancelled, waiting;
  ASSERT_TRUE(engine_->submit(request({1}, 5), kept.callback()));
  const auto running = engine_->submit(request({1}, 90), cancelled.callback());
  const auto queued = engine_->submit(request({1}, 90), waiting.callback());
  ASSERT_TRUE(running);
  ASSERT_TRUE(queued);
  backend_->gate.release(2);
  (*running)->cancel();
  (*queued)->cancel();
  backend_->gate.release(100);
  EXPECT_EQ(cancelled.ended.get().finish, FinishReason::kCancelled);
  EXPECT_EQ(waiting.ended.get().finish, FinishReason::kCancelled);
  EXPECT_EQ(kept.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(kept.tokens, (std::vector<TokenId>{2, 3, 4, 5, 6}));
  EXPECT_EQ(engine_->stats().kv_pages_free, 64);
  EXPECT_EQ(engine_->stats().cancelled, 2);
}

TEST_F(EngineTest, ShutdownLetsRunningRequestsEndAndRefusesTheRest) {
  start(Policy::kContinuous, 1, 4);
  Collector running, waiting;
  ASSERT_TRUE(engine_->submit(request({1}, 5), running.callback()));
  backend_->gate.release(1);
  while (engine_->stats().steps < 1) std::this_thread::yield();
  ASSERT_TRUE(engine_->submit(request({1}, 5), waiting.callback()));
  engine_->begin_shutdown();
  const auto late = engine_->submit(request({1}, 5), [](const TokenEvent&) {});
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().kind, ErrorKind::kUnavailable);
  backend_->gate.release(100);
  EXPECT_EQ(waiting.ended.get().finish, FinishReason::kError);
  EXPECT_EQ(running.ended.get().finish, FinishReason::kLength);
  EXPECT_EQ(running.tokens.size(), 5U);
}

TEST_F(EngineTest, ABackendFailureEndsItsRequestsAndFreesTheirPages) {
  start(Policy::kContinuous, 2, 4);
  backend_->failing = true;
  Collector failed, later;
  ASSERT_TRUE(engine_->submit(request({1}, 5), failed.callback()));
  backend_->gate.release(1);
  const TokenEvent event = failed.ended.get();
  EXPECT_EQ(event.finish, FinishReason::kError);
  EXPECT_NE(event.error.message.find("fake backend"), std::string::npos);
  EXPECT_EQ(engine_->stats().kv_pages_free, 64);
  backend_->failing = false;
  backend_->gate.release(100);
  ASSERT_TRUE(engine_->submit(request({1}, 2), later.callback()));
  EXPECT_EQ(later.ended.get().finish, FinishReason::kLength);
}

// ---- engine over the CPU backend -------------------------------------------------------------------------

TEST(EngineOnCpu, TokensDoNotDependOnWhatElseRuns) {
  const auto checkpoint = open_checkpoint((test::golden_folder() / "hd64_tied").string());
  ASSERT_TRUE(checkpoint);
  auto backend =
      create_cpu_backend(**checkpoint, {.max_model_len = 512, .max_num_seqs = 6, .prefill_chunk = 64}, {});
  ASSERT_TRUE(backend) << backend.error().message;
  const int64_t vocabulary = (*backend)->config().vocab_size;
  Engine engine(std::move(*backend), nullptr, {Policy::kContinuous, 100});
  std::vector<GenerationRequest> requests(20);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt.resize(static_cast<size_t>(test::uniform(1, 300)));
    for (TokenId& token : requests[i].prompt) token = static_cast<TokenId>(test::uniform(0, vocabulary - 1));
    requests[i].max_new_tokens = test::uniform(1, 40);
    requests[i].ignore_eos = true;
    requests[i].sampling.temperature = i % 2 == 0 ? 0.0F : 1.0F;
    requests[i].sampling.seed = i;
  }
  std::vector<std::vector<TokenId>> alone;
  for (const GenerationRequest& request : requests) {
    Collector collector;
    ASSERT_TRUE(engine.submit(request, collector.callback()));
    collector.ended.wait();
    alone.push_back(collector.tokens);
  }
  std::vector<Collector> together(requests.size());
  for (size_t i = 0; i < requests.size(); ++i)
    ASSERT_TRUE(engine.submit(requests[i], together[i].callback()));
  for (size_t i = 0; i < requests.size(); ++i) {
    together[i].ended.wait();
    EXPECT_EQ(together[i].tokens, alone[i])
        << "request " << i << " with a prompt of " << requests[i].prompt.size();
    EXPECT_EQ(static_cast<int64_t>(alone[i].size()), requests[i].max_new_tokens);
  }
}

}  // namespace
}  // namespace qwen2
