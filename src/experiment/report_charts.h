// The charts of a report: those that the experiment asks for, and those that its measures suggest.
#pragma once

#include <string>
#include <vector>

#include "experiment/report_points.h"
#include "plot/plot.h"

namespace qwen2::report {

// A metric of the points along an axis, with a series for each combination of the other axes that vary: two
// values at one x would be no line. Or a metric over another one, as points in the plane.
struct ChartSpec {
  std::string title;
  std::string x;
  std::string y;
  std::string series;                // an axis: its values tell points in the plane apart
  std::optional<bool> log_x, log_y;  // chosen by the values where not given
};

// Nothing where no point has both x and y.
std::optional<plot::Chart> metric_chart(const PointList& points, const ChartSpec& spec);

// The axis that says how much load there was, "concurrency" before "rate"; empty: neither varies.
std::string load_axis(const PointList& points);

// Each adds what the group's measurements allow.
void add_load_charts(const Group& group, std::vector<plot::Chart>& charts);
void add_distribution_charts(const Group& group, std::vector<plot::Chart>& charts);
void add_timeline_charts(const Group& group, std::vector<plot::Chart>& charts);
void add_engine_charts(const Group& group, std::vector<plot::Chart>& charts);
void add_memory_charts(const std::vector<Group>& groups, std::vector<plot::Chart>& charts);
void add_precision_charts(const std::vector<Group>& groups, std::vector<plot::Chart>& charts);

// All of them, the experiment's own first, with different ids. `missing` gets the titles of plots that were
// asked for and that no point has the numbers for, with the reason.
std::vector<plot::Chart> charts_of(const Experiment& experiment, std::vector<std::string>& missing);

// The point whose timeline and requests are drawn: the heaviest load with requests. Null without any.
const Point* busiest_point(const Group& group);

}  // namespace qwen2::report
