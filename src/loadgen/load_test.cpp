#include "loadgen/load_test.h"

#include <algorithm>
#include <ctime>
#include <numeric>

#include "loadgen/detect.h"
#include "loadgen/measures.h"

namespace qwen2 {
namespace {

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  return std::string(text, std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &local));
}

LoopResult run_warmup(const LoopOptions& options, const Plan& plan, const LoopHooks& hooks) {
  std::vector<size_t> all(plan.warmup.size());
  std::iota(all.begin(), all.end(), size_t{0});
  LoopOptions warmup = options;
  warmup.open = false;
  warmup.ramp = 0;
  return run_loop(warmup, plan.warmup, all, {{}, hooks.should_stop, nullptr});
}

// Clients that start together stay together: their prompts and their decodes come in lockstep. Spread over
// the time of one request they are as they will be later on.
double ramp_of(const LoadTestOptions& o, std::span<const RequestRecord> warmup) {
  if (o.open_loop() || o.concurrency == 1) return 0;
  if (o.ramp) return *o.ramp;
  return std::min(kLongestRamp, measure(warmup, std::nullopt).e2el.p50);
}

Result<std::vector<size_t>> requests_left(size_t planned, const LoadTestResult& earlier) {
  std::vector<bool> ended(planned);
  for (const RequestRecord& record : earlier.records) {
    if (record.index >= static_cast<int64_t>(planned)) {
      return fail(ErrorKind::kInvalidArgument,
                  "--resume: the interrupted run had more requests than the {} here", planned);
    }
    ended[static_cast<size_t>(record.index)] = true;
  }
  std::vector<size_t> left;
  for (size_t i = 0; i < planned; ++i) {
    if (!ended[i]) left.push_back(i);
  }
  return left;
}

void shift(RequestRecord& record, double seconds) {
  for (double* time : {&record.scheduled, &record.sent, &record.end}) *time += seconds;
  if (!record.content_times.empty()) {
    record.first_content += seconds;
    record.last_content += seconds;
  }
  for (double& time : record.content_times) time += seconds;
}

// Puts the loop's times behind those that `result` already has.
void append(LoadTestResult& result, LoopResult&& loop, std::vector<WatchSample>&& samples) {
  const double before = result.duration;
  const auto ended = static_cast<int64_t>(loop.records.size());
  for (RequestRecord& record : loop.records) {
    shift(record, before);
    result.records.push_back(std::move(record));
  }
  std::sort(result.records.begin(), result.records.end(),
            [](const RequestRecord& a, const RequestRecord& b) { return a.index < b.index; });
  for (WatchSample& sample : samples) {
    sample.t += before;
    result.timeline.push_back(sample);
  }
  result.duration += loop.duration;
  result.segments.push_back({date_now(), loop.duration, ended});
  result.peak_in_flight = std::max(result.peak_in_flight, loop.peak_in_flight);
  result.client_cpu_seconds += loop.cpu_seconds;
  result.loop_lag = summarise(std::move(loop.loop_lags));
  result.interrupted = loop.interrupted;
}

}  // namespace

Result<Target> find_target(const LoadTestOptions& options) {
  Target target;
  QWEN2_TRY(target.url, parse_url(options.url));
  ServedBy served;
  if (!options.backend || options.model.empty()) served = detect_server(target.url);
  target.dialect = {options.backend.value_or(served.kind), options.flavour, options.stream};
  QWEN2_CHECK(check(target.dialect, options.ignore_eos));
  target.model = options.model.empty() ? served.model : options.model;
  if (target.model.empty()) {
    QWEN2_CHECK(http_get(target.url, "/v1/models", 10));
    return fail(ErrorKind::kIo, "{} does not name a model; use --served-model", options.url);
  }
  return target;
}

Result<LoadTestResult> run_load_test(const LoadTestOptions& options, const Target& target,
                                     const Tokenizer& tokenizer, const ChatTemplate& chat,
                                     const LoopHooks& hooks, std::optional<LoadTestResult> earlier) {
  QWEN2_CHECK(check(options));
  QWEN2_TRY(const Plan plan, make_plan(options, target.dialect, target.model, tokenizer, chat));
  LoadTestResult result = std::move(earlier).value_or(LoadTestResult());
  QWEN2_TRY(const std::vector<size_t> left, requests_left(plan.requests.size(), result));
  LoopOptions loop{{target.url, target.dialect, {}, options.timeout_seconds},
                   options.open_loop(),
                   options.concurrency,
                   0,
                   options.ignore_eos};
  result.dialect = target.dialect;
  result.model = target.model;
  if (result.date.empty()) result.date = date_now();
  result.planned = static_cast<int64_t>(plan.requests.size());
  result.concurrency = options.open_loop() ? 0 : std::min(options.concurrency, result.planned);
  result.last_offset = plan.requests.back().offset;
  result.trace_rows_skipped = plan.trace_rows_skipped;
  LoopResult warmup = run_warmup(loop, plan, hooks);
  result.warmup = std::move(warmup.records);
  result.interrupted = warmup.interrupted;
  if (result.interrupted) return result;
  result.ramp = loop.ramp = ramp_of(options, result.warmup);
  result.memory_plan = fetch_stats(target.url, target.dialect.kind)
                           .find<boost::json::object>("memory_plan")
                           .value_or(boost::json::object());
  std::atomic<int64_t> in_flight = 0;
  LoopHooks watched = hooks;
  watched.in_flight = &in_flight;
  Watcher watcher(target.url, target.dialect.kind, options.service_pid, options.sample_interval, in_flight);
  LoopResult measured = run_loop(loop, plan.requests, left, watched);
  append(result, std::move(measured), watcher.stop());
  return result;
}

}  // namespace qwen2
