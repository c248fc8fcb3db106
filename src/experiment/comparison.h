// Two runs of an experiment against each other; docs/experiments.md says how the verdicts are reached.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "experiment/differences.h"
#include "experiment/inference.h"
#include "experiment/summary.h"

namespace qwen2 {

struct CompareOptions {
  std::vector<std::string> metrics;  // names; empty: the main ones that have a better direction
  std::vector<std::string> allow;    // keys of differences that are meant
  double alpha = 0.05;
  double least_effect = 0.05;  // of a's mean; smaller differences of measured metrics are never a verdict
};

enum class Verdict { kBetter, kWorse, kNoDifference };
std::string_view name_of(Verdict verdict);

// One metric of one point. Differences are b - a.
struct Comparison {
  std::string label;
  const Metric* metric = nullptr;  // null where the point has results on one side only
  Moments a, b;
  double difference = 0;
  std::optional<Interval> interval;  // of the difference; none where a side has one repeat
  std::optional<double> p;           // adjusted by Holm's correction; none where no test was made
  Verdict verdict = Verdict::kNoDifference;
  std::string note;
};

struct ComparisonReport {
  std::vector<Named> differences;  // those that were allowed
  std::vector<Comparison> comparisons;
  [[nodiscard]] bool any(Verdict verdict) const;
};

// Points are matched by grid, measure and the axes that are not allowed to differ. kUnsupported, naming every
// difference, where more differs than `allow` lists.
Result<ComparisonReport> compare_experiments(const std::filesystem::path& a, const std::filesystem::path& b,
                                             const CompareOptions& options);

// The comparison of one metric, without Holm's correction: Comparison::p is the test's own.
Comparison compare_metric(const Metric& metric, std::span<const double> a, std::span<const double> b,
                          const CompareOptions& options);

// Corrects the p values and sets the verdicts that depend on them.
void decide(std::vector<Comparison>& comparisons, double alpha);

boost::json::object to_json(const ComparisonReport& report, const CompareOptions& options);
std::string format_comparison(const ComparisonReport& report, const CompareOptions& options);

}  // namespace qwen2
