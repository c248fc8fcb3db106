// Which neighbouring points differ by more than their repeats do.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "experiment/report_points.h"

namespace qwen2::report {

enum class Verdict { kBetter, kWorse, kDiffers, kNotShown, kNotTestable };

// Judges b against a.
using Test = std::function<Verdict(const Metric& a, const Metric& b)>;

// Separate where the 95 % intervals of the means do not overlap: for one pair, stricter than a test at 5 %;
// it is not corrected for the number of pairs. Needs two repeats of each. Means closer together than
// kLeastShare of them never are.
constexpr double kLeastShare = 1e-4;
Verdict separate_intervals(const Metric& a, const Metric& b);

// Two points that differ in one axis alone and are neighbours on it.
struct Difference {
  std::string axis, fixed, from, to;  // `fixed`: the values of the other axes that vary
  std::string measure;
  const Metric* a = nullptr;
  const Metric* b = nullptr;
  Verdict verdict = Verdict::kNotTestable;
};

// Every neighbouring pair of the group, for each metric of `metrics` that both points have.
std::vector<Difference> differences(const Group& group, const std::vector<std::string>& metrics,
                                    const Test& test);

}  // namespace qwen2::report
