// What the report takes from the result file of one repeat.
#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <string_view>

#include "base/json_fields.h"
#include "base/memory.h"
#include "experiment/report_data.h"

namespace qwen2::report {

namespace fs = std::filesystem;

namespace {

// A failed request has -1 where the server did not count.
Status read_tokens(const JsonFields& fields, std::string_view name, int64_t& tokens) {
  QWEN2_CHECK(fields.optional(name, tokens, -1, kMostCounted));
  tokens = std::max<int64_t>(0, tokens);
  return {};
}

Result<Request> parse_request(const JsonFields& fields) {
  Request request;
  QWEN2_CHECK(fields.optional("index", request.index, 0, kMostCounted));
  QWEN2_CHECK(fields.optional("sent", request.sent));
  QWEN2_CHECK(fields.optional("first_content", request.first_content));
  QWEN2_CHECK(fields.optional("last_content", request.last_content));
  QWEN2_CHECK(fields.optional("end", request.end));
  QWEN2_CHECK(fields.optional("queue_seconds", request.queue_seconds));
  QWEN2_CHECK(read_tokens(fields, "prompt_tokens", request.prompt_tokens));
  QWEN2_CHECK(read_tokens(fields, "completion_tokens", request.completion_tokens));
  QWEN2_CHECK(fields.optional("failure", request.failure));
  return request;
}

Result<std::vector<Request>> read_requests(const fs::path& file) {
  QWEN2_TRY(const std::string text, read_text_file(file));
  std::vector<Request> requests;
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.empty()) continue;
    QWEN2_TRY(const JsonFields fields,
              JsonFields::parse(line, fmt::format("'{}', line {}", file.string(), number)));
    QWEN2_TRY(Request request, parse_request(fields));
    requests.push_back(std::move(request));
  }
  return requests;
}

Result<TimelineSample> parse_sample(const JsonFields& fields) {
  TimelineSample sample;
  QWEN2_CHECK(fields.optional("t", sample.t));
  QWEN2_CHECK(fields.optional("vram_bytes", sample.vram_bytes));
  QWEN2_CHECK(fields.optional("host_bytes", sample.host_bytes));
  QWEN2_CHECK(fields.optional("running", sample.running));
  QWEN2_CHECK(fields.optional("waiting", sample.waiting));
  return sample;
}

// A plan as `qwen2 plan` and a server's /stats write it: bytes by part, with "total" and "budget".
Result<PlannedMemory> parse_plan(const JsonFields& fields) {
  PlannedMemory plan;
  for (const char* part : {"weights", "kv_pool", "workspace", "graphs", "runtime"}) {
    double bytes = 0;
    QWEN2_CHECK(fields.optional(part, bytes));
    if (bytes <= 0) continue;
    plan.parts.emplace_back(part, bytes);
    plan.total += bytes;
  }
  QWEN2_CHECK(fields.optional("budget", plan.budget));
  return plan;
}

// The larger of what is there.
double peak(const std::vector<TimelineSample>& timeline, double TimelineSample::* field) {
  double most = kNoValue;
  for (const TimelineSample& sample : timeline) most = std::fmax(most, sample.*field);
  return most;
}

// `own_peak`: the process' own peak may stand beside the plan. Not that of `bench engine`, whose measurement
// of the read speed takes memory that no service would.
Status parse_memory(const JsonFields& fields, bool own_peak, Measurement& m) {
  for (const char* name : {"memory_plan", "bytes"}) {
    std::optional<JsonFields> plan;
    QWEN2_CHECK(fields.optional(name, plan));
    if (!plan || m.plan) continue;
    QWEN2_TRY(m.plan, parse_plan(*plan));
    if (m.plan->parts.empty()) m.plan.reset();
  }
  double device = kNoValue, process = kNoValue;
  QWEN2_CHECK(fields.optional("device_memory_bytes", device));
  QWEN2_CHECK(fields.optional("peak_memory_bytes", process));
  for (const double bytes : {device, peak(m.timeline, &TimelineSample::vram_bytes),
                             own_peak ? process : kNoValue, peak(m.timeline, &TimelineSample::host_bytes)}) {
    if (std::isnan(m.memory_bytes)) m.memory_bytes = bytes;
  }
  return {};
}

Status parse_serve(const JsonFields& fields, Measurement& m) {
  JsonFields failures;
  QWEN2_CHECK(fields.optional("ttfts", m.ttft));
  std::erase(m.ttft, 0.0);  // as vLLM writes them: 0 of a request without a first token
  QWEN2_CHECK(fields.optional("interrupted", m.interrupted));
  QWEN2_CHECK(fields.optional("failures", failures));
  for (const auto& [kind, unused] : failures.object()) {
    int64_t count = 0;
    QWEN2_CHECK(failures.optional(kind, count, 0, kMostCounted));
    if (count > 0) m.failures.emplace(kind, count);
  }
  return {};
}

Result<Measurement> parse_measurement(const JsonFields& fields, const std::string& measure) {
  Measurement m;
  std::vector<JsonFields> timeline;
  QWEN2_CHECK(fields.optional("timeline", timeline));
  for (const JsonFields& item : timeline) {
    QWEN2_TRY(const TimelineSample sample, parse_sample(item));
    m.timeline.push_back(sample);
  }
  if (measure == "serve") QWEN2_CHECK(parse_serve(fields, m));
  QWEN2_CHECK(parse_memory(fields, measure != "engine", m));
  if (measure == "plan" && fields.value("fits") != nullptr) {
    QWEN2_CHECK(fields.required("fits", m.fits));
    QWEN2_CHECK(fields.optional("cure", m.cure));
    m.memory_bytes = kNoValue;
  }
  return m;
}

}  // namespace

Result<Measurement> load_measurement(const fs::path& file, const std::string& measure) {
  QWEN2_TRY(const JsonFields fields, JsonFields::read(file));
  QWEN2_TRY(Measurement measurement, parse_measurement(fields, measure));
  fs::path requests = file;
  requests.replace_extension(".requests.jsonl");
  if (measure == "serve" && fs::exists(requests)) {
    QWEN2_TRY(measurement.requests, read_requests(requests));
  }
  return measurement;
}

}  // namespace qwen2::report
