#include "experiment/report_points.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot/scale.h"

namespace qwen2::report {

std::vector<Group> groups_of(const std::vector<Point>& points) {
  std::vector<Group> groups;
  for (const Point& point : points) {
    const auto same = [&](const Group& g) { return g.grid == point.grid && g.measure == point.measure; };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), Group{point.grid, point.measure, {}});
    group->points.push_back(&point);
  }
  return groups;
}

std::vector<std::string> varied_axes(const PointList& points) {
  std::vector<std::string> names;
  for (const Point* point : points) {
    for (const auto& [name, value] : point->axes) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  std::erase_if(names, [&](const std::string& name) { return values_of(points, name).size() < 2; });
  return names;
}

std::vector<AxisValue> values_of(const PointList& points, std::string_view axis) {
  std::vector<AxisValue> values;
  for (const Point* point : points) {
    const AxisValue* value = point->axis(axis);
    if (value != nullptr && std::find(values.begin(), values.end(), *value) == values.end())
      values.push_back(*value);
  }
  if (is_numeric(points, axis)) {
    std::stable_sort(values.begin(), values.end(),
                     [](const AxisValue& a, const AxisValue& b) { return a.number < b.number; });
  }
  return values;
}

bool is_numeric(const PointList& points, std::string_view axis) {
  return !points.empty() && std::all_of(points.begin(), points.end(), [&](const Point* point) {
    const AxisValue* value = point->axis(axis);
    return value != nullptr && std::isfinite(value->number);
  });
}

std::string name_without(const Point& point, const std::vector<std::string>& axes, std::string_view without) {
  std::string name;
  for (const std::string& axis : axes) {
    const AxisValue* value = point.axis(axis);
    if (axis == without || value == nullptr) continue;
    if (!name.empty()) name += ", ";
    // A number or a truth value says little without its name.
    const bool bare = std::isnan(value->number) && value->text != "true" && value->text != "false";
    name += bare ? value->text : fmt::format("{} {}", axis, value->text);
  }
  return name;
}

std::vector<Line> lines_along(const PointList& points, std::string_view axis) {
  const std::vector<std::string> axes = varied_axes(points);
  const std::vector<AxisValue> order = values_of(points, axis);
  const bool one_grid = std::all_of(points.begin(), points.end(),
                                    [&](const Point* p) { return p->grid == points.front()->grid; });
  std::vector<Line> lines;
  for (const Point* point : points) {
    if (point->axis(axis) == nullptr) continue;
    std::string name = name_without(*point, axes, axis);
    if (!one_grid) name = name.empty() ? point->grid : fmt::format("{}: {}", point->grid, name);
    auto line = std::find_if(lines.begin(), lines.end(), [&](const Line& l) { return l.name == name; });
    if (line == lines.end()) line = lines.insert(lines.end(), Line{std::move(name), {}});
    line->points.push_back(point);
  }
  const auto rank = [&](const Point* p) {
    return std::find(order.begin(), order.end(), *p->axis(axis)) - order.begin();
  };
  for (Line& line : lines) {
    std::stable_sort(line.points.begin(), line.points.end(),
                     [&](const Point* a, const Point* b) { return rank(a) < rank(b); });
  }
  return lines;
}

PointList with_metric(const PointList& points, const std::string& metric) {
  PointList kept;
  std::copy_if(points.begin(), points.end(), std::back_inserter(kept),
               [&](const Point* p) { return p->metric(metric) != nullptr; });
  return kept;
}

std::string format_with_interval(const Metric& metric, double divisor) {
  const double mean = metric.mean / divisor;
  const double half = metric.has_interval() ? (metric.high - metric.low) / 2 / divisor : 0;
  if (!(half > 0)) return plot::format_number(mean);
  if (std::abs(mean) >= 1e9 || half < 1e-6) return fmt::format("{:.4g} ± {:.1e}", mean, half);
  // Two digits of the interval's half: more of the mean means nothing.
  const int decimals = std::clamp(1 - static_cast<int>(std::floor(std::log10(half))), 0, 8);
  return fmt::format("{} ± {}", plot::format_fixed(mean, decimals), plot::format_fixed(half, decimals));
}

std::string format_metric(const Metric& metric) {
  const plot::DisplayUnit unit = plot::display_unit(metric.unit, metric.mean);
  const std::string text = format_with_interval(metric, unit.divisor);
  return unit.name.empty() ? text : text + " " + unit.name;
}

}  // namespace qwen2::report
