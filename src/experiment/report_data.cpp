#include "experiment/report_data.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "experiment/report_json.h"

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

Result<RepeatStatus> parse_status(const std::string& text, const std::string& path) {
  if (text == "ok") return RepeatStatus::kOk;
  if (text == "failed") return RepeatStatus::kFailed;
  if (text == "refused") return RepeatStatus::kRefused;
  return fail(ErrorKind::kFormat, "{}: expected ok, failed or refused, not '{}'", path, text);
}

// Files of the manifest must lie in the directory: a report must not read what else the disk has.
bool stays_inside(const fs::path& file) {
  if (file.empty() || file.is_absolute()) return false;
  return std::none_of(file.begin(), file.end(), [](const fs::path& part) { return part == ".."; });
}

Result<Repeat> parse_repeat(const json::object& object, const std::string& where) {
  const Fields fields(object, where);
  Repeat repeat;
  QWEN2_TRY(const std::string status, fields.text("status"));
  QWEN2_TRY(repeat.status, parse_status(status, fields.path("status")));
  QWEN2_TRY(repeat.file, fields.text_or_empty("file"));
  if (repeat.status == RepeatStatus::kOk && !stays_inside(repeat.file))
    return fail(ErrorKind::kFormat, "{}: expected a path inside of the directory", fields.path("file"));
  QWEN2_TRY(repeat.error, fields.text_or_empty("error"));
  QWEN2_TRY(repeat.seconds, fields.number_or_nan("seconds"));
  return repeat;
}

Result<Point> parse_point(const json::object& object, const std::string& where) {
  const Fields fields(object, where);
  Point point;
  QWEN2_TRY(point.id, fields.text("id"));
  QWEN2_TRY(point.label, fields.text_or_empty("label"));
  QWEN2_TRY(point.measure, fields.text("measure"));
  QWEN2_TRY(point.grid, fields.text_or_empty("grid"));
  QWEN2_TRY(point.command, fields.text_or_empty("command"));
  QWEN2_TRY(const json::object* axes, fields.object("axes"));
  for (const auto& [name, value] : *axes) point.axes.emplace_back(name, axis_value(value));
  QWEN2_TRY(const json::array* repeats, fields.array("repeats"));
  for (size_t i = 0; i < repeats->size(); ++i) {
    const std::string name = fields.path("repeats");
    QWEN2_TRY(const json::object* item, element(*repeats, i, name));
    QWEN2_TRY(Repeat repeat, parse_repeat(*item, fmt::format("{}[{}].", name, i)));
    point.repeats.push_back(std::move(repeat));
  }
  if (point.label.empty()) point.label = point.id;
  if (point.grid.empty()) point.grid = point.measure;
  return point;
}

Result<PlotWish> parse_plot(const json::object& object, const std::string& where) {
  const Fields fields(object, where);
  PlotWish plot;
  QWEN2_TRY(plot.title, fields.text_or_empty("title"));
  QWEN2_TRY(plot.x, fields.text("x"));
  QWEN2_TRY(plot.y, fields.text("y"));
  QWEN2_TRY(plot.series, fields.text_or_empty("series"));
  for (auto& [name, flag] : {std::pair{"log_x", &plot.log_x}, {"log_y", &plot.log_y}}) {
    if (!fields.has(name)) continue;
    QWEN2_TRY(*flag, fields.flag_or_false(name));
  }
  return plot;
}

Status check_points(const std::vector<Point>& points) {
  std::set<std::string> ids;
  for (const Point& point : points) {
    if (!ids.insert(point.id).second)
      return fail(ErrorKind::kFormat, "points: the id '{}' is there twice", point.id);
  }
  return {};
}

Result<Experiment> parse_manifest(const json::object& root) {
  const Fields fields(root, "");
  QWEN2_TRY(const std::string schema, fields.text("schema"));
  if (schema != "qwen2-experiment/1")
    return fail(ErrorKind::kUnsupported, "schema: expected qwen2-experiment/1, not '{}'", schema);
  Experiment experiment;
  QWEN2_TRY(experiment.name, fields.text("name"));
  QWEN2_TRY(experiment.title, fields.text_or_empty("title"));
  QWEN2_TRY(experiment.question, fields.text_or_empty("question"));
  QWEN2_TRY(experiment.started, fields.text_or_empty("started"));
  QWEN2_TRY(experiment.finished, fields.text_or_empty("finished"));
  QWEN2_TRY(experiment.interrupted, fields.flag_or_false("interrupted"));
  if (experiment.title.empty()) experiment.title = experiment.name;
  QWEN2_TRY(const json::object* environment, fields.object_or_null("environment"));
  if (environment != nullptr) flatten(*environment, "", experiment.environment);
  QWEN2_TRY(const json::array* points, fields.array("points"));
  if (points->size() > kMostPoints)
    return fail(ErrorKind::kUnsupported, "points: {} are more than {}", points->size(), kMostPoints);
  for (size_t i = 0; i < points->size(); ++i) {
    QWEN2_TRY(const json::object* item, element(*points, i, "points"));
    QWEN2_TRY(Point point, parse_point(*item, fmt::format("points[{}].", i)));
    experiment.points.push_back(std::move(point));
  }
  QWEN2_CHECK(check_points(experiment.points));
  QWEN2_TRY(const json::array* plots, fields.array_or_null("plots"));
  for (size_t i = 0; plots != nullptr && i < plots->size(); ++i) {
    QWEN2_TRY(const json::object* item, element(*plots, i, "plots"));
    QWEN2_TRY(PlotWish plot, parse_plot(*item, fmt::format("plots[{}].", i)));
    experiment.plots.push_back(std::move(plot));
  }
  return experiment;
}

Result<Metric> parse_metric(const json::object& object, const std::string& where) {
  const Fields fields(object, where);
  Metric metric;
  QWEN2_TRY(metric.n, fields.count_or_zero("n"));
  if (!fields.has("mean")) return fail(ErrorKind::kFormat, "{}: expected a number", fields.path("mean"));
  for (auto& [name, value] : {std::pair{"mean", &metric.mean},
                              {"ci_low", &metric.low},
                              {"ci_high", &metric.high},
                              {"median", &metric.median},
                              {"min", &metric.min},
                              {"max", &metric.max}}) {
    QWEN2_TRY(*value, fields.number_or_nan(name));
  }
  QWEN2_TRY(metric.label, fields.text_or_empty("label"));
  QWEN2_TRY(metric.unit, fields.text_or_empty("unit"));
  QWEN2_TRY(const std::string better, fields.text_or_empty("better"));
  metric.better = better == "higher" ? Better::kHigher : better == "lower" ? Better::kLower : Better::kNone;
  return metric;
}

// Puts the metrics of summary.json to their points; points that it lacks keep none.
Status parse_summary(const json::object& root, std::vector<Point>& points) {
  const Fields fields(root, "");
  QWEN2_TRY(const json::array* items, fields.array("points"));
  for (size_t i = 0; i < items->size(); ++i) {
    QWEN2_TRY(const json::object* item, element(*items, i, "points"));
    const Fields entry(*item, fmt::format("points[{}].", i));
    QWEN2_TRY(const std::string id, entry.text("id"));
    const auto point = std::find_if(points.begin(), points.end(), [&](const Point& p) { return p.id == id; });
    if (point == points.end())
      return fail(ErrorKind::kFormat, "{}: manifest.json has no point '{}'", entry.path("id"), id);
    QWEN2_TRY(const json::object* metrics, entry.object("metrics"));
    for (const auto& [name, value] : *metrics) {
      const std::string path = entry.path("metrics.") + std::string(name);
      if (!value.is_object()) return fail(ErrorKind::kFormat, "{}: expected an object", path);
      QWEN2_TRY(Metric metric, parse_metric(value.as_object(), path + "."));
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
  const fs::path manifest_file = folder / "manifest.json";
  const fs::path summary_file = folder / "summary.json";
  QWEN2_TRY(const json::object manifest, read_json_object(manifest_file));
  auto experiment = parse_manifest(manifest);
  if (!experiment) return within(fmt::format("'{}'", manifest_file.string()), experiment.error());
  QWEN2_TRY(const json::object summary, read_json_object(summary_file));
  if (const Status status = parse_summary(summary, experiment->points); !status)
    return within(fmt::format("'{}'", summary_file.string()), status.error());
  QWEN2_CHECK(load_measurements(folder, experiment->points));
  return experiment;
}

}  // namespace qwen2::report
