// What a load test is asked to do.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "loadgen/arrivals.h"
#include "loadgen/lengths.h"
#include "loadgen/objective.h"
#include "loadgen/server_kind.h"

namespace qwen2 {

struct LoadTestOptions {
  std::string url;
  std::optional<ServerKind> backend;  // none: found out
  std::string model;                  // as the server names it; empty: ask /v1/models
  std::string tokenizer;              // its folder, for result files
  ApiFlavour flavour = ApiFlavour::kCompletions;
  bool stream = true;

  // Closed loop unless there is a rate or a trace.
  int64_t concurrency = 5;
  // Seconds over which the clients of a closed loop start; none: see LoadTestResult.
  std::optional<double> ramp;
  std::optional<double> rate;  // requests a second
  Arrivals arrivals = Arrivals::kPoisson;
  double burstiness = 1;
  std::string trace;  // file
  double speed = 1;   // of the trace's clock

  std::optional<int64_t> requests;  // none: all of the trace or the prompts' file, else kDefaultRequests
  int64_t warmup = 1;
  std::string prompts;                    // file
  Lengths ctx_len = 2048;                 // prompt tokens, the chat template included
  std::optional<Lengths> max_new_tokens;  // none: the answer's in a prompts' file, else kDefaultNewTokens
  int64_t shared_prefix = 0;
  double temperature = 0;
  bool ignore_eos = false;
  uint64_t seed = 0;
  uint64_t part = 0;  // tests with the same seed and different parts have different prompts
  double timeout_seconds = 600;
  std::optional<Objective> objective;

  double sample_interval = 0.5;  // seconds between two looks at the server
  int service_pid = -1;          // of the server, where it runs on this machine and is known

  [[nodiscard]] bool open_loop() const { return rate.has_value() || !trace.empty(); }
  // "closed", "open" or "trace".
  [[nodiscard]] std::string_view mode() const;
};

constexpr int64_t kDefaultRequests = 15;
// Of any time that a test is given: what the clock's nanoseconds hold, with room to spare.
constexpr double kMostSeconds = 1e8;
constexpr int64_t kDefaultNewTokens = 64;

// Ranges of the numbers, and flags that exclude each other; the error names the flag.
Status check(const LoadTestOptions& options);

// Every setting, by its flag's name with underscores.
boost::json::object parameters_json(const LoadTestOptions& options);

}  // namespace qwen2
