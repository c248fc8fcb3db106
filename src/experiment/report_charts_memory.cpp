// Charts of memory (the plan beside the measurement) and of what a precision costs and gains.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "experiment/report_charts.h"

namespace qwen2::report {

using plot::Chart;
using plot::Mark;
using plot::Sample;
using plot::Series;
using plot::XyChart;

namespace {

constexpr size_t kMostBars = 12;
constexpr size_t kMostLines = 6;

const Measurement* first_measurement(const Point& point) {
  for (const Repeat& repeat : point.repeats) {
    if (repeat.status == RepeatStatus::kOk) return &repeat.measurement;
  }
  return nullptr;
}

const PlannedMemory* plan_of(const Point& point) {
  const Measurement* m = first_measurement(point);
  return m != nullptr && m->plan ? &*m->plan : nullptr;
}

// The largest of the repeats.
double measured_bytes(const Point& point) {
  double most = kNoValue;
  for (const Repeat& repeat : point.repeats) most = std::fmax(most, repeat.measurement.memory_bytes);
  return most;
}

bool is_refused(const Point& point) {
  const Measurement* m = first_measurement(point);
  return point.count(RepeatStatus::kRefused) > 0 || (m != nullptr && !m->fits);
}

std::string context_axis(const PointList& points) {
  for (const char* name : {"ctx-len", "prompt", "max-model-len"}) {
    PointList have = points;
    std::erase_if(have, [&](const Point* p) { return p->axis(name) == nullptr; });
    if (is_numeric(have, name) && values_of(have, name).size() > 1) return name;
  }
  return "";
}

struct MemorySeries {
  Series planned, measured, refused;
};

// `qwen2 plan` and a measurement may both say what one context takes: the first of them counts.
MemorySeries memory_series(const Line& line, const std::string& axis, int style) {
  MemorySeries out;
  const std::string prefix = line.name.empty() ? "" : line.name + ", ";
  out.planned = {.name = prefix + "planned", .colour = style, .pattern = 1, .shape = style, .hollow = true};
  out.measured = {.name = prefix + "measured", .colour = style, .shape = style};
  for (const Point* point : line.points) {
    const double x = point->axis(axis)->number;
    const PlannedMemory* plan = plan_of(*point);
    const double bytes = measured_bytes(*point);
    const double planned = plan == nullptr ? kNoValue : plan->total;
    const auto is_new = [&](const Series& s) { return s.samples.empty() || s.samples.back().x != x; };
    if (plan != nullptr && is_new(out.planned)) {
      out.planned.samples.push_back(
          {.x = x,
           .y = planned,
           .tip = fmt::format("{}: planned {}", point->label, plot::format_quantity(planned, "B"))});
    }
    if (std::isfinite(bytes) && is_new(out.measured)) {
      out.measured.samples.push_back(
          {.x = x,
           .y = bytes,
           .tip = fmt::format("{}: measured {}", point->label, plot::format_quantity(bytes, "B"))});
    }
    if (is_refused(*point)) {
      out.refused.samples.push_back(
          {.x = x, .y = planned, .tip = point->label + ": refused, the plan does not fit"});
    }
  }
  return out;
}

// Points that can be drawn over a context: those with the axis and with a plan, a measurement or a refusal.
PointList memory_points(const std::vector<Group>& groups) {
  PointList points;
  for (const Group& group : groups) {
    for (const Point* point : group.points) {
      if (plan_of(*point) != nullptr || std::isfinite(measured_bytes(*point)) || is_refused(*point))
        points.push_back(point);
    }
  }
  return points;
}

// Of all points, where it is one and the same.
double common_budget(const PointList& points) {
  double budget = kNoValue;
  for (const Point* point : points) {
    const PlannedMemory* plan = plan_of(*point);
    if (plan == nullptr || !std::isfinite(plan->budget)) continue;
    if (std::isfinite(budget) && budget != plan->budget) return kNoValue;
    budget = plan->budget;
  }
  return budget;
}

void add_refused(XyChart& chart, std::vector<Sample> samples) {
  // A plan and a measurement of one point may both be refused: one cross is enough.
  std::vector<Sample> kept;
  for (Sample& sample : samples) {
    const auto same = std::find_if(kept.begin(), kept.end(), [&](const Sample& k) {
      return k.x == sample.x && (k.y == sample.y || std::isnan(k.y) || std::isnan(sample.y));
    });
    if (same == kept.end()) {
      kept.push_back(std::move(sample));
    } else if (std::isnan(same->y)) {
      *same = std::move(sample);
    }
  }
  if (!kept.empty())
    chart.series.push_back({.name = "refused", .mark = Mark::kRefused, .samples = std::move(kept)});
}

std::optional<Chart> memory_chart(const PointList& all) {
  const std::string axis = context_axis(all);
  if (axis.empty()) return std::nullopt;
  PointList points = all;
  std::erase_if(points, [&](const Point* p) { return p->axis(axis) == nullptr; });
  XyChart chart;
  chart.x = {.title = axis, .unit = "", .scale = plot::ScaleKind::kLog};
  for (const AxisValue& value : values_of(points, axis)) chart.x.marks.push_back(value.number);
  if (chart.x.marks.front() <= 0) chart.x.scale = plot::ScaleKind::kLinear;
  chart.y = {.title = "memory", .unit = "B", .from_zero = true};
  std::vector<Line> lines = lines_along(points, axis);
  std::string note = "Measured: the largest of the repeats.";
  if (lines.size() > kMostLines) {
    note += fmt::format(" The first {} of {} series are drawn.", kMostLines, lines.size());
    lines.resize(kMostLines);
  }
  std::vector<Sample> refused;
  for (size_t i = 0; i < lines.size(); ++i) {
    MemorySeries series = memory_series(lines[i], axis, static_cast<int>(i));
    for (Series* s : {&series.planned, &series.measured}) {
      if (!s->samples.empty()) chart.series.push_back(std::move(*s));
    }
    refused.insert(refused.end(), series.refused.samples.begin(), series.refused.samples.end());
  }
  add_refused(chart, std::move(refused));
  if (const double budget = common_budget(points); std::isfinite(budget)) {
    chart.rules.push_back({budget, "budget " + plot::format_quantity(budget, "B")});
  }
  return Chart{"", "Memory against context", std::move(note), std::move(chart)};
}

// Another point of the same axes' values that measured what `plan` only planned.
double measured_beside(const Point& plan, const PointList& points) {
  if (const double own = measured_bytes(plan); std::isfinite(own)) return own;
  for (const Point* other : points) {
    const bool same = std::all_of(plan.axes.begin(), plan.axes.end(), [&](const auto& axis) {
      const AxisValue* value = other->axis(axis.first);
      return value != nullptr && *value == axis.second;
    });
    if (const double bytes = measured_bytes(*other); same && std::isfinite(bytes)) return bytes;
  }
  return kNoValue;
}

std::string part_name(const std::string& part) {
  if (part == "kv_pool") return "KV pool";
  return part == "graphs" ? "recorded steps" : part;
}

std::string bar_tip(const PlannedMemory& plan, double measured) {
  std::string tip = "planned " + plot::format_quantity(plan.total, "B");
  for (const auto& [part, bytes] : plan.parts)
    tip += fmt::format(", {} {}", part_name(part), plot::format_quantity(bytes, "B"));
  if (std::isfinite(measured)) tip += ", measured " + plot::format_quantity(measured, "B");
  return tip;
}

// The points that only plan, or where there are none, the plans of the others.
std::optional<Chart> plan_chart(const PointList& points) {
  const bool plans =
      std::any_of(points.begin(), points.end(), [](const Point* p) { return p->measure == "plan"; });
  plot::StackedBars bars{.title = "memory", .unit = "B", .measured_name = "measured", .limit_name = "budget"};
  for (const char* part : {"weights", "kv_pool", "workspace", "graphs", "runtime"})
    bars.parts.push_back(part_name(part));
  size_t planned = 0;
  for (const Point* point : points) {
    const PlannedMemory* plan = plan_of(*point);
    if (plan == nullptr || (plans && point->measure != "plan") || ++planned > kMostBars) continue;
    plot::StackedBars::Row row;
    row.values.assign(bars.parts.size(), 0);
    for (const auto& [part, bytes] : plan->parts) {
      const auto at = std::find(bars.parts.begin(), bars.parts.end(), part_name(part)) - bars.parts.begin();
      row.values[static_cast<size_t>(at)] = bytes;
    }
    row.measured = measured_beside(*point, points);
    row.limit = plan->budget;
    row.label = point->label + (is_refused(*point) ? ": does not fit" : "");
    row.tip = point->label + ": " + bar_tip(*plan, row.measured);
    bars.rows.push_back(std::move(row));
  }
  if (bars.rows.empty()) return std::nullopt;
  std::string note = planned > kMostBars ? fmt::format("The first {} of {} plans.", kMostBars, planned) : "";
  return Chart{"", "Memory plan by part", std::move(note), std::move(bars)};
}

}  // namespace

void add_memory_charts(const std::vector<Group>& groups, std::vector<Chart>& charts) {
  const PointList points = memory_points(groups);
  for (const auto& chart : {memory_chart(points), plan_chart(points)}) {
    if (chart) charts.push_back(*chart);
  }
}

namespace {

// The mean of a metric over the points that agree with `point` on every axis that both have.
struct Joined {
  double mean = kNoValue;
  const Metric* example = nullptr;
};
Joined joined(const Point& point, const PointList& others, const std::string& name) {
  Joined out;
  double sum = 0;
  int64_t n = 0;
  for (const Point* other : others) {
    const Metric* metric = other->metric(name);
    bool shared = false;
    bool agrees = true;
    for (const auto& [axis, value] : point.axes) {
      const AxisValue* own = other->axis(axis);
      shared = shared || own != nullptr;
      agrees = agrees && (own == nullptr || *own == value);
    }
    if (metric == nullptr || !shared || !agrees) continue;
    out.example = metric;
    sum += metric->mean;
    ++n;
  }
  if (n > 0) out.mean = sum / static_cast<double>(n);
  return out;
}

struct TradeOff {
  const char* title;
  const char* metric;  // of x
  const char* note;
};

std::optional<Chart> trade_off_chart(const PointList& evaluated, const PointList& all,
                                     const std::string& quality, const TradeOff& spec) {
  const std::vector<std::string> axes = varied_axes(evaluated);
  XyChart chart;
  Series series{.mark = Mark::kPoints};
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (const Point* point : evaluated) {
    const Metric* own = point->metric(spec.metric);
    const Joined x = own != nullptr ? Joined{own->mean, own} : joined(*point, all, spec.metric);
    const Metric& y = *point->metric(quality);
    if (x.example == nullptr) continue;
    chart.x = {.title = x.example->label, .unit = x.example->unit, .from_zero = true};
    chart.y = {.title = y.label, .unit = y.unit};
    low = std::min(low, y.mean);
    high = std::max(high, y.mean);
    series.samples.push_back(
        {.x = x.mean,
         .y = y.mean,
         .label = axes.empty() ? point->label : name_without(*point, axes, ""),
         .tip = fmt::format("{}: {} {}, {} {}", point->label, y.label, format_metric(y), x.example->label,
                            plot::format_quantity(x.mean, x.example->unit))});
  }
  if (series.samples.size() < 2) return std::nullopt;
  chart.series.push_back(std::move(series));
  if (low > 0 && high / low > 10) chart.y.scale = plot::ScaleKind::kLog;
  return Chart{"", spec.title, spec.note, std::move(chart)};
}

}  // namespace

void add_precision_charts(const std::vector<Group>& groups, std::vector<Chart>& charts) {
  PointList evaluated, all;
  for (const Group& group : groups) {
    all.insert(all.end(), group.points.begin(), group.points.end());
    if (group.measure == "evaluate")
      evaluated.insert(evaluated.end(), group.points.begin(), group.points.end());
  }
  const std::string quality = with_metric(evaluated, "mean_kl").size() > 1 ? "mean_kl" : "perplexity";
  evaluated = with_metric(evaluated, quality);
  for (const TradeOff& spec :
       {TradeOff{"Quality against size", "weight_bytes", "Towards the lower left is better."},
        TradeOff{"Quality against speed", "decode_tokens_per_second.median",
                 "Towards the lower right is better. Speed: the mean of the measured points of the same "
                 "settings."}}) {
    if (auto chart = trade_off_chart(evaluated, all, quality, spec)) charts.push_back(*std::move(chart));
  }
}

}  // namespace qwen2::report
