#include "loadgen/table.h"

#include "loadgen/measures.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

std::string describe_load(const LoadTestOptions& o, const LoadTestResult& r) {
  if (!o.trace.empty()) return fmt::format("as in the trace, {} times as fast", o.speed);
  if (o.rate) return fmt::format("{} a second ({})", *o.rate, name_of(o.arrivals));
  return fmt::format("{} at a time", r.concurrency);
}

std::string describe_lengths(const LoadTestOptions& o) {
  if (!o.trace.empty()) return "lengths of the trace";
  const std::string output = o.max_new_tokens    ? o.max_new_tokens->text()
                             : o.prompts.empty() ? std::to_string(kDefaultNewTokens)
                                                 : "the file's";
  return fmt::format("{} prompt + {} new tokens", o.prompts.empty() ? o.ctx_len.text() : "the file's",
                     output);
}

void add_row(std::string& out, std::string_view name, const Summary& s) {
  if (s.n == 0) return;
  const auto cell = [&](double seconds, double p) {
    return fmt::format("{:.1f}{}", seconds * 1e3, p > 0 && !s.enough_for(p) ? "*" : " ");
  };
  out += fmt::format("{:<12}{:>10}{:>10}{:>10}{:>10}{:>8}\n", name, cell(s.mean, 0), cell(s.p50, 50),
                     cell(s.p95, 95), cell(s.p99, 99), s.n);
}

double per_second(double count, double seconds) {
  return seconds > 0 ? count / seconds : 0;
}

void add_failures(std::string& out, const LoadTestResult& r, const Measures& m) {
  out += fmt::format("failures    {} of {}", m.failed, m.failed + m.completed);
  for (const auto& [kind, count] : m.failures) out += fmt::format(", {} {}", count, kind);
  for (const RequestRecord& record : r.records) {
    if (record.failure.empty()) continue;
    out += fmt::format("\n            first: {}", record.detail);
    break;
  }
  out += "\n";
}

// A number of a result file; a dash where there is none.
std::string cell(const json::object& object, std::string_view key, int digits) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || !value->is_number()) return "-";
  json::error_code code;
  return fmt::format("{:.{}f}", value->to_number<double>(code), digits);
}

}  // namespace

std::string format_table(const LoadTestOptions& o, const LoadTestResult& r) {
  const Measures m = measure(r.records, o.objective);
  std::string out =
      fmt::format("{} requests, {}, {}, {} {} ({})\n", r.planned, describe_load(o, r), describe_lengths(o),
                  name_of(r.dialect.kind), name_of(o.flavour), o.stream ? "streaming" : "not streaming");
  if (r.interrupted)
    out += fmt::format("interrupted: {} of {} requests had ended\n", r.records.size(), r.planned);
  out += fmt::format("{:<12}{:>10}{:>10}{:>10}{:>10}{:>8}\n", "", "mean", "p50", "p95", "p99", "n");
  add_row(out, "TTFT ms", m.ttft);
  add_row(out, "TPOT ms", m.tpot);
  add_row(out, "ITL ms", m.itl);
  add_row(out, "E2E ms", m.e2el);
  add_row(out, "queue ms", m.queue);
  add_row(out, "client lag", m.lag);
  out += fmt::format("throughput  {:.2f} requests/s, {:.1f} output tokens/s, {:.1f} tokens/s in all\n",
                     per_second(static_cast<double>(m.completed), r.duration),
                     per_second(static_cast<double>(m.output_tokens), r.duration),
                     per_second(static_cast<double>(m.input_tokens + m.output_tokens), r.duration));
  if (o.objective) {
    out += fmt::format("goodput     {:.2f} requests/s, {} of {} meet {}\n",
                       per_second(static_cast<double>(m.good), r.duration), m.good, m.completed + m.failed,
                       o.objective->text());
  }
  add_failures(out, r, m);
  if (!m.e2el.enough_for(99)) out += "* too few samples for this percentile\n";
  return out;
}

std::string format_table(const SearchResult& result) {
  std::string out =
      fmt::format("{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>10}{:>8}\n", name_of(result.axis), "requests/s",
                  "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "goodput", "failed");
  for (const LoadStep& step : result.steps) {
    const json::object& r = step.result;
    out += fmt::format("{:>12.6g}{:>12}{:>12}{:>12}{:>12}{:>12}{:>10}{:>8}\n", step.load,
                       cell(r, "request_throughput", 2), cell(r, "output_throughput", 1),
                       cell(r, "p50_ttft_ms", 1), cell(r, "p99_ttft_ms", 1), cell(r, "p50_tpot_ms", 1),
                       cell(r, "request_goodput", 2), cell(r, "failed", 0));
  }
  if (result.interrupted) return out + "interrupted: no verdict yet\n";
  const json::object& v = result.verdict;
  if (const json::value* kind = v.if_contains("kind"); kind != nullptr && *kind == "search") {
    return out + fmt::format("highest {} that meets {}: {} (lowest that does not: {})\n",
                             name_of(result.axis), std::string(v.at("slo").get_string()),
                             cell(v, "highest_load_that_meets", 3), cell(v, "lowest_load_that_does_not", 3));
  }
  const json::value& reason = v.at("reason");
  return out + (reason.is_string() ? fmt::format("saturated at {}: {}\n", cell(v, "saturated_at", 3),
                                                 std::string(reason.get_string()))
                                   : std::string("not saturated at any of these loads\n"));
}

}  // namespace qwen2
