#include "loadgen/trace.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>

#include "base/memory.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr size_t kMaxTraceBytes = size_t{1} << 30;
constexpr int64_t kLongest = int64_t{1} << 24;  // tokens

enum Field : uint8_t { kArrival, kInput, kOutput, kFields };
constexpr std::array<std::string_view, kFields> kFieldNames{"arrival", "input_tokens", "output_tokens"};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

std::optional<Field> field_of(std::string_view name) {
  const std::string key = lower(name);
  if (key == "arrival" || key == "timestamp") return kArrival;
  if (key == "input_tokens" || key == "contexttokens" || key == "request tokens") return kInput;
  if (key == "output_tokens" || key == "generatedtokens" || key == "response tokens") return kOutput;
  return std::nullopt;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r'))
    text.remove_suffix(1);
  return text;
}

// The cells of a line; a quoted one may hold commas.
std::vector<std::string> cells_of(std::string_view line) {
  std::vector<std::string> cells(1);
  bool quoted = false;
  for (const char c : line) {
    if (c == '"') {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  for (std::string& cell : cells) cell = trim(cell);
  return cells;
}

std::optional<double> number(std::string_view text) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

using Row = std::array<std::string, kFields>;

Result<TraceEntry> entry_of(const Row& row) {
  TraceEntry entry;
  if (const auto seconds = number(row[kArrival])) {
    entry.arrival = *seconds;
  } else {
    QWEN2_TRY(entry.arrival, parse_date(row[kArrival]));
  }
  for (const Field field : {kInput, kOutput}) {
    const auto count = number(row[field]);
    if (!count || *count < 0 || *count > static_cast<double>(kLongest) || *count != std::floor(*count)) {
      return fail(ErrorKind::kFormat, "'{}' must be a number of tokens from 0 to {}, not '{}'",
                  kFieldNames[field], kLongest, row[field]);
    }
    (field == kInput ? entry.input_tokens : entry.output_tokens) = static_cast<int64_t>(*count);
  }
  return entry;
}

Result<Row> json_row(std::string_view line) {
  json::error_code code;
  const json::value root = json::parse(line, code);
  if (code || !root.is_object()) return fail(ErrorKind::kFormat, "not a JSON object");
  Row row;
  for (const auto& [name, value] : root.get_object()) {
    const auto field = field_of(name);
    if (!field) continue;
    row[*field] = value.is_string() ? std::string(value.get_string()) : json::serialize(value);
  }
  return row;
}

using Columns = std::array<std::optional<size_t>, kFields>;

Result<Columns> columns_of(std::string_view header) {
  Columns columns;
  const auto names = cells_of(header);
  for (size_t i = 0; i < names.size(); ++i) {
    if (const auto field = field_of(names[i])) columns[*field] = i;
  }
  for (size_t i = 0; i < kFields; ++i) {
    if (columns[i]) continue;
    return fail(
        ErrorKind::kFormat,
        "no column for '{}' in '{}': expected arrival,input_tokens,output_tokens, or Azure's or BurstGPT's "
        "names",
        kFieldNames[i], header);
  }
  return columns;
}

Result<Row> csv_row(std::string_view line, const Columns& columns) {
  const auto cells = cells_of(line);
  Row row;
  for (size_t i = 0; i < kFields; ++i) {
    if (*columns[i] >= cells.size()) return fail(ErrorKind::kFormat, "only {} columns", cells.size());
    row[i] = cells[*columns[i]];
  }
  return row;
}

Result<Trace> parse_trace(std::string_view text) {
  Trace trace;
  std::optional<Columns> columns;
  int64_t number_of_line = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number_of_line;
    if (number_of_line == 1 && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    if (line.empty()) continue;
    const bool is_json = line.starts_with('{');
    if (!is_json && !columns) {
      QWEN2_TRY(columns, columns_of(line));
      continue;
    }
    const auto row = is_json ? json_row(line) : csv_row(line, *columns);
    const auto entry = row ? entry_of(*row) : Result<TraceEntry>(std::unexpected(row.error()));
    if (!entry) return within(fmt::format("line {}", number_of_line), entry.error());
    if (entry->input_tokens == 0 || entry->output_tokens == 0) {
      ++trace.skipped;
    } else {
      trace.entries.push_back(*entry);
    }
  }
  if (trace.entries.empty()) return fail(ErrorKind::kFormat, "no requests in it");
  return trace;
}

}  // namespace

Result<double> parse_date(std::string_view text) {
  const auto wrong = [&] {
    return fail(ErrorKind::kFormat, "'{}' is neither seconds nor a date like 2023-11-16 18:17:03.97", text);
  };
  static constexpr std::string_view kShape = "dddd-dd-dd dd:dd:dd";
  if (text.size() < kShape.size()) return wrong();
  std::array<int, 6> parts{};
  size_t part = 0;
  for (size_t i = 0; i < kShape.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (kShape[i] == 'd' ? !digit : text[i] != kShape[i] && !(i == 10 && text[i] == 'T')) return wrong();
    if (digit) {
      parts[part] = parts[part] * 10 + (text[i] - '0');
    } else {
      ++part;
    }
  }
  std::string_view rest = text.substr(kShape.size());
  for (const std::string_view zone : {"Z", "+00:00"}) {
    if (rest.ends_with(zone)) rest.remove_suffix(zone.size());
  }
  const std::optional<double> fraction = rest.empty()            ? 0.0
                                         : rest.starts_with('.') ? number(rest)
                                                                 : std::nullopt;
  const std::chrono::year_month_day day{std::chrono::year{parts[0]},
                                        std::chrono::month{static_cast<unsigned>(parts[1])},
                                        std::chrono::day{static_cast<unsigned>(parts[2])}};
  if (!fraction || !day.ok() || parts[3] > 23 || parts[4] > 59 || parts[5] > 60) return wrong();
  const auto days = std::chrono::sys_days{day}.time_since_epoch().count();
  return static_cast<double>(days) * 86400 + parts[3] * 3600 + parts[4] * 60 + parts[5] + *fraction;
}

Result<Trace> read_trace(const std::filesystem::path& path) {
  QWEN2_TRY(const std::string text, read_text_file(path, kMaxTraceBytes));
  auto trace = parse_trace(text);
  if (!trace) return within(fmt::format("--trace '{}'", path.string()), trace.error());
  std::stable_sort(trace->entries.begin(), trace->entries.end(),
                   [](const TraceEntry& a, const TraceEntry& b) { return a.arrival < b.arrival; });
  const double first = trace->entries.front().arrival;
  for (TraceEntry& entry : trace->entries) entry.arrival -= first;
  return trace;
}

}  // namespace qwen2
