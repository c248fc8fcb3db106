// How many tokens prompts and answers have: one number or a distribution.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

class Lengths {
 public:
  // "2048", "uniform:LOW:HIGH" (both included), "normal:MEAN:STD:LOW:HIGH" and
  // "lognormal:MEDIAN:SIGMA:LOW:HIGH" (clipped to LOW and HIGH; SIGMA of the logarithm). All lengths are at
  // least 1. The error names `flag`.
  static Result<Lengths> parse(std::string_view text, std::string_view flag);

  Lengths(int64_t fixed) : low_(fixed), high_(fixed) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] int64_t sample(std::mt19937_64& random) const;
  [[nodiscard]] int64_t low() const { return low_; }
  [[nodiscard]] int64_t high() const { return high_; }
  [[nodiscard]] bool fixed() const { return kind_ == Kind::kUniform && low_ == high_; }
  // As parse() takes it.
  [[nodiscard]] std::string text() const;

 private:
  enum class Kind { kUniform, kNormal, kLognormal };
  Kind kind_ = Kind::kUniform;
  int64_t low_;
  int64_t high_;
  double middle_ = 0;
  double spread_ = 0;
};

}  // namespace qwen2
