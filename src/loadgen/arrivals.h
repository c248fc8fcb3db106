// When an open loop sends: the arrival process.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qwen2 {

enum class Arrivals {
  kPoisson,   // exponential gaps
  kConstant,  // equal gaps
  kGamma,     // gaps of a gamma distribution with shape `burstiness`: below 1 burstier than Poisson, above 1
              // calmer
};

std::string_view name_of(Arrivals arrivals);

// `count` send times in seconds, ascending; the first is 0. `rate` is requests a second, the mean gap 1 /
// rate. The same seed gives the same times.
std::vector<double> arrival_times(Arrivals arrivals, double rate, double burstiness, size_t count,
                                  uint64_t seed);

}  // namespace qwen2
