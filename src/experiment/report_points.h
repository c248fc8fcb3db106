// Points in groups: what varies among them, and series of them along one axis.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "experiment/report_data.h"

namespace qwen2::report {

using PointList = std::vector<const Point*>;

// The points of one grid of the experiment's file, which share a measure and their axes.
struct Group {
  std::string grid, measure;
  PointList points;
};

// In the manifest's order.
std::vector<Group> groups_of(const std::vector<Point>& points);

// Names of the axes that have more than one value among `points`, in their order.
std::vector<std::string> varied_axes(const PointList& points);

// The values that an axis has, numbers in ascending order, texts as they first appear.
std::vector<AxisValue> values_of(const PointList& points, std::string_view axis);

// Every value of the axis is a number.
bool is_numeric(const PointList& points, std::string_view axis);

// "continuous, concurrency 16": the values of the varied axes but `without`; numbers with their axis' name.
std::string name_without(const Point& point, const std::vector<std::string>& axes, std::string_view without);

// Points of one grid that differ in `axis` alone, in the order of its values; named by what they share, and
// by their grid where there are several.
struct Line {
  std::string name;
  PointList points;
};
std::vector<Line> lines_along(const PointList& points, std::string_view axis);

// Those that have the metric.
PointList with_metric(const PointList& points, const std::string& metric);

// "412.3 ± 8.1 tok/s": the mean and half of its interval's width, with the decimals that the interval allows.
std::string format_metric(const Metric& metric);
// The same divided by `divisor`, without a unit.
std::string format_with_interval(const Metric& metric, double divisor);

}  // namespace qwen2::report
