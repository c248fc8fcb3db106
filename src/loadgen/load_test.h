// The closed-loop load test: a fixed number of clients, each sending its next request when the last has
// ended.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "loadgen/http_client.h"
#include "loadgen/statistics.h"
#include "loadgen/workload.h"
#include "tokenizer/chat_template.h"

namespace qwen2 {

struct LoadTestOptions {
  std::string url;
  std::string model;  // as the server names it; empty: ask /v1/models
  ApiFlavour flavour = ApiFlavour::kCompletions;
  int64_t concurrency = 5;
  int64_t requests = 15;
  int64_t warmup = 1;
  int64_t ctx_len = 2048;  // prompt tokens, the chat template included
  int64_t max_new_tokens = 64;
  double temperature = 0;
  bool stream = true;
  bool ignore_eos = false;
  uint64_t seed = 0;
  double timeout_seconds = 600;
};

struct LoadTestResult {
  std::vector<RequestRecord> warmup;
  std::vector<RequestRecord> records;
  double start = 0;
  double end = 0;
  std::string model;
};

// Ranges of the numbers; the error names the flag.
Status check(const LoadTestOptions& options);

// Called on the client's thread when a measured request has ended.
using Progress = std::function<void(int64_t done, int64_t total, int64_t failed)>;

Result<LoadTestResult> run_load_test(const LoadTestOptions& options, const Tokenizer& tokenizer,
                                     const ChatTemplate& chat, const Progress& progress);

// Summary and every request.
boost::json::object to_json(const LoadTestOptions& options, const LoadTestResult& result);

// The table for the terminal.
std::string format_table(const LoadTestOptions& options, const LoadTestResult& result);

}  // namespace qwen2
