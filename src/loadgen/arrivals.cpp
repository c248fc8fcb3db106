#include "loadgen/arrivals.h"

#include <random>

namespace qwen2 {

std::string_view name_of(Arrivals arrivals) {
  switch (arrivals) {
    case Arrivals::kConstant:
      return "constant";
    case Arrivals::kGamma:
      return "gamma";
    case Arrivals::kPoisson:
      break;
  }
  return "poisson";
}

std::vector<double> arrival_times(Arrivals arrivals, double rate, double burstiness, size_t count,
                                  uint64_t seed) {
  // Apart from the prompts' generator, which starts from the same seed.
  std::seed_seq mixed{seed, seed >> 32, uint64_t{0xa221}};
  std::mt19937_64 random(mixed);
  const double shape = arrivals == Arrivals::kGamma ? burstiness : 1.0;
  std::gamma_distribution<double> gap(shape, 1.0 / (rate * shape));
  std::vector<double> times(count);
  for (size_t i = 1; i < count; ++i) {
    times[i] = arrivals == Arrivals::kConstant ? static_cast<double>(i) / rate : times[i - 1] + gap(random);
  }
  return times;
}

}  // namespace qwen2
