#include <boost/json.hpp>

#include "base/json_fields.h"
#include "base/memory.h"
#include "loadgen/result_file.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr size_t kMostBytes = size_t{2} << 30;

Result<RequestRecord> read_record(const JsonFields& fields) {
  RequestRecord record;
  QWEN2_CHECK(fields.required("index", record.index));
  QWEN2_CHECK(fields.required("scheduled", record.scheduled));
  QWEN2_CHECK(fields.required("sent", record.sent));
  QWEN2_CHECK(fields.required("end", record.end));
  QWEN2_CHECK(fields.required("status", record.status));
  QWEN2_CHECK(fields.optional("failure", record.failure));
  QWEN2_CHECK(fields.optional("detail", record.detail));
  QWEN2_CHECK(fields.required("prompt_tokens", record.prompt_tokens));
  QWEN2_CHECK(fields.required("completion_tokens", record.completion_tokens));
  QWEN2_CHECK(fields.optional("queue_seconds", record.queue_seconds));
  QWEN2_CHECK(fields.required("content_times", record.content_times));
  if (!record.content_times.empty()) {
    record.first_content = record.content_times.front();
    record.last_content = record.content_times.back();
  }
  return record;
}

// `texts` are the answers, in the order of the lines.
Result<std::vector<RequestRecord>> read_records(std::string_view lines, const std::string& where,
                                                int64_t planned, std::vector<std::string> texts) {
  std::vector<RequestRecord> records;
  std::vector<bool> seen(static_cast<size_t>(planned));
  while (!lines.empty()) {
    const size_t end = std::min(lines.find('\n'), lines.size());
    QWEN2_TRY(const JsonFields fields,
              JsonFields::parse(lines.substr(0, end), fmt::format("{} line {}", where, records.size() + 1)));
    QWEN2_TRY(RequestRecord record, read_record(fields));
    if (record.index < 0 || record.index >= planned || seen[static_cast<size_t>(record.index)])
      return fields.error("index", fmt::format("is {}: out of range, or there before", record.index));
    seen[static_cast<size_t>(record.index)] = true;
    if (records.size() < texts.size()) record.text = std::move(texts[records.size()]);
    records.push_back(std::move(record));
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
  return records;
}

Status check_field(const json::object& before, std::string_view name, const json::value& now) {
  const json::value* other = before.if_contains(name);
  const json::value there = other == nullptr ? json::value(nullptr) : *other;
  if (json::serialize(there) == json::serialize(now)) return {};
  return fail(ErrorKind::kInvalidArgument, "was run with another '{}' ({} there, {} here)", name,
              json::serialize(there), json::serialize(now));
}

// The interrupted run must have asked for the same thing, of the same service.
Status check_measured(const json::object& root, const Measured& measured) {
  const JsonFields fields(root, "");
  const auto before = fields.find<JsonFields>("parameters");
  if (!before) return fail(ErrorKind::kFormat, "has no \"parameters\": not a result of bench serve");
  // The port of a service that was started for the test differs, and how often it was looked at does not
  // matter.
  for (const auto& [name, value] : parameters_json(measured.options)) {
    if (name == "url" || name == "sample_interval") continue;
    QWEN2_CHECK(check_field(before->object(), name, value));
  }
  QWEN2_CHECK(check_field(root, "model_id", json::value(measured.model)));
  QWEN2_CHECK(check_field(root, "backend", json::value(measured.backend)));
  if (!measured.service.is_object()) return {};
  const JsonFields service = fields.find<JsonFields>("service").value_or(JsonFields());
  for (const auto& [name, value] : measured.service.get_object())
    QWEN2_CHECK(check_field(service.object(), name, value));
  return {};
}

Status read_segments(const JsonFields& root, LoadTestResult& result) {
  std::vector<JsonFields> segments;
  QWEN2_CHECK(root.required("segments", segments));
  for (const JsonFields& fields : segments) {
    Segment& segment = result.segments.emplace_back();
    QWEN2_CHECK(fields.required("date", segment.date));
    QWEN2_CHECK(fields.required("duration", segment.duration));
    QWEN2_CHECK(fields.required("requests", segment.requests));
  }
  return {};
}

Status read_timeline(const JsonFields& root, LoadTestResult& result) {
  std::vector<JsonFields> timeline;
  QWEN2_CHECK(root.required("timeline", timeline));
  for (const JsonFields& fields : timeline) {
    WatchSample& sample = result.timeline.emplace_back();
    QWEN2_CHECK(fields.required("t", sample.t));
    QWEN2_CHECK(fields.optional("vram_bytes", sample.vram_bytes));
    QWEN2_CHECK(fields.optional("host_bytes", sample.host_bytes));
    QWEN2_CHECK(fields.optional("running", sample.running));
    QWEN2_CHECK(fields.optional("waiting", sample.waiting));
    QWEN2_CHECK(fields.optional("kv_pages_used", sample.kv_pages_used));
    QWEN2_CHECK(fields.optional("in_flight", sample.in_flight));
  }
  return {};
}

Result<LoadTestResult> read_both(const std::filesystem::path& output, const Measured& measured) {
  QWEN2_TRY(const std::string text, read_text_file(output, kMostBytes));
  QWEN2_TRY(const JsonFields root, JsonFields::parse(text, ""));  // the caller names the file
  QWEN2_CHECK(check_measured(root.object(), measured));
  LoadTestResult result;
  int64_t planned = 0;
  std::vector<std::string> texts;
  QWEN2_CHECK(root.required("date", result.date));
  QWEN2_CHECK(root.required("duration", result.duration));
  QWEN2_CHECK(root.required("client_cpu_seconds", result.client_cpu_seconds));
  QWEN2_CHECK(root.required("max_concurrent_requests", result.peak_in_flight));
  QWEN2_CHECK(root.required("num_prompts", planned, 1, 100'000'000));
  QWEN2_CHECK(root.required("generated_texts", texts));
  QWEN2_CHECK(read_segments(root, result));
  QWEN2_CHECK(read_timeline(root, result));
  const std::filesystem::path requests = requests_path(output);
  QWEN2_TRY(const std::string lines, read_text_file(requests, kMostBytes));
  QWEN2_TRY(result.records, read_records(lines, fmt::format("'{}'", requests.filename().string()), planned,
                                         std::move(texts)));
  return result;
}

}  // namespace

Status check_same(const json::object& result, const Measured& measured, const std::string& file) {
  const Status same = check_measured(result, measured);
  return same ? same : Status(within(fmt::format("--resume '{}'", file), same.error()));
}

Result<LoadTestResult> read_earlier(const std::filesystem::path& output, const Measured& measured) {
  auto result = read_both(output, measured);
  if (!result) return within(fmt::format("--resume '{}'", output.string()), result.error());
  return result;
}

}  // namespace qwen2
