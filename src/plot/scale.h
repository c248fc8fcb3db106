// From values to pixels: scales, ticks at numbers that people like, and numbers as text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qwen2::plot {

enum class ScaleKind { kLinear, kLog, kCategory };

// Where values from `low` to `high` lie between the pixels `from` and `to`.
class Scale {
 public:
  Scale(ScaleKind kind, double low, double high, double from, double to);

  // On a log scale only positive values have a place; others are NaN.
  double operator()(double value) const;
  [[nodiscard]] double low() const { return low_; }
  [[nodiscard]] double high() const { return high_; }
  [[nodiscard]] ScaleKind kind() const { return kind_; }

 private:
  ScaleKind kind_;
  double low_, high_, from_, to_;
};

// Multiples of 1, 2 or 5 times a power of ten, the first at or below `low`, the last at or above `high`; at
// most `count` + 2 of them. Both bounds must be finite; a range without width gets one.
std::vector<double> linear_ticks(double low, double high, int count);

// 1, 2 and 5 times powers of ten inside [low, high], or powers of ten alone where that is enough; 0 < low <=
// high.
std::vector<double> log_ticks(double low, double high, int count);

// "12,000", "0.25", "1.5e-07": as many decimals as `step` needs, for the ticks of one axis.
std::string format_tick(double value, double step);

// The same where ticks have no common step: without trailing zeros.
std::string format_tick(double value);

// Three significant digits, or all of a number's integral ones, with thousands separated. "–" where not
// finite.
std::string format_number(double value);

// `value` with `decimals` decimals and separated thousands.
std::string format_fixed(double value, int decimals);

// A unit in which numbers up to `largest` read well: "B" becomes MiB or GiB, "s" ms, "ms" s, and
// "fraction" a percentage.
struct DisplayUnit {
  double divisor = 1;
  std::string name;
};
DisplayUnit display_unit(std::string_view unit, double largest);

// "12.3 ms", "5.31 GiB".
std::string format_quantity(double value, std::string_view unit);

}  // namespace qwen2::plot
