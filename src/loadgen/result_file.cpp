#include "loadgen/result_file.h"

#include <algorithm>
#include <cmath>

#include "loadgen/measures.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr double kMs = 1e3;

template <class T>
json::value or_null(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value(nullptr);
}

// Times in files are rounded to the microsecond: more digits would be noise.
double micro(double seconds) {
  return std::round(seconds * 1e6) / 1e6;
}

double per_second(double count, double seconds) {
  return seconds > 0 ? count / seconds : 0;
}

// vLLM's names; null where nothing was measured.
void add_metric(json::object& root, const std::string& name, const Summary& s) {
  const auto put = [&](const std::string& what, double seconds) {
    root[what + "_" + name + "_ms"] = s.n == 0 ? json::value(nullptr) : json::value(seconds * kMs);
  };
  put("mean", s.mean);
  put("median", s.p50);
  put("std", s.std);
  put("p50", s.p50);
  put("p90", s.p90);
  put("p95", s.p95);
  put("p99", s.p99);
  root["n_" + name] = s.n;
}

void add_setting(json::object& root, const LoadTestOptions& o, const LoadTestResult& r) {
  root["date"] = r.date;
  root["endpoint_type"] = r.dialect.endpoint_type();
  root["backend"] = name_of(r.dialect.kind);
  root["label"] = nullptr;
  root["model_id"] = r.model;
  root["tokenizer_id"] = o.tokenizer;
  root["num_prompts"] = r.planned;
  // A closed loop is what vLLM calls an infinite rate held back by a concurrency.
  if (o.rate) {
    root["request_rate"] = *o.rate;
  } else if (!o.trace.empty()) {
    root["request_rate"] = per_second(static_cast<double>(r.planned), r.last_offset);
  } else {
    root["request_rate"] = "inf";
  }
  root["burstiness"] = o.burstiness;
  root["max_concurrency"] = o.open_loop() ? json::value(nullptr) : json::value(r.concurrency);
}

// Open loop: how far the server kept up with the arrivals. Had it, the last answer would have come one
// request's time after the last arrival; that time is what the first third of the requests took, before a
// queue could build up.
std::optional<double> kept_up(const LoadTestOptions& o, const LoadTestResult& r) {
  if (!o.open_loop() || r.interrupted || r.duration <= 0) return std::nullopt;
  const std::span<const RequestRecord> first(r.records.data(),
                                             std::min(r.records.size(), r.records.size() / 3 + 1));
  return std::min(1.0, (r.last_offset + measure(first, std::nullopt).e2el.p50) / r.duration);
}

void add_totals(json::object& root, const LoadTestOptions& o, const LoadTestResult& r, const Measures& m) {
  root["duration"] = r.duration;
  root["completed"] = m.completed;
  root["failed"] = m.failed;
  root["total_input_tokens"] = m.input_tokens;
  root["total_output_tokens"] = m.output_tokens;
  root["request_throughput"] = per_second(static_cast<double>(m.completed), r.duration);
  root["request_goodput"] =
      o.objective ? json::value(per_second(static_cast<double>(m.good), r.duration)) : json::value(nullptr);
  root["output_throughput"] = per_second(static_cast<double>(m.output_tokens), r.duration);
  root["total_token_throughput"] =
      per_second(static_cast<double>(m.input_tokens + m.output_tokens), r.duration);
  root["slo_attained"] =
      o.objective && !r.records.empty()
          ? json::value(static_cast<double>(m.good) / static_cast<double>(r.records.size()))
          : json::value(nullptr);
  root["kept_up"] = or_null(kept_up(o, r));
  root["max_concurrent_requests"] = r.peak_in_flight;
}

json::array seconds_array(const std::vector<double>& times) {
  json::array out;
  out.reserve(times.size());
  for (const double time : times) out.emplace_back(micro(time));
  return out;
}

// What vLLM writes with --save-detailed: zeros and nothing for a request that failed.
void add_details(json::object& root, const LoadTestResult& r) {
  json::array inputs, outputs, ttfts, itls, texts, errors;
  for (const RequestRecord& record : r.records) {
    const bool good = record.failure.empty();
    inputs.emplace_back(std::max<int64_t>(0, record.prompt_tokens));
    outputs.emplace_back(good ? std::max<int64_t>(0, record.completion_tokens) : 0);
    ttfts.emplace_back(micro(ttft_of(record).value_or(0)));
    json::array gaps;
    for (size_t i = 1; good && i < record.content_times.size(); ++i)
      gaps.emplace_back(micro(record.content_times[i] - record.content_times[i - 1]));
    itls.emplace_back(std::move(gaps));
    // What a server sends need not be text.
    texts.emplace_back(valid_utf8(record.text));
    errors.emplace_back(good ? std::string() : record.failure + ": " + valid_utf8(record.detail));
  }
  root["input_lens"] = std::move(inputs);
  root["output_lens"] = std::move(outputs);
  root["ttfts"] = std::move(ttfts);
  root["itls"] = std::move(itls);
  root["generated_texts"] = std::move(texts);
  root["errors"] = std::move(errors);
}

json::array timeline_json(const LoadTestResult& r) {
  json::array out;
  for (const WatchSample& s : r.timeline) {
    out.emplace_back(json::object{{"t", micro(s.t)},
                                  {"vram_bytes", or_null(s.vram_bytes)},
                                  {"host_bytes", or_null(s.host_bytes)},
                                  {"running", or_null(s.running)},
                                  {"waiting", or_null(s.waiting)},
                                  {"kv_pages_used", or_null(s.kv_pages_used)},
                                  {"in_flight", s.in_flight}});
  }
  return out;
}

json::array segments_json(const LoadTestResult& r) {
  json::array out;
  for (const Segment& s : r.segments) {
    out.emplace_back(json::object{{"date", s.date}, {"duration", s.duration}, {"requests", s.requests}});
  }
  return out;
}

json::object record_json(const RequestRecord& r) {
  json::object out{{"index", r.index}, {"scheduled", micro(r.scheduled)}, {"sent", micro(r.sent)}};
  const bool content = !r.content_times.empty();
  out["first_content"] = content ? json::value(micro(r.first_content)) : json::value(nullptr);
  out["last_content"] = content ? json::value(micro(r.last_content)) : json::value(nullptr);
  out["end"] = micro(r.end);
  out["status"] = r.status;
  out["failure"] = r.failure.empty() ? json::value(nullptr) : json::value(r.failure);
  if (!r.detail.empty()) out["detail"] = valid_utf8(r.detail);
  out["prompt_tokens"] = r.prompt_tokens;
  out["completion_tokens"] = r.completion_tokens;
  if (r.queue_seconds >= 0) out["queue_seconds"] = r.queue_seconds;
  out["content_times"] = seconds_array(r.content_times);
  return out;
}

}  // namespace

json::object to_json(const LoadTestOptions& o, const LoadTestResult& r) {
  const Measures m = measure(r.records, o.objective);
  json::object root{{"schema", "qwen2-bench-serve/1"}, {"mode", o.mode()}};
  add_setting(root, o, r);
  add_totals(root, o, r, m);
  add_metric(root, "ttft", m.ttft);
  add_metric(root, "tpot", m.tpot);
  add_metric(root, "itl", m.itl);
  add_metric(root, "e2el", m.e2el);
  root["queue_ms"] = to_json(m.queue, kMs);
  root["client_lag_ms"] = to_json(m.lag, kMs);
  root["event_loop_lag_ms"] = to_json(r.loop_lag, kMs);
  root["client_cpu_seconds"] = r.client_cpu_seconds;
  root["tokens_per_event"] = per_second(static_cast<double>(m.output_tokens), static_cast<double>(m.events));
  root["ramp_seconds"] = r.ramp;
  json::object failures;
  for (const auto& [kind, count] : m.failures) failures[kind] = count;
  root["failures"] = std::move(failures);
  root["interrupted"] = r.interrupted;
  root["segments"] = segments_json(r);
  if (!o.trace.empty()) root["trace_rows_skipped"] = r.trace_rows_skipped;
  root["warmup"] = json::object{{"completed", measure(r.warmup, {}).completed},
                                {"failed", measure(r.warmup, {}).failed},
                                {"e2el_ms", to_json(measure(r.warmup, {}).e2el, kMs)}};
  root["parameters"] = parameters_json(o);
  root["memory_plan"] = r.memory_plan.empty() ? json::value(nullptr) : json::value(r.memory_plan);
  root["timeline"] = timeline_json(r);
  add_details(root, r);
  return root;
}

std::string requests_jsonl(const LoadTestResult& result) {
  std::string out;
  for (const RequestRecord& record : result.records) out += json::serialize(record_json(record)) + "\n";
  return out;
}

std::filesystem::path requests_path(const std::filesystem::path& output, const std::string& step) {
  std::filesystem::path path = output;
  if (path.extension() == ".json") path.replace_extension();
  path += (step.empty() ? "" : "." + step) + ".requests.jsonl";
  return path;
}

}  // namespace qwen2
