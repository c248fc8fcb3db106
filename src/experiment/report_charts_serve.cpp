// Charts of single requests and of the service's state while they ran.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "experiment/report_charts.h"

namespace qwen2::report {

using plot::Chart;
using plot::Mark;
using plot::Series;
using plot::XyChart;

namespace {

constexpr size_t kMostDistributions = 6;
constexpr size_t kMostSteps = 240;    // of one timeline or distribution
constexpr size_t kMostRequests = 60;  // of the Gantt chart

// (last content - first content) / (tokens - 1), in seconds; NaN without two content events.
double time_per_token(const Request& r) {
  if (!r.failure.empty() || r.completion_tokens < 2 || !(r.last_content > r.first_content)) return kNoValue;
  return (r.last_content - r.first_content) / static_cast<double>(r.completion_tokens - 1);
}

enum class Latency { kFirstToken, kPerToken };

// Seconds of all requests of all repeats, ascending.
std::vector<double> latencies(const Point& point, Latency which) {
  std::vector<double> values;
  for (const Repeat& repeat : point.repeats) {
    if (which == Latency::kFirstToken) {
      values.insert(values.end(), repeat.measurement.ttft.begin(), repeat.measurement.ttft.end());
      continue;
    }
    for (const Request& request : repeat.measurement.requests) values.push_back(time_per_token(request));
  }
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  std::sort(values.begin(), values.end());
  return values;
}

// The share of values up to each, at no more than kMostSteps of them.
Series distribution(const std::vector<double>& sorted) {
  Series series{.mark = Mark::kStep};
  const size_t n = sorted.size();
  const size_t steps = std::min(n, kMostSteps);
  series.samples.push_back({.x = sorted.front(), .y = 0});
  for (size_t k = 1; k <= steps; ++k) {
    const size_t count = k * n / steps;
    series.samples.push_back(
        {.x = sorted[count - 1], .y = static_cast<double>(count) / static_cast<double>(n)});
  }
  return series;
}

PointList evenly_chosen(const PointList& points, size_t most) {
  if (points.size() <= most) return points;
  PointList chosen;
  for (size_t i = 0; i < most; ++i) chosen.push_back(points[i * (points.size() - 1) / (most - 1)]);
  return chosen;
}

std::optional<Chart> distribution_chart(const Group& group, Latency which, const std::string& title,
                                        const std::string& word) {
  PointList points = group.points;
  std::erase_if(points, [&](const Point* p) { return latencies(*p, which).size() < 2; });
  if (points.empty()) return std::nullopt;
  const PointList drawn = evenly_chosen(points, kMostDistributions);
  const std::vector<std::string> axes = varied_axes(group.points);
  XyChart chart;
  chart.x = {.title = word, .unit = "s"};
  chart.y = {.title = "requests at or below", .unit = "fraction", .from_zero = true};
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (size_t i = 0; i < drawn.size(); ++i) {
    const std::vector<double> values = latencies(*drawn[i], which);
    low = std::min(low, values.front());
    high = std::max(high, values.back());
    Series series = distribution(values);
    series.name = axes.empty() ? drawn[i]->label : name_without(*drawn[i], axes, "");
    series.colour = series.pattern = static_cast<int>(i);
    chart.series.push_back(std::move(series));
  }
  if (low > 0 && high / low > 20) chart.x.scale = plot::ScaleKind::kLog;
  std::string note = "Every request of every repeat.";
  if (drawn.size() < points.size())
    note += fmt::format(" {} of {} points are drawn.", drawn.size(), points.size());
  return Chart{"", title, std::move(note), std::move(chart)};
}

}  // namespace

void add_distribution_charts(const Group& group, std::vector<Chart>& charts) {
  if (group.measure != "serve") return;
  for (auto& chart :
       {distribution_chart(group, Latency::kFirstToken, "Distribution of the time to the first token",
                           "TTFT"),
        distribution_chart(group, Latency::kPerToken, "Distribution of the time per output token", "TPOT")}) {
    if (chart) charts.push_back(*chart);
  }
}

const Point* busiest_point(const Group& group) {
  const std::string axis = load_axis(group.points);
  const Point* busiest = nullptr;
  for (const Point* point : group.points) {
    const bool any = std::any_of(point->repeats.begin(), point->repeats.end(), [](const Repeat& r) {
      return !r.measurement.requests.empty() || !r.measurement.timeline.empty();
    });
    if (!any) continue;
    if (busiest == nullptr || (!axis.empty() && point->axis(axis)->number > busiest->axis(axis)->number))
      busiest = point;
  }
  return busiest;
}

namespace {

// The largest value of each of at most kMostSteps parts of the time: peaks are what matters.
Series timeline_series(const std::vector<TimelineSample>& timeline, double TimelineSample::* field,
                       const std::string& name, int style) {
  Series series{.name = name, .mark = Mark::kStep, .colour = style, .pattern = style};
  const size_t n = timeline.size();
  const size_t parts = std::min(n, kMostSteps);
  for (size_t k = 0; k < parts; ++k) {
    const size_t begin = k * n / parts;
    double most = kNoValue;
    for (size_t i = begin; i < (k + 1) * n / parts; ++i) most = std::fmax(most, timeline[i].*field);
    if (std::isfinite(most)) series.samples.push_back({.x = timeline[begin].t, .y = most});
  }
  return series;
}

Chart timeline_chart(const std::string& title, const Measurement& m, plot::Axis y, std::string note) {
  XyChart chart;
  chart.x = {.title = "since the start", .unit = "s", .from_zero = true};
  chart.y = std::move(y);
  chart.y.from_zero = true;
  if (m.timeline.size() > kMostSteps) {
    note += fmt::format(" {} samples as the maxima of {} parts.", m.timeline.size(), kMostSteps);
  }
  return {"", title, std::move(note), std::move(chart)};
}

void add_series(Chart& chart, Series series) {
  if (!series.samples.empty()) std::get<XyChart>(chart.body).series.push_back(std::move(series));
}

Chart memory_timeline(const Measurement& m, const std::string& note) {
  Chart chart = timeline_chart("Memory over time", m, {.title = "memory", .unit = "B"}, note);
  add_series(chart, timeline_series(m.timeline, &TimelineSample::vram_bytes, "GPU, the whole process", 0));
  add_series(chart, timeline_series(m.timeline, &TimelineSample::host_bytes, "host, resident", 1));
  const bool on_gpu = std::any_of(m.timeline.begin(), m.timeline.end(),
                                  [](const auto& s) { return std::isfinite(s.vram_bytes); });
  if (m.plan) {
    std::get<XyChart>(chart.body)
        .rules.push_back({m.plan->total, on_gpu ? "planned for the GPU" : "planned"});
  }
  return chart;
}

Chart queue_timeline(const Measurement& m, const std::string& note) {
  Chart chart =
      timeline_chart("Requests over time", m, {.title = "requests in the service", .unit = ""}, note);
  Series running = timeline_series(m.timeline, &TimelineSample::running, "running", 0);
  running.mark = Mark::kArea;
  add_series(chart, std::move(running));
  add_series(chart, timeline_series(m.timeline, &TimelineSample::waiting, "waiting", 1));
  return chart;
}

std::string request_tip(const Request& r) {
  std::string tip = fmt::format("request {}: {} + {} tokens", r.index, r.prompt_tokens, r.completion_tokens);
  if (std::isfinite(r.queue_seconds))
    tip += fmt::format(", {} in the queue", plot::format_quantity(r.queue_seconds, "s"));
  if (std::isfinite(r.first_content))
    tip += fmt::format(", first token after {}", plot::format_quantity(r.first_content - r.sent, "s"));
  if (!r.failure.empty()) tip += ", failed: " + r.failure;
  return tip;
}

Chart gantt_chart(const Measurement& m, std::string note) {
  std::vector<Request> requests = m.requests;
  std::stable_sort(requests.begin(), requests.end(),
                   [](const Request& a, const Request& b) { return a.sent < b.sent; });
  if (requests.size() > kMostRequests) {
    note += fmt::format(" The first {} of {} requests.", kMostRequests, requests.size());
    requests.resize(kMostRequests);
  }
  plot::Gantt gantt;
  for (const Request& r : requests) {
    const double end = std::isfinite(r.last_content) ? r.last_content : r.end;
    gantt.rows.push_back({.name = std::to_string(r.index),
                          .sent = r.sent,
                          .admitted = r.sent + r.queue_seconds,
                          .first = r.first_content,
                          .end = end,
                          .failed = !r.failure.empty(),
                          .tip = request_tip(r)});
  }
  return {"", "Life of the requests", std::move(note), std::move(gantt)};
}

// A chart with nothing finite to draw would only say so.
bool has_values(const Chart& chart) {
  return !std::get<XyChart>(chart.body).series.empty();
}

}  // namespace

void add_timeline_charts(const Group& group, std::vector<Chart>& charts) {
  if (group.measure != "serve") return;
  const Point* point = busiest_point(group);
  if (point == nullptr) return;
  const std::vector<std::string> axes = varied_axes(group.points);
  const std::string name = axes.empty() ? point->label : name_without(*point, axes, "");
  const auto repeat = std::find_if(point->repeats.begin(), point->repeats.end(), [](const Repeat& r) {
    return !r.measurement.requests.empty() || !r.measurement.timeline.empty();
  });
  const Measurement& m = repeat->measurement;
  const std::string note = fmt::format("{}, repeat {}.", name, repeat - point->repeats.begin() + 1);
  for (const Chart& chart : {memory_timeline(m, note), queue_timeline(m, note)}) {
    if (has_values(chart)) charts.push_back(chart);
  }
  if (!m.requests.empty()) charts.push_back(gantt_chart(m, note));
}

}  // namespace qwen2::report
