#include <boost/json.hpp>

#include "base/memory.h"
#include "loadgen/result_file.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

// A field of a file that this program wrote; a wrong type is an error that names it.
class Reader {
 public:
  explicit Reader(const json::object& object) : object_(object) {}

  double number(std::string_view key) {
    json::error_code code;
    const json::value* value = find(key);
    const double number = value == nullptr ? 0 : value->to_number<double>(code);
    if (code || value == nullptr) wrong(key);
    return number;
  }
  int64_t integer(std::string_view key) {
    const json::value* value = find(key);
    if (value == nullptr || !value->is_int64()) {
      wrong(key);
      return 0;
    }
    return value->get_int64();
  }
  std::string text(std::string_view key) {
    const json::value* value = find(key);
    if (value == nullptr || !value->is_string()) {
      wrong(key);
      return {};
    }
    return std::string(value->get_string());
  }
  json::array array(std::string_view key) {
    const json::value* value = find(key);
    if (value == nullptr || !value->is_array()) {
      wrong(key);
      return {};
    }
    return value->get_array();
  }
  [[nodiscard]] const json::value* find(std::string_view key) const {
    const json::value* value = object_.if_contains(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }
  [[nodiscard]] Status status() const {
    if (wrong_.empty()) return {};
    return fail(ErrorKind::kFormat, "'{}' is missing or has another type than expected", wrong_);
  }

 private:
  void wrong(std::string_view key) {
    if (wrong_.empty()) wrong_ = key;
  }
  const json::object& object_;
  std::string wrong_;
};

Result<RequestRecord> read_record(const json::object& object) {
  Reader reader(object);
  RequestRecord record;
  record.index = reader.integer("index");
  record.scheduled = reader.number("scheduled");
  record.sent = reader.number("sent");
  record.end = reader.number("end");
  record.status = static_cast<int>(reader.integer("status"));
  if (reader.find("failure") != nullptr) record.failure = reader.text("failure");
  if (reader.find("detail") != nullptr) record.detail = reader.text("detail");
  record.prompt_tokens = reader.integer("prompt_tokens");
  record.completion_tokens = reader.integer("completion_tokens");
  if (reader.find("queue_seconds") != nullptr) record.queue_seconds = reader.number("queue_seconds");
  for (const json::value& time : reader.array("content_times")) {
    json::error_code code;
    record.content_times.push_back(time.to_number<double>(code));
    if (code) return fail(ErrorKind::kFormat, "'content_times' must hold numbers");
  }
  if (!record.content_times.empty()) {
    record.first_content = record.content_times.front();
    record.last_content = record.content_times.back();
  }
  QWEN2_CHECK(reader.status());
  return record;
}

Result<json::object> parse_object(std::string_view text) {
  json::error_code code;
  json::value root = json::parse(text, code);
  if (code || !root.is_object()) return fail(ErrorKind::kFormat, "not a JSON object");
  return std::move(root.get_object());
}

Result<std::vector<RequestRecord>> read_records(std::string_view text, int64_t planned,
                                                const json::array& texts) {
  std::vector<RequestRecord> records;
  std::vector<bool> seen(static_cast<size_t>(planned));
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const auto object = parse_object(text.substr(0, end));
    auto record = object ? read_record(*object) : Result<RequestRecord>(std::unexpected(object.error()));
    const std::string where = fmt::format("line {}", records.size() + 1);
    if (!record) return within(where, record.error());
    if (record->index < 0 || record->index >= planned || seen[static_cast<size_t>(record->index)]) {
      return fail(ErrorKind::kFormat, "{}: 'index' {} is out of range or was there before", where,
                  record->index);
    }
    seen[static_cast<size_t>(record->index)] = true;
    if (records.size() < texts.size() && texts[records.size()].is_string())
      record->text = texts[records.size()].get_string();
    records.push_back(std::move(*record));
    text.remove_prefix(std::min(end + 1, text.size()));
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
  const json::value* before = root.if_contains("parameters");
  if (before == nullptr || !before->is_object())
    return fail(ErrorKind::kFormat, "has no \"parameters\": not a result of bench serve");
  // The port of a service that was started for the test differs, and how often it was looked at does not
  // matter.
  for (const auto& [name, value] : parameters_json(measured.options)) {
    if (name == "url" || name == "sample_interval") continue;
    QWEN2_CHECK(check_field(before->get_object(), name, value));
  }
  QWEN2_CHECK(check_field(root, "model_id", json::value(measured.model)));
  QWEN2_CHECK(check_field(root, "backend", json::value(measured.backend)));
  if (!measured.service.is_object()) return {};
  const json::value* service = root.if_contains("service");
  for (const auto& [name, value] : measured.service.get_object()) {
    QWEN2_CHECK(check_field(
        service != nullptr && service->is_object() ? service->get_object() : json::object(), name, value));
  }
  return {};
}

void read_segments(const json::array& segments, LoadTestResult& result) {
  for (const json::value& value : segments) {
    if (!value.is_object()) continue;
    Reader reader(value.get_object());
    result.segments.push_back({reader.text("date"), reader.number("duration"), reader.integer("requests")});
  }
}

std::optional<int64_t> optional_integer(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? std::optional(value->get_int64()) : std::nullopt;
}

void read_timeline(const json::array& timeline, LoadTestResult& result) {
  for (const json::value& value : timeline) {
    if (!value.is_object()) continue;
    const json::object& object = value.get_object();
    WatchSample sample;
    sample.t = Reader(object).number("t");
    sample.vram_bytes = optional_integer(object, "vram_bytes");
    sample.host_bytes = optional_integer(object, "host_bytes");
    sample.running = optional_integer(object, "running");
    sample.waiting = optional_integer(object, "waiting");
    sample.kv_pages_used = optional_integer(object, "kv_pages_used");
    sample.in_flight = optional_integer(object, "in_flight").value_or(0);
    result.timeline.push_back(sample);
  }
}

Result<LoadTestResult> read_both(const std::filesystem::path& output, const Measured& measured) {
  QWEN2_TRY(const std::string text, read_text_file(output, size_t{2} << 30));
  QWEN2_TRY(const json::object root, parse_object(text));
  QWEN2_CHECK(check_measured(root, measured));
  Reader reader(root);
  LoadTestResult result;
  result.date = reader.text("date");
  result.duration = reader.number("duration");
  result.client_cpu_seconds = reader.number("client_cpu_seconds");
  result.peak_in_flight = reader.integer("max_concurrent_requests");
  const int64_t planned = reader.integer("num_prompts");
  const json::array texts = reader.array("generated_texts");
  read_segments(reader.array("segments"), result);
  read_timeline(reader.array("timeline"), result);
  QWEN2_CHECK(reader.status());
  if (planned < 1 || planned > 100'000'000) return fail(ErrorKind::kFormat, "'num_prompts' is out of range");
  QWEN2_TRY(const std::string lines, read_text_file(requests_path(output), size_t{2} << 30));
  auto records = read_records(lines, planned, texts);
  if (!records) return within(requests_path(output).filename().string(), records.error());
  result.records = std::move(*records);
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
