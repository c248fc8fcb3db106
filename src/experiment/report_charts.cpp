#include "experiment/report_charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace qwen2::report {

using plot::Chart;
using plot::Mark;
using plot::Sample;
using plot::ScaleKind;
using plot::Series;
using plot::XyChart;

namespace {

constexpr size_t kMostSeries = plot::kColours;
constexpr double kLogRatio = 25;  // from here on a linear axis hides the small values

bool is_log(double low, double high) {
  return low > 0 && high / low >= kLogRatio;
}

std::string tip_of(const Point& point, const Metric& metric) {
  std::string text = fmt::format("{}: {} {}", point.label, metric.label, format_metric(metric));
  if (metric.has_interval()) {
    text += fmt::format(" (95 % interval, {} repeats)", metric.n);
  } else {
    text += metric.n == 1 ? " (one repeat)" : fmt::format(" ({} repeats)", metric.n);
  }
  return text;
}

Sample sample_of(const Point& point, double x, const Metric& y) {
  return {x, y.mean, y.low, y.high, "", tip_of(point, y)};
}

// The x axis of an experiment's axis: numbers on a scale, anything else as categories.
plot::Axis experiment_axis(const PointList& points, const std::string& name, std::optional<bool> log) {
  plot::Axis axis;
  axis.title = name;
  const std::vector<AxisValue> values = values_of(points, name);
  if (!is_numeric(points, name)) {
    axis.scale = ScaleKind::kCategory;
    for (const AxisValue& value : values) axis.categories.push_back(value.text);
    return axis;
  }
  for (const AxisValue& value : values) axis.marks.push_back(value.number);
  // Grids of loads and lengths are powers of two.
  const double low = axis.marks.front();
  const bool wide = low > 0 && values.size() > 2 && axis.marks.back() / low >= 8;
  if (log.value_or(wide) && low > 0) axis.scale = ScaleKind::kLog;
  return axis;
}

double x_of(const Point& point, const plot::Axis& axis) {
  const AxisValue* value = point.axis(axis.title);
  if (value == nullptr) return kNoValue;
  if (axis.scale != ScaleKind::kCategory) return value->number;
  const auto found = std::find(axis.categories.begin(), axis.categories.end(), value->text);
  return static_cast<double>(found - axis.categories.begin());
}

void choose_y_scale(XyChart& chart, std::optional<bool> log) {
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (const Series& series : chart.series) {
    for (const Sample& sample : series.samples) {
      if (!std::isfinite(sample.y)) continue;
      low = std::min(low, sample.y);
      high = std::max(high, sample.y);
    }
  }
  chart.y.scale = low > 0 && log.value_or(is_log(low, high)) ? ScaleKind::kLog : ScaleKind::kLinear;
  chart.y.from_zero = chart.y.scale == ScaleKind::kLinear && low >= 0;
}

// The points by the value of one axis; those without it are left out. Without an axis, all of them.
std::vector<Line> lines_by(const PointList& points, const std::string& axis) {
  if (axis.empty()) return {{"", points}};
  std::vector<Line> lines;
  for (const AxisValue& value : values_of(points, axis)) {
    Line line;
    for (const Point* point : points) {
      const AxisValue* own = point->axis(axis);
      if (own != nullptr && *own == value) line.points.push_back(point);
    }
    line.name = name_without(*line.points.front(), {axis}, "");
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string interval_note(const PointList& points, const std::string& metric) {
  const bool any = std::any_of(points.begin(), points.end(), [&](const Point* p) {
    const Metric* m = p->metric(metric);
    return m != nullptr && m->has_interval() && m->high > m->low;
  });
  if (!any) return "";
  const bool cut = std::any_of(points.begin(), points.end(), [&](const Point* p) {
    const Metric* m = p->metric(metric);
    return m != nullptr && m->low < 0 && m->mean >= 0;
  });
  return std::string("Means; bands and whiskers are 95 % intervals over the repeats") +
         (cut ? ", cut at 0." : ".");
}

void limit_series(std::vector<Line>& lines, std::string& note) {
  if (lines.size() <= kMostSeries) return;
  if (!note.empty()) note += " ";
  note += fmt::format("The first {} of {} series are drawn; the tables have all.", kMostSeries, lines.size());
  lines.resize(kMostSeries);
}

Series styled(std::string name, Mark mark, size_t index) {
  const int i = static_cast<int>(index);
  return {.name = std::move(name), .mark = mark, .colour = i, .pattern = i, .shape = i};
}

bool has_x(const Point& point, const std::string& x) {
  return point.axis(x) != nullptr || point.metric(x) != nullptr;
}

// x is a metric: points in the plane, joined along nothing, each with its label.
Chart scatter(const PointList& points, const ChartSpec& spec) {
  XyChart chart;
  const Metric& x = *points.front()->metric(spec.x);
  const Metric& y = *points.front()->metric(spec.y);
  chart.x = {.title = x.label, .unit = x.unit};
  chart.y = {.title = y.label, .unit = y.unit};
  chart.x.scale = spec.log_x.value_or(false) ? ScaleKind::kLog : ScaleKind::kLinear;
  std::string note = interval_note(points, spec.y);
  const std::vector<std::string> axes = varied_axes(points);
  std::vector<Line> lines = lines_by(points, spec.series);
  limit_series(lines, note);
  for (size_t i = 0; i < lines.size(); ++i) {
    Series series = styled(lines[i].name, Mark::kPoints, i);
    for (const Point* point : lines[i].points) {
      Sample sample = sample_of(*point, point->metric(spec.x)->mean, *point->metric(spec.y));
      sample.label = axes.empty() ? point->label : name_without(*point, axes, "");
      series.samples.push_back(std::move(sample));
    }
    chart.series.push_back(std::move(series));
  }
  choose_y_scale(chart, spec.log_y);
  return {"", spec.title, std::move(note), std::move(chart)};
}

Chart along_axis(const PointList& points, const ChartSpec& spec) {
  XyChart chart;
  chart.x = experiment_axis(points, spec.x, spec.log_x);
  const Metric& y = *points.front()->metric(spec.y);
  chart.y = {.title = y.label, .unit = y.unit};
  std::string note = interval_note(points, spec.y);
  std::vector<Line> lines = lines_along(points, spec.x);
  limit_series(lines, note);
  const Mark mark = chart.x.scale == ScaleKind::kCategory ? Mark::kPoints : Mark::kLine;
  for (size_t i = 0; i < lines.size(); ++i) {
    Series series = styled(lines[i].name, mark, i);
    for (const Point* point : lines[i].points) {
      series.samples.push_back(sample_of(*point, x_of(*point, chart.x), *point->metric(spec.y)));
    }
    chart.series.push_back(std::move(series));
  }
  choose_y_scale(chart, spec.log_y);
  return {"", spec.title, std::move(note), std::move(chart)};
}

}  // namespace

std::optional<Chart> metric_chart(const PointList& all, const ChartSpec& spec) {
  PointList points = with_metric(all, spec.y);
  std::erase_if(points, [&](const Point* p) { return !has_x(*p, spec.x); });
  if (points.empty()) return std::nullopt;
  if (points.front()->axis(spec.x) == nullptr) return scatter(with_metric(points, spec.x), spec);
  std::erase_if(points, [&](const Point* p) {
    return p->axis(spec.x) == nullptr || (!spec.series.empty() && p->axis(spec.series) == nullptr);
  });
  if (points.empty()) return std::nullopt;
  return along_axis(points, spec);
}

std::string load_axis(const PointList& points) {
  for (const char* name : {"concurrency", "rate", "request-rate"}) {
    if (is_numeric(points, name) && values_of(points, name).size() > 1) return name;
  }
  return "";
}

namespace {

struct Percentile {
  std::string name, metric;
};

// One chart of several percentiles: colour and marker are the series', the dashes are the percentile's.
std::optional<Chart> percentile_chart(const PointList& points, const std::string& axis,
                                      const std::string& title, const std::vector<Percentile>& percentiles) {
  XyChart chart;
  chart.x = experiment_axis(points, axis, std::nullopt);
  std::string note = interval_note(points, percentiles.back().metric);
  std::vector<Line> lines = lines_along(points, axis);
  limit_series(lines, note);
  for (size_t i = 0; i < lines.size(); ++i) {
    for (size_t k = 0; k < percentiles.size(); ++k) {
      const auto& [name, metric] = percentiles[k];
      const Mark mark = chart.x.scale == ScaleKind::kCategory ? Mark::kPoints : Mark::kLine;
      Series series = styled(lines[i].name.empty() ? name : lines[i].name + ", " + name, mark, i);
      series.pattern = static_cast<int>(k);
      series.hollow = k > 0;
      for (const Point* point : with_metric(lines[i].points, metric)) {
        const Metric& m = *point->metric(metric);
        chart.y.unit = m.unit;
        series.samples.push_back(sample_of(*point, x_of(*point, chart.x), m));
      }
      if (!series.samples.empty()) chart.series.push_back(std::move(series));
    }
  }
  if (chart.series.empty()) return std::nullopt;
  chart.y.title = title;
  choose_y_scale(chart, std::nullopt);
  return Chart{"", title + " against " + axis, std::move(note), std::move(chart)};
}

// Latency over throughput, along the load; each point is labelled with its load.
std::optional<Chart> throughput_chart(const PointList& all, const std::string& axis,
                                      const std::string& latency) {
  const std::string throughput = "output_throughput";
  const PointList points = with_metric(with_metric(all, throughput), latency);
  if (points.empty()) return std::nullopt;
  const Metric& x = *points.front()->metric(throughput);
  const Metric& y = *points.front()->metric(latency);
  XyChart chart;
  chart.x = {.title = "output throughput", .unit = x.unit, .from_zero = true};
  chart.y = {.title = y.label, .unit = y.unit};
  std::string note = fmt::format("Each point is a load ({}). Towards the lower right is better.", axis);
  std::vector<Line> lines = lines_along(points, axis);
  limit_series(lines, note);
  for (size_t i = 0; i < lines.size(); ++i) {
    Series series = styled(lines[i].name, Mark::kLine, i);
    for (const Point* point : lines[i].points) {
      Sample sample = sample_of(*point, point->metric(throughput)->mean, *point->metric(latency));
      sample.low = sample.high = kNoValue;
      sample.label = point->axis(axis)->text;
      series.samples.push_back(std::move(sample));
    }
    chart.series.push_back(std::move(series));
  }
  choose_y_scale(chart, std::nullopt);
  return Chart{"", "Latency against throughput", std::move(note), std::move(chart)};
}

void add(std::vector<Chart>& charts, std::optional<Chart> chart) {
  if (chart) charts.push_back(*std::move(chart));
}

}  // namespace

void add_load_charts(const Group& group, std::vector<Chart>& charts) {
  if (group.measure != "serve") return;
  const std::string load = load_axis(group.points);
  const std::vector<std::string> axes = varied_axes(group.points);
  if (load.empty() && axes.empty()) return;
  const std::string axis = load.empty() ? axes.front() : load;
  add(charts, percentile_chart(group.points, axis, "Time to the first token",
                               {{"median", "median_ttft_ms"}, {"p99", "p99_ttft_ms"}}));
  add(charts, percentile_chart(group.points, axis, "Time per output token",
                               {{"median", "median_tpot_ms"}, {"p99", "p99_tpot_ms"}}));
  add(charts, metric_chart(group.points,
                           {"Output throughput against " + axis, axis, "output_throughput", "", {}, {}}));
  if (!load.empty()) add(charts, throughput_chart(group.points, load, "p99_e2el_ms"));
}

void add_engine_charts(const Group& group, std::vector<Chart>& charts) {
  if (group.measure != "engine") return;
  const std::vector<std::string> axes = varied_axes(group.points);
  if (axes.empty()) return;
  const auto numeric =
      std::find_if(axes.begin(), axes.end(), [&](const auto& a) { return is_numeric(group.points, a); });
  const std::string axis = numeric == axes.end() ? axes.front() : *numeric;
  for (const auto& [name, title] : {std::pair{"decode_tokens_per_second.median", "Decode speed"},
                                    {"prefill_tokens_per_second.median", "Prompt speed"}}) {
    add(charts,
        metric_chart(group.points, {fmt::format("{} against {}", title, axis), axis, name, "", {}, {}}));
  }
}

namespace {

// "latency-against-throughput"; what no file name should hold becomes one hyphen.
std::string slug(const std::string& title) {
  std::string out;
  for (const char c : title) {
    const char lower = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    if ((lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9')) {
      out += lower;
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "plot" : out.substr(0, 60);
}

void name_charts(std::vector<Chart>& charts) {
  std::set<std::string> taken;
  for (Chart& chart : charts) {
    const std::string base = slug(chart.title);
    chart.id = base;
    for (int i = 2; !taken.insert(chart.id).second; ++i) chart.id = fmt::format("{}-{}", base, i);
  }
}

// What the measures suggest may be what the experiment asked for, or what another grid shows already.
void drop_repeated(std::vector<Chart>& charts) {
  std::set<std::string> seen;
  std::erase_if(charts, [&](const Chart& chart) {
    Chart plain = chart;
    plain.title = plain.note = "";
    return !seen.insert(plot::render_svg(plain, {720, false})).second;
  });
}

std::vector<Chart> wished_charts(const Experiment& experiment, std::vector<std::string>& missing) {
  PointList points;
  for (const Point& point : experiment.points) points.push_back(&point);
  std::vector<Chart> charts;
  for (const PlotWish& wish : experiment.plots) {
    const std::string title = wish.title.empty() ? fmt::format("{} against {}", wish.y, wish.x) : wish.title;
    auto chart = metric_chart(points, {title, wish.x, wish.y, wish.series, wish.log_x, wish.log_y});
    if (chart) {
      charts.push_back(*std::move(chart));
    } else {
      missing.push_back(fmt::format("{}: no point has both {} and {}", title, wish.x, wish.y));
    }
  }
  return charts;
}

}  // namespace

std::vector<Chart> charts_of(const Experiment& experiment, std::vector<std::string>& missing) {
  std::vector<Chart> charts = wished_charts(experiment, missing);
  const std::vector<Group> groups = groups_of(experiment.points);
  for (const Group& group : groups) {
    const size_t before = charts.size();
    add_load_charts(group, charts);
    add_distribution_charts(group, charts);
    add_timeline_charts(group, charts);
    add_engine_charts(group, charts);
    const auto same = [&](const Group& g) { return g.measure == group.measure; };
    if (std::count_if(groups.begin(), groups.end(), same) < 2) continue;
    for (size_t i = before; i < charts.size(); ++i) charts[i].title += " (" + group.grid + ")";
  }
  add_memory_charts(groups, charts);
  add_precision_charts(groups, charts);
  drop_repeated(charts);
  name_charts(charts);
  return charts;
}

}  // namespace qwen2::report
