// The statistics of repeats: intervals of a mean, the test that comparisons use, and its correction for many
// tests.
#pragma once

#include <optional>
#include <span>
#include <vector>

namespace qwen2 {

struct Interval {
  double low = 0, high = 0;
};

// Mean and standard deviation (n - 1) of n >= 1 values; the deviation of one value is 0.
struct Moments {
  size_t n = 0;
  double mean = 0;
  double deviation = 0;
};
Moments moments_of(std::span<const double> values);

// Of the mean, by Student's t with n - 1 degrees of freedom; nothing for fewer than two values.
std::optional<Interval> mean_interval(const Moments& m, double confidence);

// b's mean minus a's, by Welch's t: variances may differ. `p` is that of a difference of at most
// `least_effect`, in either direction: small only where the repeats show a larger one. Deviations below
// `least_deviation` count as that much, because three values can lie close together by chance. Needs two
// values on each side.
struct MeanDifference {
  double value = 0;
  Interval interval;
  double p = 1;
};
MeanDifference mean_difference(const Moments& a, const Moments& b, double least_effect,
                               double least_deviation, double confidence);

// Holm's correction: p values that can be held against alpha one by one, whatever their dependence.
std::vector<double> holm_adjusted(const std::vector<double>& p);

}  // namespace qwen2
