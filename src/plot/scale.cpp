#include "plot/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

namespace qwen2::plot {

Scale::Scale(ScaleKind kind, double low, double high, double from, double to)
    : kind_(kind), low_(low), high_(high), from_(from), to_(to) {
  if (high_ > low_) return;
  // One value only: in the middle.
  const double half = low_ == 0 ? 1 : std::abs(low_) / 2;
  high_ = kind_ == ScaleKind::kLog ? low_ * 2 : low_ + half;
  low_ = kind_ == ScaleKind::kLog ? low_ / 2 : low_ - half;
}

double Scale::operator()(double value) const {
  if (kind_ != ScaleKind::kLog) return from_ + (value - low_) / (high_ - low_) * (to_ - from_);
  if (!(value > 0)) return std::numeric_limits<double>::quiet_NaN();
  return from_ + std::log(value / low_) / std::log(high_ / low_) * (to_ - from_);
}

std::vector<double> linear_ticks(double low, double high, int count) {
  if (!(high > low)) {
    const double half = low == 0 ? 1 : std::abs(low) / 2;
    high = low + half;
    low -= half;
  }
  const double rough = (high - low) / std::max(count, 1);
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    // A hair of room: 0.3 / 3 is more than 0.1 in binary.
    if (factor * power >= rough * (1 - 1e-9)) {
      step = factor * power;
      break;
    }
  }
  const double first = std::floor(low / step + 1e-9);
  const double last = std::ceil(high / step - 1e-9);
  std::vector<double> ticks;
  // Counted as an integer: beyond 2^53 a double does not change when 1 is added.
  const int steps = static_cast<int>(std::clamp(last - first, 1.0, static_cast<double>(count) + 2));
  for (int i = 0; i <= steps; ++i) ticks.push_back(first + i == 0 ? 0 : (first + i) * step);
  return ticks;
}

std::vector<double> log_ticks(double low, double high, int count) {
  const auto inside = [&](std::initializer_list<double> factors, int every) {
    std::vector<double> ticks;
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::floor(std::log10(high)));
    for (int exponent = first; exponent <= last; ++exponent) {
      if (exponent % every != 0) continue;
      for (const double factor : factors) {
        const double value = factor * std::pow(10, exponent);
        if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push_back(value);
      }
    }
    return ticks;
  };
  const auto fits = [&](const std::vector<double>& ticks) { return static_cast<int>(ticks.size()) <= count; };
  std::vector<double> ticks = inside({1, 2, 5}, 1);
  // Within one decade 1, 2 and 5 may all lie outside.
  if (ticks.size() < 2) ticks = inside({1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}, 1);
  if (ticks.size() < 2) return {low, high};
  if (fits(ticks)) return ticks;
  for (int every = 1; every < 400; ++every) {
    std::vector<double> decades = inside({1}, every);
    if (decades.size() < 2) break;
    ticks = std::move(decades);
    if (fits(ticks)) break;
  }
  return ticks;
}

std::string format_fixed(double value, int decimals) {
  if (!std::isfinite(value)) return "–";
  std::string text = fmt::format("{:.{}f}", std::abs(value), decimals);
  const size_t point = std::min(text.find('.'), text.size());
  for (size_t at = point; at > 3;) text.insert(at -= 3, ",");
  const bool zero = text.find_first_of("123456789") == std::string::npos;
  return value < 0 && !zero ? "−" + text : text;
}

namespace {

// "2.00e-05" as "2.00e-5".
std::string short_exponent(std::string text) {
  const size_t at = text.find('e');
  if (at == std::string::npos) return text;
  if (text[at + 1] == '+') text.erase(at + 1, 1);
  const size_t digits = text.find_first_of("123456789", at);
  const size_t first = text[at + 1] == '-' ? at + 2 : at + 1;
  if (digits != std::string::npos) text.erase(first, digits - first);
  return text;
}

}  // namespace

std::string format_tick(double value, double step) {
  if (value == 0) return "0";
  if (std::abs(value) >= 1e9 || step < 1e-6) return short_exponent(fmt::format("{:g}", value));
  const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return format_fixed(value, decimals);
}

std::string format_tick(double value) {
  std::string text = format_number(value);
  if (text.find('.') == std::string::npos || text.find('e') != std::string::npos) return text;
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

std::string format_number(double value) {
  if (!std::isfinite(value)) return "–";
  const double size = std::abs(value);
  if (size != 0 && (size < 1e-4 || size >= 1e9)) return short_exponent(fmt::format("{:.2e}", value));
  if (value == std::round(value) && size < 1e6) return format_fixed(value, 0);
  const int exponent = size == 0 ? 0 : static_cast<int>(std::floor(std::log10(size)));
  return format_fixed(value, std::clamp(2 - exponent, 0, 8));
}

DisplayUnit display_unit(std::string_view unit, double largest) {
  largest = std::abs(largest);
  if (unit == "fraction") return {0.01, "%"};
  if (unit == "B/s") return {1e9, "GB/s"};
  if (unit == "B") {
    static constexpr std::array<std::pair<double, const char*>, 4> kSizes{
        {{1099511627776.0, "TiB"}, {1073741824.0, "GiB"}, {1048576.0, "MiB"}, {1024.0, "KiB"}}};
    for (const auto& [size, name] : kSizes) {
      if (largest >= size) return {size, name};
    }
    return {1, "B"};
  }
  if (unit == "s" && largest < 0.5) return {1e-3, "ms"};
  if (unit == "ms" && largest >= 10000) return {1e3, "s"};
  return {1, std::string(unit)};
}

std::string format_quantity(double value, std::string_view unit) {
  const DisplayUnit shown = display_unit(unit, value);
  const std::string text = format_number(value / shown.divisor);
  return shown.name.empty() ? text : text + " " + shown.name;
}

}  // namespace qwen2::plot
