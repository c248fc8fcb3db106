// A comparison as JSON and as a table.
#include <algorithm>
#include <cmath>

#include "experiment/comparison.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

template <class T>
json::value or_null(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value(nullptr);
}

// Of a's mean; nothing where that is zero.
std::optional<double> percent(const Comparison& c, double difference) {
  if (c.a.mean == 0) return std::nullopt;
  return 100 * difference / std::abs(c.a.mean);
}

json::object to_json(const Moments& m) {
  return {{"n", m.n}, {"mean", m.mean}, {"standard_deviation", m.deviation}};
}

json::object to_json(const Comparison& c) {
  json::object object{{"point", c.label}, {"verdict", name_of(c.verdict)}, {"note", c.note}};
  if (c.metric == nullptr) return object;
  object["metric"] = c.metric->name;
  object["unit"] = c.metric->unit;
  object["better"] = name_of(c.metric->better);
  object["a"] = to_json(c.a);
  object["b"] = to_json(c.b);
  object["difference"] = c.difference;
  object["difference_percent"] = or_null(percent(c, c.difference));
  object["ci_low"] = c.interval ? json::value(c.interval->low) : json::value(nullptr);
  object["ci_high"] = c.interval ? json::value(c.interval->high) : json::value(nullptr);
  object["p_adjusted"] = or_null(c.p);
  return object;
}

std::string change(const Comparison& c) {
  const auto relative = percent(c, c.difference);
  if (!relative) return fmt::format("{:+.3g}", c.difference);
  if (!c.interval || c.interval->low == c.interval->high) return fmt::format("{:+.2f} %", *relative);
  return fmt::format("{:+.2f} % [{:+.2f}, {:+.2f}]", *relative, *percent(c, c.interval->low),
                     *percent(c, c.interval->high));
}

}  // namespace

json::object to_json(const ComparisonReport& report, const CompareOptions& options) {
  json::array differences, comparisons;
  for (const Named& d : report.differences)
    differences.push_back(json::object{{"key", d.key}, {"a", d.a}, {"b", d.b}});
  for (const Comparison& c : report.comparisons) comparisons.push_back(to_json(c));
  const Verdict verdict = report.any(Verdict::kWorse)    ? Verdict::kWorse
                          : report.any(Verdict::kBetter) ? Verdict::kBetter
                                                         : Verdict::kNoDifference;
  return {{"schema", "qwen2-comparison/1"},
          {"test", "Welch's t test of a difference above least_effect, Holm's correction"},
          {"alpha", options.alpha},
          {"least_effect", options.least_effect},
          {"verdict", name_of(verdict)},
          {"allowed_differences", std::move(differences)},
          {"comparisons", std::move(comparisons)}};
}

std::string format_comparison(const ComparisonReport& report, const CompareOptions& options) {
  std::string text;
  for (const Named& d : report.differences)
    text += fmt::format("differs, as allowed: {}: {} and {}\n", d.key, d.a, d.b);
  std::string_view point;
  for (const Comparison& c : report.comparisons) {
    if (c.label != point) text += c.label + '\n';
    point = c.label;
    if (c.metric == nullptr) {
      text += fmt::format("  {:<20} {} ({})\n", "outcome", name_of(c.verdict), c.note);
      continue;
    }
    const std::string_view unit = c.metric->unit;
    text +=
        fmt::format("  {:<20} {:>14} {:>14}  {:<32} {}{}\n", c.metric->label, format_metric(c.a.mean, unit),
                    format_metric(c.b.mean, unit), change(c), name_of(c.verdict),
                    c.note.empty() ? fmt::format(" (p {:.2g})", c.p.value_or(1)) : " (" + c.note + ")");
  }
  const auto count = [&](Verdict v) {
    return std::ranges::count(report.comparisons, v, &Comparison::verdict);
  };
  return text +
         fmt::format("{} worse, {} better, {} without a difference shown (more than {:g} %, alpha {:g})\n",
                     count(Verdict::kWorse), count(Verdict::kBetter), count(Verdict::kNoDifference),
                     100 * options.least_effect, options.alpha);
}

}  // namespace qwen2
