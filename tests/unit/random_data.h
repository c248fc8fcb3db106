// Fresh random inputs for every run; a failing test prints the seed, and QWEN2_TEST_SEED repeats it.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

namespace qwen2::test {

inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* fixed = std::getenv("QWEN2_TEST_SEED");
    const uint64_t chosen = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
    std::printf("QWEN2_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return value;
}

inline std::mt19937_64& generator() {
  static std::mt19937_64 random(seed());
  return random;
}

inline std::vector<float> normal(size_t count, float scale = 1.0F) {
  std::normal_distribution<float> distribution(0.0F, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator());
  return values;
}

inline int64_t uniform(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator());
}

// ||actual - expected|| / ||expected||; NaN never passes a bound.
template <class A, class B>
double relative_error(const A& actual, const B& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
    norm += double{expected[i]} * expected[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace qwen2::test
