#include "loadgen/lengths.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <vector>

namespace qwen2 {
namespace {

constexpr int64_t kLongest = int64_t{1} << 24;

std::optional<double> number(std::string_view text) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<int64_t> length(std::string_view text) {
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || value < 1 || value > kLongest)
    return std::nullopt;
  return value;
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

}  // namespace

Result<Lengths> Lengths::parse(std::string_view text, std::string_view flag) {
  const auto wrong = [&] {
    return fail(
        ErrorKind::kInvalidArgument,
        "{} '{}' must be a number of tokens from 1 to {}, uniform:LOW:HIGH, normal:MEAN:STD:LOW:HIGH or "
        "lognormal:MEDIAN:SIGMA:LOW:HIGH",
        flag, text, kLongest);
  };
  const auto parts = split(text);
  if (parts.size() == 1) {
    const auto fixed = length(parts[0]);
    if (!fixed) return wrong();
    return Lengths(*fixed);
  }
  const bool uniform = parts[0] == "uniform" && parts.size() == 3;
  const bool normal = parts[0] == "normal" && parts.size() == 5;
  const bool lognormal = parts[0] == "lognormal" && parts.size() == 5;
  if (!uniform && !normal && !lognormal) return wrong();
  const auto low = length(parts[parts.size() - 2]);
  const auto high = length(parts[parts.size() - 1]);
  if (!low || !high || *low > *high) return wrong();
  Lengths lengths(*low);
  lengths.high_ = *high;
  if (uniform) return lengths;
  const auto middle = number(parts[1]);
  const auto spread = number(parts[2]);
  if (!middle || !spread || *middle <= 0 || *spread < 0) return wrong();
  lengths.kind_ = normal ? Kind::kNormal : Kind::kLognormal;
  lengths.middle_ = *middle;
  lengths.spread_ = *spread;
  return lengths;
}

int64_t Lengths::sample(std::mt19937_64& random) const {
  if (kind_ == Kind::kUniform) return std::uniform_int_distribution<int64_t>(low_, high_)(random);
  const double z = std::normal_distribution<double>()(random);
  const double value = kind_ == Kind::kNormal ? middle_ + spread_ * z : middle_ * std::exp(spread_ * z);
  return static_cast<int64_t>(
      std::llround(std::clamp(value, static_cast<double>(low_), static_cast<double>(high_))));
}

std::string Lengths::text() const {
  if (fixed()) return std::to_string(low_);
  if (kind_ == Kind::kUniform) return fmt::format("uniform:{}:{}", low_, high_);
  return fmt::format("{}:{}:{}:{}:{}", kind_ == Kind::kNormal ? "normal" : "lognormal", middle_, spread_,
                     low_, high_);
}

}  // namespace qwen2
