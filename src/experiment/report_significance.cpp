#include "experiment/report_significance.h"

#include <algorithm>
#include <cmath>

namespace qwen2::report {

Verdict separate_intervals(const Metric& a, const Metric& b) {
  if (!a.has_interval() || !b.has_interval()) return Verdict::kNotTestable;
  if (a.low <= b.high && b.low <= a.high) return Verdict::kNotShown;
  // What is the same in every repeat has intervals without width: its last bits depend on the number of
  // threads.
  if (std::abs(a.mean - b.mean) <= kLeastShare * std::max(std::abs(a.mean), std::abs(b.mean)))
    return Verdict::kNotShown;
  if (a.better == Better::kNone) return Verdict::kDiffers;
  return (b.mean > a.mean) == (a.better == Better::kHigher) ? Verdict::kBetter : Verdict::kWorse;
}

std::vector<Difference> differences(const Group& group, const std::vector<std::string>& metrics,
                                    const Test& test) {
  std::vector<Difference> found;
  for (const std::string& axis : varied_axes(group.points)) {
    for (const Line& line : lines_along(group.points, axis)) {
      for (size_t i = 1; i < line.points.size(); ++i) {
        const Point& from = *line.points[i - 1];
        const Point& to = *line.points[i];
        for (const std::string& name : metrics) {
          const Metric* a = from.metric(name);
          const Metric* b = to.metric(name);
          if (a == nullptr || b == nullptr) continue;
          found.push_back({axis, line.name, from.axis(axis)->text, to.axis(axis)->text, group.measure, a, b,
                           test(*a, *b)});
        }
      }
    }
  }
  return found;
}

}  // namespace qwen2::report
