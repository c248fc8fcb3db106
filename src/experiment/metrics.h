// The numbers of result files that are summarised and compared: one table for summaries, comparisons and
// reports.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "experiment/experiment_file.h"

namespace qwen2 {

enum class Better { kHigher, kLower, kNeither };
std::string_view name_of(Better better);  // "higher", "lower" or "none"

struct Metric {
  std::string name;  // where the number is in the result file: keys joined by dots; "peak_vram_bytes" and
                     // "peak_host_bytes" are the largest of a load test's timeline
  std::string label;
  std::string unit;
  Better better = Better::kNeither;
  bool exact = false;  // the same in every repeat, however busy the machine is
  bool main = false;   // shown in the summary's table and compared unless others are asked for
};

// In the order in which they are shown.
std::span<const Metric> metrics_of(Measure measure);

// Of any measure; null where there is none of this name.
const Metric* find_metric(std::string_view name);

// Nothing where the result has no such number, or null there.
std::optional<double> read_metric(const boost::json::object& result, const Metric& metric);

// "1234 tok/s", "0.0123", "2.87 GiB", "97.40 %".
std::string format_metric(double value, std::string_view unit);

}  // namespace qwen2
