#include "experiment/report_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "experiment/report_charts.h"
#include "experiment/report_findings.h"
#include "experiment/report_points.h"
#include "experiment/report_significance.h"

namespace qwen2::report {
namespace {

// Of all repeats that did not end well, the first error.
std::string first_error(const Point& point) {
  for (const Repeat& repeat : point.repeats) {
    if (!repeat.error.empty()) return repeat.error;
  }
  return "";
}

Cell status_cell(const Point& point) {
  const auto total = static_cast<int64_t>(point.repeats.size());
  const int64_t ok = point.count(RepeatStatus::kOk);
  const int64_t refused = point.count(RepeatStatus::kRefused);
  if (total == 0) return {"not run", Tone::kBad};
  if (!fits(point)) return {"does not fit", Tone::kBad};
  if (ok == total) return {fmt::format("{} of {}", ok, total), Tone::kPlain};
  if (refused == total) return {"refused", Tone::kBad, kNoValue, first_error(point)};
  const bool missing = point.count(RepeatStatus::kMissing) == total;
  if (ok == 0) return {missing ? "missing" : "failed", Tone::kBad, kNoValue, first_error(point)};
  return {fmt::format("{} of {}", ok, total), Tone::kBad, kNoValue, first_error(point)};
}

// One unit for a column, the one that suits its largest number.
plot::DisplayUnit column_unit(const PointList& points, const std::string& metric) {
  double largest = 0;
  std::string unit;
  for (const Point* point : with_metric(points, metric)) {
    largest = std::max(largest, std::abs(point->metric(metric)->mean));
    unit = point->metric(metric)->unit;
  }
  return plot::display_unit(unit, largest);
}

Cell metric_cell(const Metric* metric, const plot::DisplayUnit& unit) {
  if (metric == nullptr) return {"–", Tone::kSoft};
  std::string tip = fmt::format("{} {}", metric->n, metric->n == 1 ? "repeat" : "repeats");
  if (metric->n > 1) {
    tip += fmt::format(", from {} to {}", plot::format_quantity(metric->min, metric->unit),
                       plot::format_quantity(metric->max, metric->unit));
  }
  return {format_with_interval(*metric, unit.divisor), Tone::kPlain, metric->mean, std::move(tip)};
}

std::string in_unit(const std::string& label, const plot::DisplayUnit& unit) {
  return unit.name.empty() ? label : fmt::format("{} ({})", label, unit.name);
}

Table points_table(const Group& group) {
  Table table;
  const std::vector<std::string> axes = varied_axes(group.points);
  table.columns.push_back({"point"});
  for (const std::string& axis : axes) table.columns.push_back({axis, is_numeric(group.points, axis)});
  table.columns.push_back({"repeats"});
  std::vector<std::pair<std::string, plot::DisplayUnit>> metrics;
  for (const std::string& name : headline_metrics(group.measure)) {
    const PointList have = with_metric(group.points, name);
    if (have.empty()) continue;
    metrics.emplace_back(name, column_unit(have, name));
    table.columns.push_back({in_unit(have.front()->metric(name)->label, metrics.back().second), true});
  }
  for (const Point* point : group.points) {
    Table::Row row{{{point->id, Tone::kSoft}}, point->command};
    for (const std::string& axis : axes) {
      const AxisValue* value = point->axis(axis);
      row.cells.push_back({value == nullptr ? "–" : value->text});
    }
    row.cells.push_back(status_cell(*point));
    for (const auto& [name, unit] : metrics) row.cells.push_back(metric_cell(point->metric(name), unit));
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string grid_title(const Group& group) {
  return group.grid == group.measure ? group.measure : fmt::format("{} ({})", group.grid, group.measure);
}

Section points_section(const std::vector<Group>& groups) {
  Section section{"Every point", {}};
  section.blocks.emplace_back(
      Paragraph{"Means over the repeats ± half of the 95 % interval of the mean (Student's t); without ±, "
                "there was one repeat. Below each point, the command that measured it."});
  for (const Group& group : groups) {
    if (groups.size() > 1) section.blocks.emplace_back(Heading{grid_title(group)});
    section.blocks.emplace_back(points_table(group));
  }
  return section;
}

constexpr size_t kMostNumbers = 5000;

Section numbers_section(const std::vector<Point>& points) {
  Table table;
  table.columns = {{"point"},    {"metric"},       {"n", true},     {"mean", true}, {"from", true},
                   {"to", true}, {"median", true}, {"least", true}, {"most", true}};
  table.folded = true;
  size_t numbers = 0;
  const auto cell = [](double value, const Metric& m) {
    return std::isfinite(value) ? Cell{plot::format_quantity(value, m.unit), Tone::kPlain, value}
                                : Cell{"–", Tone::kSoft};
  };
  for (const Point& point : points) {
    for (const auto& [name, m] : point.metrics) {
      if (++numbers > kMostNumbers) continue;
      table.rows.push_back({{{point.label},
                             {m.label},
                             {std::to_string(m.n)},
                             cell(m.mean, m),
                             cell(m.low, m),
                             cell(m.high, m),
                             cell(m.median, m),
                             cell(m.min, m),
                             cell(m.max, m)},
                            ""});
    }
  }
  table.summary = numbers > kMostNumbers
                      ? fmt::format("The first {} of {} rows; summary.json has all", kMostNumbers, numbers)
                      : fmt::format("{} rows; “from” and “to” bound the 95 % interval of the mean", numbers);
  return {"Every metric", {std::move(table)}};
}

Section environment_section(const Experiment& experiment) {
  Table table;
  table.columns = {{"what"}, {"value"}};
  for (const auto& [name, value] : experiment.environment) {
    const bool bytes = name.ends_with("_bytes");
    char* end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    std::string label = bytes ? name.substr(0, name.size() - 6) : name;
    std::replace(label.begin(), label.end(), '_', ' ');
    std::replace(label.begin(), label.end(), '.', ' ');
    table.rows.push_back({{{std::move(label), Tone::kSoft},
                           {bytes && *end == '\0' ? plot::format_quantity(number, "B") : value}},
                          ""});
  }
  if (table.rows.empty()) return {"Environment", {Paragraph{"It was not recorded."}}};
  return {"Environment", {std::move(table)}};
}

std::string change_text(const Metric& a, const Metric& b) {
  if (a.mean == 0) return "from 0";
  const double percent = (b.mean / a.mean - 1) * 100;
  if (std::abs(percent) >= 1000) return fmt::format("× {}", plot::format_number(b.mean / a.mean));
  return fmt::format("{}{} %", percent > 0 ? "+" : "",
                     plot::format_fixed(percent, std::abs(percent) < 10 ? 1 : 0));
}

Cell verdict_cell(const Difference& d) {
  const std::string change = change_text(*d.a, *d.b);
  const std::string tip = format_metric(*d.a) + " → " + format_metric(*d.b);
  switch (d.verdict) {
    case Verdict::kBetter:
      return {change + ", better", Tone::kGood, kNoValue, tip};
    case Verdict::kWorse:
      return {change + ", worse", Tone::kBad, kNoValue, tip};
    case Verdict::kDiffers:
      return {change + ", differs", Tone::kPlain, kNoValue, tip};
    case Verdict::kNotShown:
      return {"not shown", Tone::kSoft, kNoValue, tip};
    default:
      return {"not tested", Tone::kSoft, kNoValue, tip};
  }
}

// A row a pair of neighbours, a column a metric.
Table differences_table(const std::vector<Difference>& all) {
  Table table;
  table.columns = {{"axis"}, {"from → to"}, {"with"}};
  std::vector<std::string> labels;
  std::vector<std::string> rows;
  for (const Difference& d : all) {
    const std::string row = d.axis + "\n" + d.from + "\n" + d.to + "\n" + d.fixed;
    if (std::find(labels.begin(), labels.end(), d.a->label) == labels.end()) {
      labels.push_back(d.a->label);
      table.columns.push_back({d.a->label});
    }
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) {
      rows.push_back(row);
      table.rows.push_back({{{d.axis}, {d.from + " → " + d.to}, {d.fixed.empty() ? "–" : d.fixed}}, ""});
    }
  }
  for (Table::Row& row : table.rows) row.cells.resize(table.columns.size(), {"–", Tone::kSoft});
  for (const Difference& d : all) {
    const std::string row = d.axis + "\n" + d.from + "\n" + d.to + "\n" + d.fixed;
    const auto i = static_cast<size_t>(std::find(rows.begin(), rows.end(), row) - rows.begin());
    const auto k = static_cast<size_t>(std::find(labels.begin(), labels.end(), d.a->label) - labels.begin());
    table.rows[i].cells[3 + k] = verdict_cell(d);
  }
  return table;
}

Section significance_section(const std::vector<Group>& groups) {
  Section section{"What is significant", {}};
  int64_t separate = 0;
  int64_t unshown = 0;
  int64_t untested = 0;
  for (const Group& group : groups) {
    const std::vector<Difference> all =
        differences(group, compared_metrics(group.measure), separate_intervals);
    const auto count = [&](Verdict verdict) {
      return std::count_if(all.begin(), all.end(), [&](const Difference& d) { return d.verdict == verdict; });
    };
    const auto size = static_cast<int64_t>(all.size());
    untested += count(Verdict::kNotTestable);
    unshown += count(Verdict::kNotShown);
    separate += size - count(Verdict::kNotTestable) - count(Verdict::kNotShown);
    if (count(Verdict::kNotTestable) == size) continue;
    section.blocks.emplace_back(Heading{grid_title(group)});
    section.blocks.emplace_back(differences_table(all));
  }
  std::string text = fmt::format(
      "Points that are neighbours on an axis, all else equal. Of {} comparisons with at least two repeats on "
      "both sides, {} have 95 % intervals that "
      "do not overlap; {} show no difference. Intervals apart are a stricter criterion than a test at 5 % "
      "for one pair; they are not corrected for "
      "the number of pairs.",
      separate + unshown, separate, unshown);
  if (untested > 0) text += fmt::format(" {} more cannot be tested: one repeat.", untested);
  section.blocks.insert(section.blocks.begin(), Paragraph{std::move(text)});
  return section;
}

Section plots_section(const Experiment& experiment) {
  std::vector<std::string> missing;
  std::vector<plot::Chart> charts = charts_of(experiment, missing);
  Section section{"Plots", {}};
  for (plot::Chart& chart : charts) section.blocks.emplace_back(std::move(chart));
  if (charts.empty()) section.blocks.emplace_back(Paragraph{"Nothing was measured that could be drawn."});
  for (const std::string& text : missing) section.blocks.emplace_back(Paragraph{"Not drawn: " + text + "."});
  return section;
}

Section failures_section(const std::vector<Point>& points) {
  Table table;
  table.columns = {{"point"}, {"what"}, {"how often", true}, {"said"}};
  const auto row = [&](const Point& point, std::string what, int64_t n, std::string said) {
    table.rows.push_back({{{point.label}, {std::move(what)}, {std::to_string(n)}, {std::move(said)}}, ""});
  };
  for (const Point& point : points) {
    for (const auto& [status, name] : {std::pair{RepeatStatus::kFailed, "repeat failed"},
                                       {RepeatStatus::kRefused, "repeat refused"},
                                       {RepeatStatus::kMissing, "result missing"}}) {
      if (const int64_t n = point.count(status); n > 0) row(point, name, n, first_error(point));
    }
    if (point.repeats.empty()) row(point, "not run", 1, "");
    if (!fits(point)) row(point, "plan does not fit", 1, point.repeats.front().measurement.cure);
    for (const auto& [kind, n] : request_failures({point})) row(point, "request failed: " + kind, n, "");
    const auto cut = std::count_if(point.repeats.begin(), point.repeats.end(),
                                   [](const Repeat& r) { return r.measurement.interrupted; });
    if (cut > 0) row(point, "repeat interrupted", cut, "its numbers are those of the requests until then");
  }
  if (table.rows.empty())
    return {"Failures and refusals", {Paragraph{"None: every repeat ran and every request succeeded."}}};
  return {"Failures and refusals", {std::move(table)}};
}

Section findings_section(const Experiment& experiment, const std::vector<Group>& groups) {
  Section section{"Findings at a glance", {}};
  if (experiment.interrupted || experiment.finished.empty()) {
    section.blocks.emplace_back(
        Paragraph{"This run was interrupted: what follows is what it had measured until then.", true});
  }
  Table table;
  table.columns = {{"finding"}, {"value", true}, {"where"}};
  for (const Finding& finding : findings(experiment, groups)) {
    table.rows.push_back({{{finding.what},
                           {finding.value, finding.bad ? Tone::kBad : Tone::kPlain, finding.number},
                           {finding.where}},
                          ""});
  }
  section.blocks.emplace_back(std::move(table));
  return section;
}

// "2026-11-24T12:00:00Z" as "2026-11-24 12:00:00 UTC"; any other text as it is.
std::string plain_time(std::string text) {
  if (text.size() != 20 || text[10] != 'T' || text[19] != 'Z') return text;
  text[10] = ' ';
  return text.substr(0, 19) + " UTC";
}

}  // namespace

Document make_document(const Experiment& experiment) {
  const std::vector<Group> groups = groups_of(experiment.points);
  Document document;
  document.title = experiment.title;
  document.question = experiment.question;
  document.dates = experiment.started.empty() ? "" : "Started " + plain_time(experiment.started);
  if (!experiment.finished.empty()) document.dates += ", finished " + plain_time(experiment.finished);
  document.sections.push_back(findings_section(experiment, groups));
  document.sections.push_back(plots_section(experiment));
  document.sections.push_back(significance_section(groups));
  document.sections.push_back(points_section(groups));
  document.sections.push_back(failures_section(experiment.points));
  document.sections.push_back(environment_section(experiment));
  document.sections.push_back(numbers_section(experiment.points));
  return document;
}

}  // namespace qwen2::report
