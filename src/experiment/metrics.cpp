#include "experiment/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/units.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr bool kExact = true;
constexpr bool kMain = true;

std::vector<Metric> engine_metrics() {
  using enum Better;
  return {
      {"prefill_tokens_per_second.median", "prefill", "tok/s", kHigher, !kExact, kMain},
      {"decode_tokens_per_second.median", "decode", "tok/s", kHigher, !kExact, kMain},
      {"bandwidth_fraction", "share of the read", "", kNeither, !kExact, !kMain},
      {"read_bandwidth_bytes_per_second", "plain read", "B/s", kNeither, !kExact, !kMain},
      {"bytes_per_decode_step", "bytes a step", "B", kLower, kExact, kMain},
      {"weight_bytes", "weights", "B", kLower, kExact, kMain},
      {"kv_bytes_per_token", "KV a token", "B", kLower, kExact, !kMain},
      {"peak_memory_bytes", "peak resident", "B", kLower, !kExact, !kMain},
      {"device_memory_bytes", "held on the GPU", "B", kLower, !kExact, kMain},
      {"memory_plan.total", "planned", "B", kLower, !kExact, !kMain},
      {"memory_plan.kv_pool", "planned KV pool", "B", kNeither, !kExact, !kMain},
  };
}

std::vector<Metric> serve_metrics() {
  using enum Better;
  std::vector<Metric> metrics = {
      {"output_throughput", "output", "tok/s", kHigher, !kExact, kMain},
      {"total_token_throughput", "all tokens", "tok/s", kHigher, !kExact, !kMain},
      {"request_throughput", "requests", "req/s", kHigher, !kExact, !kMain},
      {"request_goodput", "goodput", "req/s", kHigher, !kExact, !kMain},
      {"completed", "completed", "", kNeither, !kExact, !kMain},
      {"failed", "failed", "", kLower, !kExact, kMain},
      {"duration", "duration", "s", kNeither, !kExact, !kMain},
  };
  struct Time {
    std::string_view key, label;
  };
  struct Statistic {
    std::string_view key, label;
  };
  for (const auto& [key, label] :
       {Time{"ttft", "TTFT"}, Time{"tpot", "TPOT"}, Time{"itl", "ITL"}, Time{"e2el", "E2E"}}) {
    for (const auto& [statistic, words] :
         {Statistic{"mean", "mean"}, Statistic{"median", "median"}, Statistic{"p90", "p90"},
          Statistic{"p95", "p95"}, Statistic{"p99", "p99"}}) {
      const bool is_main = (statistic == "median" || statistic == "p99") && (key == "ttft" || key == "tpot");
      metrics.push_back({fmt::format("{}_{}_ms", statistic, key), fmt::format("{} {}", label, words), "ms",
                         kLower, !kExact, is_main});
    }
  }
  metrics.push_back({"queue_ms.p50", "queue median", "ms", kNeither, !kExact, !kMain});
  metrics.push_back({"queue_ms.p99", "queue p99", "ms", kNeither, !kExact, !kMain});
  metrics.push_back({"client_lag_ms.p99", "client's lag p99", "ms", kNeither, !kExact, !kMain});
  metrics.push_back({"peak_vram_bytes", "peak on the GPU", "B", kLower, !kExact, !kMain});
  metrics.push_back({"peak_host_bytes", "peak resident", "B", kLower, !kExact, !kMain});
  metrics.push_back({"memory_plan.total", "planned", "B", kLower, !kExact, !kMain});
  return metrics;
}

std::vector<Metric> evaluate_metrics() {
  using enum Better;
  return {
      {"perplexity", "perplexity", "", kLower, kExact, kMain},
      {"mean_kl", "KL", "nats", kLower, kExact, kMain},
      {"same_top1", "same top token", "fraction", kHigher, kExact, kMain},
      {"logit_error_p999", "logit error p99.9", "", kLower, kExact, !kMain},
      {"bytes_per_decode_step", "bytes a step", "B", kLower, kExact, kMain},
      {"weight_bytes", "weights", "B", kLower, kExact, kMain},
      {"kv_bytes_per_token", "KV a token", "B", kLower, kExact, !kMain},
  };
}

std::vector<Metric> plan_metrics() {
  using enum Better;
  return {
      {"resident_requests", "requests at once", "", kHigher, kExact, kMain},
      {"kv_tokens", "KV tokens", "", kHigher, kExact, kMain},
      {"bytes.total", "planned", "B", kLower, kExact, kMain},
      {"bytes.weights", "weights", "B", kLower, kExact, kMain},
      {"bytes.kv_pool", "KV pool", "B", kNeither, kExact, !kMain},
      {"bytes.workspace", "workspace", "B", kLower, kExact, !kMain},
      {"bytes.budget", "budget", "B", kNeither, kExact, !kMain},
      {"kv_bytes_per_token", "KV a token", "B", kLower, kExact, !kMain},
      {"roofline.ttft_seconds", "TTFT at best", "s", kLower, kExact, !kMain},
      {"roofline.tpot_seconds", "TPOT at best", "s", kLower, kExact, !kMain},
      {"roofline.output_tokens_per_second", "output at best", "tok/s", kHigher, kExact, !kMain},
  };
}

std::optional<double> number_of(const json::value& value) {
  if (value.is_bool()) return value.get_bool() ? 1.0 : 0.0;
  if (!value.is_number()) return std::nullopt;
  const auto number = value.to_number<double>();
  return std::isfinite(number) ? std::optional(number) : std::nullopt;
}

std::optional<double> largest_in_timeline(const json::object& result, std::string_view key) {
  const json::value* timeline = result.if_contains("timeline");
  if (timeline == nullptr || !timeline->is_array()) return std::nullopt;
  std::optional<double> largest;
  for (const json::value& sample : timeline->get_array()) {
    const json::value* value = sample.is_object() ? sample.get_object().if_contains(key) : nullptr;
    const auto number = value == nullptr ? std::nullopt : number_of(*value);
    if (number && (!largest || *number > *largest)) largest = number;
  }
  return largest;
}

}  // namespace

std::string_view name_of(Better better) {
  return better == Better::kHigher ? "higher" : better == Better::kLower ? "lower" : "none";
}

std::span<const Metric> metrics_of(Measure measure) {
  static const std::array<std::vector<Metric>, 4> all = {engine_metrics(), serve_metrics(),
                                                         evaluate_metrics(), plan_metrics()};
  return all[static_cast<size_t>(measure)];
}

const Metric* find_metric(std::string_view name) {
  for (const Measure measure : {Measure::kEngine, Measure::kServe, Measure::kEvaluate, Measure::kPlan}) {
    const auto metrics = metrics_of(measure);
    const auto found = std::ranges::find(metrics, name, &Metric::name);
    if (found != metrics.end()) return &*found;
  }
  return nullptr;
}

std::optional<double> read_metric(const json::object& result, const Metric& metric) {
  if (metric.name == "peak_vram_bytes") return largest_in_timeline(result, "vram_bytes");
  if (metric.name == "peak_host_bytes") return largest_in_timeline(result, "host_bytes");
  const json::object* object = &result;
  std::string_view rest = metric.name;
  for (size_t dot = rest.find('.'); dot != std::string_view::npos; dot = rest.find('.')) {
    const json::value* inner = object->if_contains(rest.substr(0, dot));
    object = inner == nullptr ? nullptr : inner->if_object();
    if (object == nullptr) return std::nullopt;
    rest.remove_prefix(dot + 1);
  }
  const json::value* value = object->if_contains(rest);
  return value == nullptr ? std::nullopt : number_of(*value);
}

std::string format_metric(double value, std::string_view unit) {
  if (unit == "B" && value >= 0) return format_bytes(static_cast<uint64_t>(value));
  if (unit == "B/s") return fmt::format("{:.1f} GB/s", value / 1e9);
  if (unit == "fraction") return fmt::format("{:.2f} %", 100 * value);
  const std::string digits = std::abs(value) >= 1000 || value == std::floor(value)
                                 ? fmt::format("{:.0f}", value)
                                 : fmt::format("{:.4g}", value);
  return unit.empty() ? digits : fmt::format("{} {}", digits, unit);
}

}  // namespace qwen2
