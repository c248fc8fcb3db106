// What the repeats of every point say together.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "experiment/inference.h"
#include "experiment/manifest.h"
#include "experiment/metrics.h"

namespace qwen2 {

struct MetricSummary {
  const Metric* metric = nullptr;
  std::vector<double> values;  // one a repeat that has it, in their order
};

struct PointSummary {
  const ManifestPoint* point = nullptr;
  std::vector<MetricSummary> metrics;  // those that a repeat has, in the table's order
};

// Reads the result of every repeat that is ok. The summaries refer to `manifest`.
Result<std::vector<PointSummary>> summarise_points(const std::filesystem::path& directory,
                                                   const Manifest& manifest);

// summary.json in `directory`: n, mean, median, smallest and largest, and the 95 % interval of the mean.
Status write_summary(const std::filesystem::path& directory, const std::vector<PointSummary>& points);

// A table for the terminal: the main metrics of each measure's points, as mean ± half of the interval.
std::string format_summary(const std::vector<PointSummary>& points);

}  // namespace qwen2
