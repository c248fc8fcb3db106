// What the report takes from the result file of one repeat.
#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/memory.h"
#include "experiment/report_data.h"
#include "experiment/report_json.h"

namespace qwen2::report {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

// A failed request has -1 where the server did not count.
Result<int64_t> tokens(const Fields& fields, std::string_view name) {
  QWEN2_TRY(const double value, fields.number_or_nan(name));
  if (value == -1) return 0;
  return fields.count_or_zero(name);
}

Result<Request> parse_request(const json::object& object) {
  const Fields fields(object, "");
  Request request;
  QWEN2_TRY(request.index, fields.count_or_zero("index"));
  for (auto& [name, value] : {std::pair{"sent", &request.sent},
                              {"first_content", &request.first_content},
                              {"last_content", &request.last_content},
                              {"end", &request.end},
                              {"queue_seconds", &request.queue_seconds}}) {
    QWEN2_TRY(*value, fields.number_or_nan(name));
  }
  QWEN2_TRY(request.prompt_tokens, tokens(fields, "prompt_tokens"));
  QWEN2_TRY(request.completion_tokens, tokens(fields, "completion_tokens"));
  QWEN2_TRY(request.failure, fields.text_or_empty("failure"));
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
    boost::system::error_code error;
    const json::value value = json::parse(line, error);
    const std::string where = fmt::format("'{}', line {}", file.string(), number);
    if (error || !value.is_object()) return fail(ErrorKind::kFormat, "{}: expected a JSON object", where);
    auto request = parse_request(value.as_object());
    if (!request) return within(where, request.error());
    requests.push_back(*std::move(request));
  }
  return requests;
}

Result<std::vector<TimelineSample>> parse_timeline(const json::array& array) {
  std::vector<TimelineSample> timeline;
  for (size_t i = 0; i < array.size(); ++i) {
    QWEN2_TRY(const json::object* item, element(array, i, "timeline"));
    const Fields fields(*item, fmt::format("timeline[{}].", i));
    TimelineSample sample;
    for (auto& [name, value] : {std::pair{"t", &sample.t},
                                {"vram_bytes", &sample.vram_bytes},
                                {"host_bytes", &sample.host_bytes},
                                {"running", &sample.running},
                                {"waiting", &sample.waiting}}) {
      QWEN2_TRY(*value, fields.number_or_nan(name));
    }
    timeline.push_back(sample);
  }
  return timeline;
}

// A plan as `qwen2 plan` and a server's /stats write it: bytes by part, with "total" and "budget".
Result<PlannedMemory> parse_plan(const json::object& object, const std::string& where) {
  const Fields fields(object, where);
  PlannedMemory plan;
  for (const char* part : {"weights", "kv_pool", "workspace", "graphs", "runtime"}) {
    QWEN2_TRY(const double bytes, fields.number_or_nan(part));
    if (!(bytes > 0)) continue;
    plan.parts.emplace_back(part, bytes);
    plan.total += bytes;
  }
  QWEN2_TRY(plan.budget, fields.number_or_nan("budget"));
  return plan;
}

// The larger of what is there.
double peak(const std::vector<TimelineSample>& timeline, double TimelineSample::* field) {
  double most = kNoValue;
  for (const TimelineSample& sample : timeline) most = std::fmax(most, sample.*field);
  return most;
}

Result<std::vector<double>> parse_numbers(const json::array* array, const char* name) {
  std::vector<double> numbers;
  for (size_t i = 0; array != nullptr && i < array->size(); ++i) {
    if (!(*array)[i].is_number()) return fail(ErrorKind::kFormat, "{}[{}]: expected a number", name, i);
    numbers.push_back((*array)[i].to_number<double>());
  }
  return numbers;
}

// `own_peak`: the process' own peak may stand beside the plan. Not that of `bench engine`, whose measurement
// of the read speed takes memory that no service would.
Status parse_memory(const Fields& fields, bool own_peak, Measurement& m) {
  for (const char* name : {"memory_plan", "bytes"}) {
    QWEN2_TRY(const json::object* object, fields.object_or_null(name));
    if (object == nullptr || m.plan) continue;
    QWEN2_TRY(m.plan, parse_plan(*object, fmt::format("{}.", name)));
    if (m.plan->parts.empty()) m.plan.reset();
  }
  QWEN2_TRY(const double device, fields.number_or_nan("device_memory_bytes"));
  QWEN2_TRY(const double process, fields.number_or_nan("peak_memory_bytes"));
  for (const double bytes : {device, peak(m.timeline, &TimelineSample::vram_bytes),
                             own_peak ? process : kNoValue, peak(m.timeline, &TimelineSample::host_bytes)}) {
    if (std::isnan(m.memory_bytes)) m.memory_bytes = bytes;
  }
  return {};
}

Status parse_serve(const Fields& fields, Measurement& m) {
  QWEN2_TRY(const json::array* ttfts, fields.array_or_null("ttfts"));
  QWEN2_TRY(m.ttft, parse_numbers(ttfts, "ttfts"));
  std::erase(m.ttft, 0.0);  // as vLLM writes them: 0 of a request without a first token
  QWEN2_TRY(m.interrupted, fields.flag_or_false("interrupted"));
  QWEN2_TRY(const json::object* failures, fields.object_or_null("failures"));
  if (failures == nullptr) return {};
  const Fields kinds(*failures, "failures.");
  for (const auto& [kind, unused] : *failures) {
    QWEN2_TRY(const int64_t count, kinds.count_or_zero(kind));
    if (count > 0) m.failures.emplace(kind, count);
  }
  return {};
}

Result<Measurement> parse_measurement(const json::object& root, const std::string& measure) {
  const Fields fields(root, "");
  Measurement m;
  QWEN2_TRY(const json::array* timeline, fields.array_or_null("timeline"));
  if (timeline != nullptr) {
    QWEN2_TRY(m.timeline, parse_timeline(*timeline));
  }
  if (measure == "serve") QWEN2_CHECK(parse_serve(fields, m));
  QWEN2_CHECK(parse_memory(fields, measure != "engine", m));
  if (measure == "plan" && fields.has("fits")) {
    QWEN2_TRY(m.fits, fields.flag_or_false("fits"));
    QWEN2_TRY(m.cure, fields.text_or_empty("cure"));
    m.memory_bytes = kNoValue;
  }
  return m;
}

}  // namespace

Result<Measurement> load_measurement(const fs::path& file, const std::string& measure) {
  QWEN2_TRY(const json::object root, read_json_object(file));
  auto measurement = parse_measurement(root, measure);
  if (!measurement) return within(fmt::format("'{}'", file.string()), measurement.error());
  fs::path requests = file;
  requests.replace_extension(".requests.jsonl");
  if (measure == "serve" && fs::exists(requests)) {
    QWEN2_TRY(measurement->requests, read_requests(requests));
  }
  return measurement;
}

}  // namespace qwen2::report
