#include "experiment/summary.h"

#include <algorithm>
#include <array>

#include "base/json_fields.h"
#include "base/memory.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr double kConfidence = 0.95;

double median_of(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

json::object to_json(const MetricSummary& s) {
  const Moments m = moments_of(s.values);
  const auto interval = mean_interval(m, kConfidence);
  return {{"n", m.n},
          {"mean", m.mean},
          {"ci_low", interval ? json::value(interval->low) : json::value(nullptr)},
          {"ci_high", interval ? json::value(interval->high) : json::value(nullptr)},
          {"median", median_of(s.values)},
          {"min", std::ranges::min(s.values)},
          {"max", std::ranges::max(s.values)},
          {"values", json::value_from(s.values)},
          {"label", s.metric->label},
          {"unit", s.metric->unit},
          {"better", name_of(s.metric->better)}};
}

// "1234 tok/s ± 1.2 %", the percentage being half of the interval's width.
std::string cell(const MetricSummary& s) {
  const Moments m = moments_of(s.values);
  std::string mean = format_metric(m.mean, s.metric->unit);
  const auto interval = mean_interval(m, kConfidence);
  if (!interval || interval->high == interval->low) return mean;
  const double half = (interval->high - interval->low) / 2;
  if (m.mean == 0) return fmt::format("{} ± {:.2g}", mean, half);
  const double percent = 100 * half / std::abs(m.mean);
  return percent < 10 ? fmt::format("{} ± {:.1f} %", mean, percent)
                      : fmt::format("{} ± {:.0f} %", mean, percent);
}

// Characters, not bytes: "±" has two bytes.
size_t width_of(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string padded(const std::string& text, size_t width) {
  return text + std::string(width - std::min(width, width_of(text)), ' ');
}

std::string status_of(const ManifestPoint& point) {
  if (point.repeats.empty()) return "not run";
  const Repeat& last = point.repeats.back();
  if (last.outcome == Outcome::kOk) return "no known metric";
  return fmt::format("{}: {}", name_of(last.outcome), last.error.substr(0, 90));
}

// The rows of one measure, header first; a point without results has its status in place of numbers.
std::vector<std::vector<std::string>> rows_of(const std::vector<PointSummary>& points, Measure measure) {
  std::vector<const Metric*> columns;
  for (const Metric& metric : metrics_of(measure)) {
    const bool found = std::ranges::any_of(points, [&](const PointSummary& p) {
      return p.point->measure == measure &&
             std::ranges::find(p.metrics, &metric, &MetricSummary::metric) != p.metrics.end();
    });
    if (metric.main && found) columns.push_back(&metric);
  }
  std::vector<std::vector<std::string>> rows(1, {std::string(name_of(measure))});
  for (const Metric* metric : columns) rows[0].push_back(metric->label);
  for (const PointSummary& p : points) {
    if (p.point->measure != measure) continue;
    std::vector<std::string>& row = rows.emplace_back(1, p.point->label);
    for (const Metric* metric : columns) {
      const auto found = std::ranges::find(p.metrics, metric, &MetricSummary::metric);
      row.push_back(found == p.metrics.end() ? "" : cell(*found));
    }
    if (p.metrics.empty()) row = {p.point->label, status_of(*p.point)};
  }
  return rows;
}

}  // namespace

Result<std::vector<PointSummary>> summarise_points(const fs::path& directory, const Manifest& manifest) {
  std::vector<PointSummary> summaries;
  for (const ManifestPoint& point : manifest.points) {
    PointSummary& summary = summaries.emplace_back(&point);
    std::vector<JsonFields> results;
    for (const Repeat& repeat : point.repeats) {
      if (repeat.outcome != Outcome::kOk) continue;
      QWEN2_TRY(JsonFields result, JsonFields::read(directory / repeat.file));
      results.push_back(std::move(result));
    }
    for (const Metric& metric : metrics_of(point.measure)) {
      MetricSummary found{&metric, {}};
      for (const JsonFields& result : results) {
        if (const auto value = read_metric(result.object(), metric)) found.values.push_back(*value);
      }
      if (!found.values.empty()) summary.metrics.push_back(std::move(found));
    }
  }
  return summaries;
}

Status write_summary(const fs::path& directory, const std::vector<PointSummary>& points) {
  json::array list;
  for (const PointSummary& p : points) {
    json::object metrics;
    for (const MetricSummary& m : p.metrics) metrics[m.metric->name] = to_json(m);
    list.push_back(json::object{{"id", p.point->id},
                                {"label", p.point->label},
                                {"axes", p.point->axes},
                                {"metrics", std::move(metrics)}});
  }
  return write_file(directory / "summary.json", json::serialize(json::object{{"points", list}}) + "\n");
}

std::string format_summary(const std::vector<PointSummary>& points) {
  std::string text;
  for (const Measure measure : {Measure::kEngine, Measure::kServe, Measure::kEvaluate, Measure::kPlan}) {
    const auto rows = rows_of(points, measure);
    if (rows.size() == 1) continue;
    std::vector<size_t> widths(rows[0].size(), 0);
    for (const auto& row : rows) {
      // A status may be as long as it likes.
      const size_t counted = row.size() == rows[0].size() ? row.size() : 1;
      for (size_t i = 0; i < counted; ++i) widths[i] = std::max(widths[i], width_of(row[i]));
    }
    if (!text.empty()) text += '\n';
    for (const auto& row : rows) {
      std::string line;
      for (size_t i = 0; i < row.size(); ++i)
        line += padded(row[i], i < widths.size() ? widths[i] : 0) + "  ";
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + '\n';
    }
  }
  return text;
}

}  // namespace qwen2
