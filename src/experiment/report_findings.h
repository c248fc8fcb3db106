// The few numbers that a reader looks for first.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "experiment/report_points.h"

namespace qwen2::report {

struct Finding {
  std::string what, value, where;
  double number = kNoValue;  // exactly what `value` rounds
  bool bad = false;
};
std::vector<Finding> findings(const Experiment& experiment, const std::vector<Group>& groups);

// The metrics of a measure that tables show, and those of them that neighbours are compared by.
const std::vector<std::string>& headline_metrics(const std::string& measure);
const std::vector<std::string>& compared_metrics(const std::string& measure);

// Requests that failed in a load test, by kind.
std::map<std::string, int64_t> request_failures(const std::vector<Point>& points);

// False for a point that is a memory plan which does not fit.
bool fits(const Point& point);

}  // namespace qwen2::report
