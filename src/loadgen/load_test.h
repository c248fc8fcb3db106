// A load test from its options to its result: the server, the plan, the warm-up, the load, the watch.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "loadgen/load_loop.h"
#include "loadgen/options.h"
#include "loadgen/statistics.h"
#include "loadgen/watch.h"
#include "tokenizer/chat_template.h"

namespace qwen2 {

// A stretch of time in which the test ran without interruption.
struct Segment {
  std::string date;
  double duration = 0;
  int64_t requests = 0;  // that ended in it
};

struct LoadTestResult {
  Dialect dialect;
  std::string model;
  std::string date;  // of the start, as vLLM writes it
  int64_t planned = 0;
  int64_t concurrency = 0;  // clients that there were, closed loop
  double ramp = 0;  // seconds; by itself one request's median time in the warm-up, kLongestRamp at most
  double last_offset = 0;  // open loop: when the last request was due
  std::vector<RequestRecord> warmup;
  std::vector<RequestRecord> records;  // of the requests that ended, by index
  double duration = 0;                 // of all segments together
  std::vector<Segment> segments;
  int64_t peak_in_flight = 0;
  Summary loop_lag;
  double client_cpu_seconds = 0;
  bool interrupted = false;
  int64_t trace_rows_skipped = 0;
  std::vector<WatchSample> timeline;
  boost::json::object memory_plan;  // as the server says; empty where it does not
};

constexpr double kLongestRamp = 10;

// The server and the model that the options name, or that are found at the URL.
struct Target {
  Url url;
  Dialect dialect;
  std::string model;
};
Result<Target> find_target(const LoadTestOptions& options);

// `earlier` is what an interrupted run has kept: its requests are not sent again, and the new ones are added
// as if the pause had not been.
Result<LoadTestResult> run_load_test(const LoadTestOptions& options, const Target& target,
                                     const Tokenizer& tokenizer, const ChatTemplate& chat,
                                     const LoopHooks& hooks,
                                     std::optional<LoadTestResult> earlier = std::nullopt);

}  // namespace qwen2
