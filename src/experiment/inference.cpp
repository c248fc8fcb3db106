#include "experiment/inference.h"

#include <algorithm>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <numeric>

namespace qwen2 {
namespace {

using StudentsT = boost::math::students_t_distribution<double>;

}  // namespace

Moments moments_of(std::span<const double> values) {
  Moments m{.n = values.size()};
  const auto n = static_cast<double>(m.n);
  m.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (m.n < 2) return m;
  double squares = 0;
  for (const double value : values) squares += (value - m.mean) * (value - m.mean);
  m.deviation = std::sqrt(squares / (n - 1));
  return m;
}

std::optional<Interval> mean_interval(const Moments& m, double confidence) {
  if (m.n < 2) return std::nullopt;
  const auto n = static_cast<double>(m.n);
  const double t = boost::math::quantile(StudentsT(n - 1), (1 + confidence) / 2);
  const double half = t * m.deviation / std::sqrt(n);
  return Interval{m.mean - half, m.mean + half};
}

MeanDifference mean_difference(const Moments& a, const Moments& b, double least_effect,
                               double least_deviation, double confidence) {
  const auto share = [&](const Moments& m) {
    const double deviation = std::max(m.deviation, least_deviation);
    return deviation * deviation / static_cast<double>(m.n);
  };
  MeanDifference d{.value = b.mean - a.mean, .interval = {}, .p = 1};
  const double va = share(a);
  const double vb = share(b);
  const double beyond = std::abs(d.value) - least_effect;
  const double error = std::sqrt(va + vb);
  if (error == 0) {  // constants: the difference is what it is
    d.interval = {d.value, d.value};
    d.p = beyond > 0 ? 0 : 1;
    return d;
  }
  // Welch and Satterthwaite's degrees of freedom.
  const double freedom = (va + vb) * (va + vb) /
                         (va * va / static_cast<double>(a.n - 1) + vb * vb / static_cast<double>(b.n - 1));
  const StudentsT t(freedom);
  const double half = error * boost::math::quantile(t, (1 + confidence) / 2);
  d.interval = {d.value - half, d.value + half};
  if (beyond > 0) d.p = 2 * boost::math::cdf(boost::math::complement(t, beyond / error));
  return d;
}

std::vector<double> holm_adjusted(const std::vector<double>& p) {
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, [&](size_t i, size_t j) { return p[i] < p[j]; });
  std::vector<double> adjusted(p.size());
  double largest = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    largest = std::max(largest, static_cast<double>(p.size() - rank) * p[order[rank]]);
    adjusted[order[rank]] = std::min(1.0, largest);
  }
  return adjusted;
}

}  // namespace qwen2
