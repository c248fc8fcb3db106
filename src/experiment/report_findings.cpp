#include "experiment/report_findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot/scale.h"

namespace qwen2::report {
namespace {

using Names = std::vector<std::string>;

const Names& look_up(const std::map<std::string, Names>& table, const std::string& measure) {
  static const Names kNone;
  const auto found = table.find(measure);
  return found == table.end() ? kNone : found->second;
}

bool is_better(const Metric& a, const Metric& b) {
  return a.better == Better::kHigher ? a.mean > b.mean : a.mean < b.mean;
}

// The point with the best mean; null where none has the metric.
const Point* best_point(const PointList& points, const std::string& name) {
  const Point* best = nullptr;
  for (const Point* point : with_metric(points, name)) {
    if (best == nullptr || is_better(*point->metric(name), *best->metric(name))) best = point;
  }
  return best;
}

void add_best(const Group& group, std::vector<Finding>& out) {
  const Names axes = varied_axes(group.points);
  for (const std::string& name : compared_metrics(group.measure)) {
    const Point* point = best_point(group.points, name);
    if (point == nullptr) continue;
    const Metric& m = *point->metric(name);
    if (m.better == Better::kNone) continue;
    const std::string where = axes.empty() ? point->label : name_without(*point, axes, "");
    out.push_back(
        {fmt::format("{} {} ({})", m.better == Better::kHigher ? "Highest" : "Lowest", m.label, group.grid),
         format_metric(m), where, m.mean});
  }
}

std::string format_duration(double seconds) {
  if (seconds < 120) return plot::format_quantity(seconds, "s");
  const auto minutes = static_cast<int64_t>(std::round(seconds / 60));
  return minutes < 120 ? fmt::format("{} min", minutes)
                       : fmt::format("{} h {} min", minutes / 60, minutes % 60);
}

int64_t points_with(const Experiment& experiment, RepeatStatus status) {
  return std::count_if(experiment.points.begin(), experiment.points.end(),
                       [&](const Point& p) { return p.count(status) > 0; });
}

std::string names_of(const Experiment& experiment, RepeatStatus status) {
  std::string names;
  int64_t n = 0;
  for (const Point& point : experiment.points) {
    if (point.count(status) == 0 || ++n > 4) continue;
    names += (names.empty() ? "" : "; ") + point.label;
  }
  return n > 4 ? fmt::format("{}; and {} more", names, n - 4) : names;
}

void add_points(const Experiment& experiment, std::vector<Finding>& out) {
  const int64_t ok = points_with(experiment, RepeatStatus::kOk);
  const auto total = static_cast<int64_t>(experiment.points.size());
  out.push_back(
      {"Points with results", fmt::format("{} of {}", ok, total), "", static_cast<double>(ok), ok < total});
  for (const auto& [status, what] : {std::pair{RepeatStatus::kRefused, "Points that were refused"},
                                     {RepeatStatus::kFailed, "Points with failed repeats"},
                                     {RepeatStatus::kMissing, "Points with missing results"}}) {
    const int64_t n = points_with(experiment, status);
    if (n > 0)
      out.push_back({what, std::to_string(n), names_of(experiment, status), static_cast<double>(n), true});
  }
  int64_t failed = 0;
  std::string kinds;
  for (const auto& [kind, n] : request_failures(experiment.points)) {
    failed += n;
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", kind, n);
  }
  if (failed > 0)
    out.push_back({"Requests that failed", std::to_string(failed), kinds, static_cast<double>(failed), true});
  double seconds = 0;
  for (const Point& point : experiment.points) {
    for (const Repeat& repeat : point.repeats) seconds += std::isfinite(repeat.seconds) ? repeat.seconds : 0;
  }
  if (seconds > 0) out.push_back({"Time of all measurements", format_duration(seconds), "", seconds});
}

// How far the plan was from the measurement, at worst, where one result has both.
void add_plan_error(const Experiment& experiment, std::vector<Finding>& out) {
  double worst = 0;
  const Point* where = nullptr;
  for (const Point& point : experiment.points) {
    for (const Repeat& repeat : point.repeats) {
      const Measurement& m = repeat.measurement;
      if (!m.plan || !std::isfinite(m.memory_bytes)) continue;
      const double error = m.memory_bytes / m.plan->total - 1;
      if (where != nullptr && std::abs(error) <= std::abs(worst)) continue;
      worst = error;
      where = &point;
    }
  }
  if (where == nullptr) return;
  out.push_back({"Measured memory against the plan, at worst",
                 fmt::format("{}{} %", worst > 0 ? "+" : "", plot::format_fixed(100 * worst, 1)),
                 where->label, worst, worst > 0});
}

}  // namespace

const Names& headline_metrics(const std::string& measure) {
  static const std::map<std::string, Names> kTable{
      {"serve",
       {"output_throughput", "request_goodput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms",
        "p99_tpot_ms", "p99_e2el_ms", "failed"}},
      {"engine",
       {"prefill_tokens_per_second.median", "decode_tokens_per_second.median", "bandwidth_fraction",
        "weight_bytes", "device_memory_bytes", "peak_memory_bytes"}},
      {"evaluate",
       {"perplexity", "mean_kl", "same_top1", "logit_error_p999", "weight_bytes", "bytes_per_decode_step"}},
      {"plan",
       {"bytes.total", "bytes.weights", "bytes.kv_pool", "kv_tokens", "resident_requests",
        "roofline.tpot_seconds"}}};
  return look_up(kTable, measure);
}

const Names& compared_metrics(const std::string& measure) {
  static const std::map<std::string, Names> kTable{
      {"serve", {"output_throughput", "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms"}},
      {"engine",
       {"prefill_tokens_per_second.median", "decode_tokens_per_second.median", "device_memory_bytes"}},
      {"evaluate", {"perplexity", "mean_kl"}},
      {"plan", {"resident_requests"}}};
  return look_up(kTable, measure);
}

std::map<std::string, int64_t> request_failures(const std::vector<Point>& points) {
  std::map<std::string, int64_t> failures;
  for (const Point& point : points) {
    for (const Repeat& repeat : point.repeats) {
      for (const auto& [kind, n] : repeat.measurement.failures) failures[kind] += n;
    }
  }
  return failures;
}

bool fits(const Point& point) {
  return std::all_of(point.repeats.begin(), point.repeats.end(),
                     [](const Repeat& r) { return r.measurement.fits; });
}

std::vector<Finding> findings(const Experiment& experiment, const std::vector<Group>& groups) {
  std::vector<Finding> out;
  for (const Group& group : groups) add_best(group, out);
  add_plan_error(experiment, out);
  add_points(experiment, out);
  return out;
}

}  // namespace qwen2::report
