#include "experiment/comparison.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/json_fields.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// Exact metrics count as equal within this share (the last bits depend on the number of threads), or this
// much.
constexpr double kExactShare = 1e-4;
constexpr double kExactAmount = 1e-9;
// Measured values that lie closer together than this share of their mean do so by chance.
constexpr double kLeastDeviation = 0.005;

struct Side {
  Manifest manifest;
  std::vector<PointSummary> points;
  std::map<std::string, std::string> hashes;  // of the model, by the point's id
};

Result<std::string> model_hash(const fs::path& directory, const ManifestPoint& point) {
  for (const Repeat& repeat : point.repeats) {
    if (repeat.outcome != Outcome::kOk) continue;
    QWEN2_TRY(const JsonFields result, JsonFields::read(directory / repeat.file));
    JsonFields environment;
    QWEN2_CHECK(result.optional("environment", environment));
    const json::value* hash = environment.object().if_contains("model_hash");
    return hash == nullptr ? "" : json::serialize(*hash);
  }
  return "";
}

// The manifest is moved into place first: the summaries refer to it.
Status read_side(const fs::path& directory, Side& side) {
  QWEN2_TRY(side.manifest, read_manifest(directory));
  QWEN2_TRY(side.points, summarise_points(directory, side.manifest));
  for (const ManifestPoint& point : side.manifest.points) {
    QWEN2_TRY(side.hashes[point.id], model_hash(directory, point));
  }
  return {};
}

bool holds(const std::vector<std::string>& list, std::string_view key) {
  return std::ranges::find(list, key) != list.end();
}

// What a point is known by on both sides.
std::string key_of(const ManifestPoint& point, const std::vector<std::string>& allow) {
  std::string key = fmt::format("{} ({})", point.grid, name_of(point.measure));
  for (const auto& axis : point.axes) {
    if (!holds(allow, axis.key()))
      key += fmt::format(", {} {}", std::string(axis.key()), json::serialize(axis.value()));
  }
  return key;
}

using Keyed = std::map<std::string, const PointSummary*>;

Result<Keyed> by_key(const Side& side, const std::vector<std::string>& allow) {
  Keyed points;
  for (const PointSummary& p : side.points) {
    if (points.emplace(key_of(*p.point, allow), &p).second) continue;
    return fail(ErrorKind::kInvalidArgument,
                "--allow leaves several points of one directory that match one of the other: {}",
                key_of(*p.point, allow));
  }
  return points;
}

// Collects differences once each.
class Differences {
 public:
  void add(Named named) {
    if (named.a == named.b || !seen_.insert(named.key + '\0' + named.a + '\0' + named.b).second) return;
    list_.push_back(std::move(named));
  }

  void add_flags(const Flags& a, const Flags& b) {
    const auto text = [](const json::value* value) {
      return value == nullptr ? "nothing" : json::serialize(*value);
    };
    for (const auto& flag : a) add({flag.key(), text(&flag.value()), text(b.if_contains(flag.key()))});
    for (const auto& flag : b) {
      if (!a.contains(flag.key())) add({flag.key(), "nothing", text(&flag.value())});
    }
  }

  [[nodiscard]] const std::vector<Named>& list() const { return list_; }

 private:
  std::vector<Named> list_;
  std::set<std::string> seen_;
};

std::vector<Named> differences_of(const Side& a, const Side& b, const Keyed& points_a,
                                  const Keyed& points_b) {
  Differences found;
  found.add({"experiment", a.manifest.name, b.manifest.name});
  found.add({"seed", std::to_string(a.manifest.seed), std::to_string(b.manifest.seed)});
  for (Named& named : environment_differences(a.manifest.environment, b.manifest.environment))
    found.add(std::move(named));
  const auto state = [](const Side& side) { return side.manifest.interrupted ? "interrupted" : "complete"; };
  found.add({"interrupted", state(a), state(b)});
  for (const auto& [key, point] : points_a) {
    const auto other = points_b.find(key);
    if (other == points_b.end()) {
      found.add({"grid", key, "nothing"});
      continue;
    }
    found.add_flags(point->point->flags, other->second->point->flags);
    const std::string& hash_a = a.hashes.at(point->point->id);
    const std::string& hash_b = b.hashes.at(other->second->point->id);
    if (!hash_a.empty() && !hash_b.empty()) found.add({"model_hash", hash_a, hash_b});
  }
  for (const auto& [key, point] : points_b) {
    if (!points_a.contains(key)) found.add({"grid", "nothing", key});
  }
  return found.list();
}

// The metrics of a point that are asked for.
std::vector<const Metric*> chosen_metrics(Measure measure, const CompareOptions& options) {
  std::vector<const Metric*> chosen;
  for (const Metric& metric : metrics_of(measure)) {
    const bool wanted = options.metrics.empty() ? metric.main : holds(options.metrics, metric.name);
    if (wanted && metric.better != Better::kNeither) chosen.push_back(&metric);
  }
  return chosen;
}

Status check_metrics(const CompareOptions& options) {
  for (const std::string& name : options.metrics) {
    const Metric* metric = find_metric(name);
    if (metric == nullptr) return fail(ErrorKind::kInvalidArgument, "--metric '{}' is unknown", name);
    if (metric->better == Better::kNeither)
      return fail(ErrorKind::kInvalidArgument, "--metric '{}': neither more nor less of it is better", name);
  }
  return {};
}

int64_t failed_repeats(const PointSummary& side) {
  return std::ranges::count_if(side.point->repeats,
                               [](const Repeat& r) { return r.outcome != Outcome::kOk; });
}

// Repeats that failed on one side more often than on the other.
void compare_failures(const std::string& key, const PointSummary& a, const PointSummary& b,
                      std::vector<Comparison>& comparisons) {
  const int64_t failed_a = failed_repeats(a);
  const int64_t failed_b = failed_repeats(b);
  const auto all_a = static_cast<int64_t>(a.point->repeats.size());
  const auto all_b = static_cast<int64_t>(b.point->repeats.size());
  if (failed_a * all_b == failed_b * all_a) return;
  Comparison c;
  c.label = key;
  c.verdict = failed_b * all_a > failed_a * all_b ? Verdict::kWorse : Verdict::kBetter;
  c.note = fmt::format("{} of {} repeats of a failed, {} of {} of b", failed_a, all_a, failed_b, all_b);
  comparisons.push_back(std::move(c));
}

// A point that one side could not measure: a verdict of its own.
void compare_outcomes(const std::string& key, const PointSummary& a, const PointSummary& b,
                      std::vector<Comparison>& comparisons) {
  if (a.metrics.empty() == b.metrics.empty()) {
    if (!a.metrics.empty()) compare_failures(key, a, b, comparisons);
    return;
  }
  const PointSummary& without = a.metrics.empty() ? a : b;
  Comparison c;
  c.label = key;
  c.verdict = b.metrics.empty() ? Verdict::kWorse : Verdict::kBetter;
  const auto& repeats = without.point->repeats;
  c.note = fmt::format("{} {}", b.metrics.empty() ? "b" : "a",
                       repeats.empty() ? "was not run" : std::string(name_of(repeats.back().outcome)));
  comparisons.push_back(std::move(c));
}

void compare_point(const std::string& key, const PointSummary& a, const PointSummary& b,
                   const CompareOptions& options, std::vector<Comparison>& comparisons) {
  compare_outcomes(key, a, b, comparisons);
  for (const Metric* metric : chosen_metrics(a.point->measure, options)) {
    const auto in_a = std::ranges::find(a.metrics, metric, &MetricSummary::metric);
    const auto in_b = std::ranges::find(b.metrics, metric, &MetricSummary::metric);
    if (in_a == a.metrics.end() || in_b == b.metrics.end()) continue;
    Comparison c = compare_metric(*metric, in_a->values, in_b->values, options);
    c.label = key;
    comparisons.push_back(std::move(c));
  }
}

Verdict direction(const Comparison& c) {
  return (c.difference > 0) == (c.metric->better == Better::kHigher) ? Verdict::kBetter : Verdict::kWorse;
}

}  // namespace

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kBetter:
      return "better";
    case Verdict::kWorse:
      return "worse";
    case Verdict::kNoDifference:
      return "no difference shown";
  }
  return "";
}

bool ComparisonReport::any(Verdict verdict) const {
  return std::ranges::any_of(comparisons, [&](const Comparison& c) { return c.verdict == verdict; });
}

Comparison compare_metric(const Metric& metric, std::span<const double> a, std::span<const double> b,
                          const CompareOptions& options) {
  Comparison c;
  c.metric = &metric;
  c.a = moments_of(a);
  c.b = moments_of(b);
  c.difference = c.b.mean - c.a.mean;
  const double scale = std::max(std::abs(c.a.mean), std::abs(c.b.mean));
  const double equal = std::max(kExactShare * scale, kExactAmount);
  if (metric.exact && c.a.deviation <= equal && c.b.deviation <= equal) {
    c.interval = Interval{c.difference, c.difference};
    if (std::abs(c.difference) > equal) c.verdict = direction(c);
    c.note = "exact";
    return c;
  }
  if (c.a.n < 2 || c.b.n < 2) {
    c.note = "one repeat is not enough to tell";
    return c;
  }
  const MeanDifference d = mean_difference(c.a, c.b, options.least_effect * std::abs(c.a.mean),
                                           kLeastDeviation * std::abs(c.a.mean), 1 - options.alpha);
  c.interval = d.interval;
  c.p = d.p;
  return c;
}

void decide(std::vector<Comparison>& comparisons, double alpha) {
  std::vector<double> p;
  for (const Comparison& c : comparisons) {
    if (c.p) p.push_back(*c.p);
  }
  const std::vector<double> adjusted = holm_adjusted(p);
  size_t next = 0;
  for (Comparison& c : comparisons) {
    if (!c.p) continue;
    c.p = adjusted[next++];
    if (*c.p < alpha) c.verdict = direction(c);
  }
}

Result<ComparisonReport> compare_experiments(const fs::path& a, const fs::path& b,
                                             const CompareOptions& options) {
  QWEN2_CHECK(check_metrics(options));
  Side side_a, side_b;
  QWEN2_CHECK(read_side(a, side_a));
  QWEN2_CHECK(read_side(b, side_b));
  QWEN2_TRY(const Keyed points_a, by_key(side_a, options.allow));
  QWEN2_TRY(const Keyed points_b, by_key(side_b, options.allow));
  ComparisonReport report;
  std::vector<Named> unexpected;
  for (Named& named : differences_of(side_a, side_b, points_a, points_b))
    (holds(options.allow, named.key) ? report.differences : unexpected).push_back(std::move(named));
  if (!unexpected.empty()) {
    return fail(ErrorKind::kUnsupported,
                "'{}' and '{}' differ in more than they should ({}); --allow KEY lets a difference pass",
                a.string(), b.string(), describe(unexpected));
  }
  for (const auto& [key, point] : points_a) {
    if (const auto other = points_b.find(key); other != points_b.end())
      compare_point(key, *point, *other->second, options, report.comparisons);
  }
  if (report.comparisons.empty()) {
    return fail(ErrorKind::kUnsupported, "'{}' and '{}' have no result of the same metric", a.string(),
                b.string());
  }
  decide(report.comparisons, options.alpha);
  return report;
}

}  // namespace qwen2
