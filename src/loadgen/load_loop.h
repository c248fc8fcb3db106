// Sends planned requests, by clients that wait for their answers (closed loop) or at given times (open loop).
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <vector>

#include "loadgen/http_client.h"
#include "loadgen/plan.h"
#include "loadgen/request_record.h"

namespace qwen2 {

// Called on the client's thread when a measured request has ended.
using Progress = std::function<void(int64_t done, int64_t total, int64_t failed)>;

struct LoopHooks {
  Progress progress;
  std::function<bool()> should_stop;          // asked every few milliseconds
  std::atomic<int64_t>* in_flight = nullptr;  // kept up to date for other threads
};

struct LoopOptions {
  HttpCall call;  // without its body
  bool open = false;
  int64_t clients = 1;  // closed loop
  double ramp = 0;      // seconds over which the clients start, evenly
  bool ignore_eos = false;
};

struct LoopResult {
  std::vector<RequestRecord> records;  // of the requests that ended, by index; times count from the start
  double start = 0;                    // on now_seconds()'s clock
  double duration = 0;                 // start to the last answer, or to the interruption
  int64_t peak_in_flight = 0;
  std::vector<double>
      loop_lags;           // seconds by which a timer of every kTick was late: what else the client did
  double cpu_seconds = 0;  // of the client's thread
  bool interrupted = false;
};

constexpr double kTick = 0.01;

// Runs the requests of `planned` whose indices are in `todo`, in that order. In an open loop the first of
// them is sent at once and the others as long after it as their offsets say.
LoopResult run_loop(const LoopOptions& options, std::span<const PlannedRequest> planned,
                    std::span<const size_t> todo, const LoopHooks& hooks);

}  // namespace qwen2
