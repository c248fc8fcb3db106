// The load client against a server whose timing is known: every statistic must be what the schedule says.
//
// A busy machine delays both. The server's delays are in its own record of when it wrote each token, which is
// what the client is held against. The client's are what it reports of itself: a time that it took may be
// late by as much as its event loop was, and by what passing bytes from one thread to another takes.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/units.h"
#include "loadgen/load_loop.h"
#include "loadgen/measures.h"
#include "loadgen/result_file.h"
#include "schedule_server.h"

namespace qwen2 {
namespace {

constexpr double kHandover = 0.03;

// Sanitizers make client and server so slow that they would be measured, not the schedule.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int64_t kLess = 10;
#else
constexpr int64_t kLess = 1;
#endif

std::vector<PlannedRequest> plan(size_t requests, int64_t tokens, double rate = 0) {
  std::vector<PlannedRequest> planned(requests);
  for (size_t i = 0; i < requests; ++i) {
    planned[i].offset = rate > 0 ? static_cast<double>(i) / rate : 0;
    planned[i].prompt_tokens = 3;
    planned[i].max_new_tokens = tokens;
    planned[i].body = fmt::format(R"({{"prompt": " a b c", "max_tokens": {}}})", tokens);
  }
  return planned;
}

LoopResult run(const test::ScheduleServer& server, const std::vector<PlannedRequest>& planned,
               LoopOptions options, const LoopHooks& hooks = {}, std::vector<size_t> todo = {}) {
  options.call = {*parse_url(server.url()), {ServerKind::kOpenAi, ApiFlavour::kCompletions, true}, {}, 60};
  options.ignore_eos = true;
  if (todo.empty()) {
    todo.resize(planned.size());
    std::iota(todo.begin(), todo.end(), size_t{0});
  }
  return run_loop(options, planned, todo, hooks);
}

double tolerance(const LoopResult& result) {
  const auto worst = std::max_element(result.loop_lags.begin(), result.loop_lags.end());
  return kHandover + 2 * (worst == result.loop_lags.end() ? 0 : *worst);
}

// What the client would have recorded had it known the server's own times.
RequestRecord as_the_server_saw(const RequestRecord& record, const test::Emission& emission, double start) {
  RequestRecord ideal = record;
  ideal.content_times.clear();
  for (const double time : emission.before) ideal.content_times.push_back(time - start);
  ideal.first_content = ideal.content_times.front();
  ideal.last_content = ideal.content_times.back();
  ideal.end = emission.ended - start;
  return ideal;
}

LoadTestResult as_result(std::vector<RequestRecord> records, double duration) {
  LoadTestResult result;
  result.planned = static_cast<int64_t>(records.size());
  result.records = std::move(records);
  result.duration = duration;
  return result;
}

double number(const boost::json::object& object, const std::string& key) {
  return object.at(key).to_number<double>();
}

// Both result files hold the same statistics. `tokens` of each answer.
void expect_same_statistics(const boost::json::object& actual, const boost::json::object& expected,
                            double slack, double tokens) {
  for (const std::string metric : {"ttft", "tpot", "itl", "e2el"}) {
    EXPECT_EQ(actual.at("n_" + metric), expected.at("n_" + metric));
    for (const std::string what : {"mean", "median", "std", "p50", "p90", "p95", "p99"}) {
      // Delays cancel out between the first and the last token, but for one.
      const bool spread = metric == "tpot" || (metric == "itl" && what == "mean");
      const std::string key = fmt::format("{}_{}_ms", what, metric);
      EXPECT_NEAR(number(actual, key), number(expected, key), 1e3 * slack / (spread ? (tokens - 1) / 2 : 0.5))
          << key;
    }
  }
  for (const char* key : {"completed", "failed", "total_input_tokens", "total_output_tokens"})
    EXPECT_EQ(actual.at(key), expected.at(key)) << key;
  EXPECT_NEAR(number(actual, "duration"), number(expected, "duration"), slack);
  for (const char* key :
       {"request_throughput", "request_goodput", "output_throughput", "total_token_throughput"}) {
    const double share = slack / number(expected, "duration");
    EXPECT_NEAR(number(actual, key), number(expected, key), number(expected, key) * 2 * share) << key;
  }
}

void expect_the_schedule(const test::ScheduleServer& server, const test::Schedule& schedule,
                         LoopResult result, size_t requests, int64_t tokens) {
  const double slack = tolerance(result);
  const std::vector<test::Emission> emissions = server.emissions();
  ASSERT_EQ(result.records.size(), requests);
  ASSERT_EQ(emissions.size(), requests);
  std::vector<RequestRecord> ideal;
  double last = 0;
  for (const RequestRecord& record : result.records) {
    ASSERT_EQ(record.failure, "") << record.detail;
    const test::Emission& emission = emissions.at(std::stoul(record.text));
    ASSERT_EQ(record.content_times.size(), static_cast<size_t>(tokens));
    ASSERT_EQ(emission.before.size(), static_cast<size_t>(tokens));
    for (size_t i = 0; i < record.content_times.size(); ++i) {
      // The server was never early, and the client neither: no token was read before it was written.
      ASSERT_GE(emission.before[i] - emission.received,
                schedule.first + schedule.gap * static_cast<double>(i) - 1e-6);
      ASSERT_GE(record.content_times[i] + result.start, emission.before[i]);
      ASSERT_LE(record.content_times[i] + result.start, emission.after[i] + slack);
    }
    ideal.push_back(as_the_server_saw(record, emission, result.start));
    last = std::max(last, ideal.back().end);
  }
  LoadTestOptions options;
  options.objective = Objective::parse("ttft=30s,tpot=30s,p=99").value();
  const auto expected = to_json(options, as_result(std::move(ideal), last));
  const auto actual = to_json(options, as_result(std::move(result.records), result.duration));
  expect_same_statistics(actual, expected, slack, static_cast<double>(tokens));
  EXPECT_EQ(actual.at("slo_attained"), 1.0);
}

// How much there was to do, of which nothing is asserted.
void print_load(const LoopResult& result) {
  int64_t events = 0;
  for (const RequestRecord& record : result.records) {
    events += std::count_if(record.content_times.begin(), record.content_times.end(), [&](double time) {
      return time > 0.25 * result.duration && time < 0.75 * result.duration;
    });
  }
  std::printf("%.0f events/s in the middle half, event loop late by %.2f ms at most, %.0f %% of a core\n",
              static_cast<double>(events) / (0.5 * result.duration),
              1e3 * (tolerance(result) - kHandover) / 2, 100 * result.cpu_seconds / result.duration);
}

// 300 answers at a time, each 100 tokens in 1.2 s: 25,000 events a second.
TEST(KnownSchedule, ClosedLoop) {
  const test::Schedule schedule{0.2, 0.01};
  const test::ScheduleServer server(schedule);
  LoopOptions options;
  options.clients = 300 / kLess;
  options.ramp = 0.2;
  LoopResult result = run(server, plan(600 / kLess, 100), options);
  EXPECT_LE(result.peak_in_flight, 300 / kLess);
  print_load(result);
  expect_the_schedule(server, schedule, std::move(result), 600 / kLess, 100);
}

// 250 answers a second of 100 tokens: 25,000 events a second.
TEST(KnownSchedule, OpenLoop) {
  const test::Schedule schedule{0.2, 0.01};
  const test::ScheduleServer server(schedule);
  LoopOptions options;
  options.open = true;
  const auto planned = plan(700 / kLess, 100, 250.0 / kLess);
  LoopResult result = run(server, planned, options);
  for (const RequestRecord& record : result.records)
    EXPECT_NEAR(record.scheduled, planned[static_cast<size_t>(record.index)].offset, 1e-6);
  print_load(result);
  expect_the_schedule(server, schedule, std::move(result), 700 / kLess, 100);
}

// Two requests were still on their way when a run was interrupted, and the rest had not begun: what remains
// comes as far apart as it was to, without the pauses that are done.
TEST(KnownSchedule, AResumedOpenLoopLeavesOutWhatWasDone) {
  const test::ScheduleServer server({0.005, 0.005});
  LoopOptions options;
  options.open = true;
  const LoopResult result = run(server, plan(500, 2, 50), options, {}, {3, 40, 497, 498, 499});
  ASSERT_EQ(result.records.size(), 5U);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(result.records[i].scheduled, static_cast<double>(i) / 50, 1e-6);
  EXPECT_LT(result.duration, 5);
}

// What arrives while a server stands still has waited since its time came, not since the server moved again.
TEST(KnownSchedule, AStallIsInTheLatencyOfEveryRequestThatFellIntoIt) {
  test::Schedule schedule{0.005, 0.005};
  schedule.stall_at = now_seconds() + 0.4;
  schedule.stall = 0.6;
  const test::ScheduleServer server(schedule);
  LoopOptions options;
  options.open = true;
  const LoopResult result = run(server, plan(75, 2, 50), options);
  const double stall_end = schedule.stall_at + schedule.stall;
  ASSERT_GT(server.stalled_from(), 0);
  size_t fell_in = 0;
  for (const RequestRecord& record : result.records) {
    ASSERT_EQ(record.failure, "") << record.detail;
    EXPECT_LE(record.sent - record.scheduled, tolerance(result)) << "the client waited for the server";
    const double scheduled = result.start + record.scheduled;
    if (scheduled < server.stalled_from() || scheduled > stall_end) continue;
    ++fell_in;
    EXPECT_GE(*ttft_of(record), stall_end - scheduled - 1e-6);
    EXPECT_GE(*e2el_of(record), stall_end - scheduled - 1e-6);
  }
  if (server.stalled_from() < stall_end - 0.05) {
    EXPECT_GE(fell_in, 1U);
  }
}

// The same for the client's own stalls, which it also reports.
TEST(KnownSchedule, TheClientsOwnLatenessIsCountedAndReported) {
  const test::ScheduleServer server({0.01, 0.005});
  LoopOptions options;
  options.open = true;
  LoopHooks hooks;
  hooks.progress = [](int64_t done, int64_t, int64_t) {
    if (done == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
  };
  const LoopResult result = run(server, plan(60, 2, 100), options, hooks);
  const Measures m = measure(result.records, std::nullopt);
  EXPECT_GE(m.lag.max, 0.2);
  EXPECT_GE(summarise(result.loop_lags).max, 0.2);
  for (const RequestRecord& record : result.records)
    EXPECT_GE(*ttft_of(record), record.sent - record.scheduled);
}

TEST(KnownSchedule, AStreamThatIsCutIsAFailure) {
  test::Schedule schedule{0.001, 0.001};
  schedule.cut_after = 3;
  const test::ScheduleServer server(schedule);
  LoopOptions options;
  options.clients = 2;
  const LoopResult result = run(server, plan(4, 10), options);
  ASSERT_EQ(result.records.size(), 4U);
  for (const RequestRecord& record : result.records) {
    EXPECT_EQ(record.failure, "cut_stream");
    EXPECT_EQ(record.content_times.size(), 3U);
  }
}

TEST(KnownSchedule, AnInterruptedRunKeepsWhatHasEnded) {
  const test::ScheduleServer server({0.01, 0.01});
  LoopOptions options;
  options.clients = 2;
  int64_t ended = 0;
  LoopHooks hooks;
  hooks.progress = [&ended](int64_t done, int64_t, int64_t) { ended = done; };
  hooks.should_stop = [&ended] { return ended >= 3; };
  const LoopResult result = run(server, plan(100, 5), options, hooks);
  EXPECT_TRUE(result.interrupted);
  EXPECT_GE(result.records.size(), 3U);
  EXPECT_LT(result.records.size(), 100U);
  for (const RequestRecord& record : result.records) EXPECT_EQ(record.failure, "") << record.detail;
}

// The arithmetic by itself, without a clock: ten requests of five tokens, the last of which fails.
TEST(Measures, AreTheSchedulesOwnArithmetic) {
  std::vector<RequestRecord> records(10);
  for (size_t i = 0; i < records.size(); ++i) {
    RequestRecord& r = records[i];
    const auto n = static_cast<double>(i);
    r.index = static_cast<int64_t>(i);
    r.scheduled = n;
    r.sent = n + 0.001;
    for (int k = 0; k < 5; ++k) r.content_times.push_back(n + 0.1 * (n + 1) + 0.02 * k);
    r.first_content = r.content_times.front();
    r.last_content = r.content_times.back();
    r.end = r.last_content + 0.01;
    r.prompt_tokens = 7;
    r.completion_tokens = 5;
  }
  records[9].failure = "timeout";
  LoadTestOptions options;
  options.objective = Objective::parse("ttft=450ms,p=40").value();
  const auto root = to_json(options, as_result(records, 20));
  // TTFT is 100, 200, ... 900 ms.
  EXPECT_NEAR(number(root, "mean_ttft_ms"), 500, 1e-6);
  EXPECT_NEAR(number(root, "median_ttft_ms"), 500, 1e-6);
  EXPECT_NEAR(number(root, "std_ttft_ms"), 100 * std::sqrt(60.0 / 9), 1e-6);
  EXPECT_NEAR(number(root, "p90_ttft_ms"), 820, 1e-6);
  EXPECT_NEAR(number(root, "p99_ttft_ms"), 892, 1e-6);
  for (const char* key : {"mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p50_itl_ms"})
    EXPECT_NEAR(number(root, key), 20, 1e-6) << key;
  EXPECT_NEAR(number(root, "mean_e2el_ms"), 590, 1e-6);
  EXPECT_EQ(root.at("n_itl"), 36);
  EXPECT_EQ(root.at("completed"), 9);
  EXPECT_EQ(root.at("failed"), 1);
  EXPECT_EQ(root.at("failures"), (boost::json::object{{"timeout", 1}}));
  EXPECT_EQ(root.at("total_input_tokens"), 63);
  EXPECT_EQ(root.at("total_output_tokens"), 45);
  EXPECT_NEAR(number(root, "request_throughput"), 9.0 / 20, 1e-12);
  EXPECT_NEAR(number(root, "output_throughput"), 45.0 / 20, 1e-12);
  EXPECT_NEAR(number(root, "total_token_throughput"), 108.0 / 20, 1e-12);
  EXPECT_NEAR(number(root, "request_goodput"), 4.0 / 20, 1e-12);
  EXPECT_NEAR(number(root, "slo_attained"), 0.4, 1e-12);
  EXPECT_NEAR(number(root.at("client_lag_ms").as_object(), "mean"), 1, 1e-6);
  EXPECT_EQ(root.at("output_lens").as_array()[9], 0);
  EXPECT_EQ(root.at("itls").as_array()[0].as_array().size(), 4U);
}

}  // namespace
}  // namespace qwen2
