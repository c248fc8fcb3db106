#include "experiment/report_data.h"

#include <algorithm>
#include <boost/json.hpp>
#include <set>

#include "base/json_fields.h"

namespace qwen2::report {

namespace fs = std::filesystem;
namespace json = boost::json;

const AxisValue* Point::axis(std::string_view name) const {
  for (const auto& [axis, value] : axes) {
    if (axis == name) return &value;
  }
  return nullptr;
}

const Metric* Point::metric(const std::string& name) const {
  const auto found = metrics.find(name);
  return found == metrics.end() ? nullptr : &found->second;
}

int64_t Point::count(RepeatStatus status) const {
  return std::count_if(repeats.begin(), repeats.end(), [&](const Repeat& r) { return r.status == status; });
}

namespace {

constexpr size_t kMostPoints = 10'000;

// A value of any type as people read it: strings without quotes, numbers as short as they are exact.
std::string plain_text(const json::value& value) {
  if (value.is_null()) return "";
  if (const json::string* text = value.if_string()) return std::string(*text);
  if (value.is_double()) return fmt::format("{}", value.as_double());
  return json::serialize(value);
}

AxisValue axis_value(const json::value& value) {
  AxisValue axis{plain_text(value), kNoValue};
  if (value.is_number()) axis.number = value.to_number<double>();
  return axis;
}

// Objects inside become "clocks.sm_mhz".
void flatten(const json::object& object, const std::string& prefix,
             std::vector<std::pair<std::string, std::string>>& out, int depth = 0) {
  for (const auto& [key, value] : object) {
    const std::string name = prefix + std::string(key);
    if (const json::object* inner = value.if_object(); inner != nullptr && depth < 4) {
      flatten(*inner, name + ".", out, depth + 1);
    } else if (std::string text = plain_text(value); !text.empty()) {
      out.emplace_back(name, std::move(text));
    }
  }
}

Result<RepeatStatus> parse_status(const JsonFields& repeat) {
  std::string text;
  QWEN2_CHECK(repeat.required("status", text));
  if (text == "ok") return RepeatStatus::kOk;
  if (text == "failed") return RepeatStatus::kFailed;
  if (text == "refused") return RepeatStatus::kRefused;
  return repeat.error("status", fmt::format("must be ok, failed or refused, not '{}'", text));
}

// Files of the manifest must lie in the directory: a report must not read what else the disk has.
bool stays_inside(const fs::path& file) {
  if (file.empty() || file.is_absolute()) return false;
  return std::none_of(file.begin(), file.end(), [](const fs::path& part) { return part == ".."; });
}

Result<Repeat> parse_repeat(const JsonFields& fields) {
  Repeat repeat;
  QWEN2_TRY(repeat.status, parse_status(fields));
  QWEN2_CHECK(fields.optional("file", repeat.file));
  if (repeat.status == RepeatStatus::kOk && !stays_inside(repeat.file))
    return fields.error("file", "must be a path inside of the directory");
  QWEN2_CHECK(fields.optional("error", repeat.error));
  QWEN2_CHECK(fields.optional("seconds", repeat.seconds));
  return repeat;
}

Result<Point> parse_point(const JsonFields& fields) {
  Point point;
  JsonFields axes;
  std::vector<JsonFields> repeats;
  QWEN2_CHECK(fields.required("id", point.id));
  QWEN2_CHECK(fields.optional("label", point.label));
  QWEN2_CHECK(fields.required("measure", point.measure));
  QWEN2_CHECK(fields.optional("grid", point.grid));
  QWEN2_CHECK(fields.optional("command", point.command));
  QWEN2_CHECK(fields.required("axes", axes));
  for (const auto& [name, value] : axes.object()) point.axes.emplace_back(name, axis_value(value));
  QWEN2_CHECK(fields.required("repeats", repeats));
  for (const JsonFields& item : repeats) {
    QWEN2_TRY(Repeat repeat, parse_repeat(item));
    point.repeats.push_back(std::move(repeat));
  }
  if (point.label.empty()) point.label = point.id;
  if (point.grid.empty()) point.grid = point.measure;
  return point;
}

Result<PlotWish> parse_plot(const JsonFields& fields) {
  PlotWish plot;
  QWEN2_CHECK(fields.optional("title", plot.title));
  QWEN2_CHECK(fields.required("x", plot.x));
  QWEN2_CHECK(fields.required("y", plot.y));
  QWEN2_CHECK(fields.optional("series", plot.series));
  QWEN2_CHECK(fields.optional("log_x", plot.log_x));
  QWEN2_CHECK(fields.optional("log_y", plot.log_y));
  return plot;
}

Status check_points(const JsonFields& manifest, const std::vector<Point>& points) {
  std::set<std::string> ids;
  for (const Point& point : points) {
    if (!ids.insert(point.id).second)
      return manifest.error("points", fmt::format("have the id '{}' twice", point.id));
  }
  return {};
}

Result<Experiment> parse_manifest(const JsonFields& fields) {
  std::string schema;
  QWEN2_CHECK(fields.required("schema", schema));
  if (schema != "qwen2-experiment/1") {
    return fields.error("schema", fmt::format("must be qwen2-experiment/1, not '{}'", schema),
                        ErrorKind::kUnsupported);
  }
  Experiment experiment;
  JsonFields environment;
  std::vector<JsonFields> points, plots;
  QWEN2_CHECK(fields.required("name", experiment.name));
  QWEN2_CHECK(fields.optional("title", experiment.title));
  QWEN2_CHECK(fields.optional("question", experiment.question));
  QWEN2_CHECK(fields.optional("started", experiment.started));
  QWEN2_CHECK(fields.optional("finished", experiment.finished));
  QWEN2_CHECK(fields.optional("interrupted", experiment.interrupted));
  if (experiment.title.empty()) experiment.title = experiment.name;
  QWEN2_CHECK(fields.optional("environment", environment));
  flatten(environment.object(), "", experiment.environment);
  QWEN2_CHECK(fields.required("points", points));
  if (points.size() > kMostPoints) {
    return fields.error("points", fmt::format("are {}, more than {}", points.size(), kMostPoints),
                        ErrorKind::kUnsupported);
  }
  for (const JsonFields& item : points) {
    QWEN2_TRY(Point point, parse_point(item));
    experiment.points.push_back(std::move(point));
  }
  QWEN2_CHECK(check_points(fields, experiment.points));
  QWEN2_CHECK(fields.optional("plots", plots));
  for (const JsonFields& item : plots) {
    QWEN2_TRY(PlotWish plot, parse_plot(item));
    experiment.plots.push_back(std::move(plot));
  }
  return experiment;
}

Result<Metric> parse_metric(const JsonFields& fields) {
  Metric metric;
  std::string better;
  QWEN2_CHECK(fields.optional("n", metric.n, 0, kMostCounted));
  QWEN2_CHECK(fields.required("mean", metric.mean));
  QWEN2_CHECK(fields.optional("ci_low", metric.low));
  QWEN2_CHECK(fields.optional("ci_high", metric.high));
  QWEN2_CHECK(fields.optional("median", metric.median));
  QWEN2_CHECK(fields.optional("min", metric.min));
  QWEN2_CHECK(fields.optional("max", metric.max));
  QWEN2_CHECK(fields.optional("label", metric.label));
  QWEN2_CHECK(fields.optional("unit", metric.unit));
  QWEN2_CHECK(fields.optional("better", better));
  metric.better = better == "higher" ? Better::kHigher : better == "lower" ? Better::kLower : Better::kNone;
  return metric;
}

// Puts the metrics of summary.json to their points; points that it lacks keep none.
Status parse_summary(const JsonFields& root, std::vector<Point>& points) {
  std::vector<JsonFields> entries;
  QWEN2_CHECK(root.required("points", entries));
  for (const JsonFields& entry : entries) {
    std::string id;
    JsonFields metrics;
    QWEN2_CHECK(entry.required("id", id));
    const auto point = std::find_if(points.begin(), points.end(), [&](const Point& p) { return p.id == id; });
    if (point == points.end())
      return entry.error("id", fmt::format("is '{}', which manifest.json does not have", id));
    QWEN2_CHECK(entry.required("metrics", metrics));
    for (const auto& [name, value] : metrics.object()) {
      JsonFields fields;
      QWEN2_CHECK(metrics.required(name, fields));
      QWEN2_TRY(Metric metric, parse_metric(fields));
      if (metric.label.empty()) metric.label = name;
      point->metrics.emplace(name, std::move(metric));
    }
  }
  return {};
}

Status load_measurements(const fs::path& folder, std::vector<Point>& points) {
  for (Point& point : points) {
    for (Repeat& repeat : point.repeats) {
      if (repeat.status != RepeatStatus::kOk) continue;
      if (!fs::exists(folder / repeat.file)) {
        repeat.status = RepeatStatus::kMissing;
        repeat.error = "the result file is not there";
        continue;
      }
      QWEN2_TRY(repeat.measurement, load_measurement(folder / repeat.file, point.measure));
    }
  }
  return {};
}

}  // namespace

Result<Experiment> load_experiment(const fs::path& folder) {
  QWEN2_TRY(const JsonFields manifest, JsonFields::read(folder / "manifest.json"));
  QWEN2_TRY(Experiment experiment, parse_manifest(manifest));
  QWEN2_TRY(const JsonFields summary, JsonFields::read(folder / "summary.json"));
  QWEN2_CHECK(parse_summary(summary, experiment.points));
  QWEN2_CHECK(load_measurements(folder, experiment.points));
  return experiment;
}

}  // namespace qwen2::report
