#include "experiment/points.h"

#include <algorithm>

#include "base/subprocess.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

std::string plain(const json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  // A double as people write it, not 5E-1.
  if (value.is_double()) return fmt::format("{}", value.get_double());
  return json::serialize(value);
}

// A text speaks for itself, of a path the last part; numbers and booleans need the axis beside them.
std::string label_of(const std::string& axis, const json::value& value) {
  if (!value.is_string()) return fmt::format("{} {}", axis, plain(value));
  const fs::path path(plain(value));
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

// Appends `point` and its siblings: one for every combination of the axes from `axis` on.
void expand(const Grid& grid, size_t axis, const Point& point, std::vector<Point>& points) {
  if (axis == grid.axes.size()) {
    points.push_back(point);
    return;
  }
  for (const Axis::Value& value : grid.axes[axis].values) {
    Point next = point;
    next.axes[grid.axes[axis].name] = value.name;
    for (const auto& flag : value.flags) next.flags[flag.key()] = flag.value();
    if (!next.label.empty()) next.label += ", ";
    next.label += label_of(grid.axes[axis].name, value.name);
    expand(grid, axis + 1, next, points);
  }
}

std::vector<std::string> words_of(Measure measure) {
  switch (measure) {
    case Measure::kEngine:
      return {"bench", "engine"};
    case Measure::kServe:
      return {"bench", "serve"};
    case Measure::kEvaluate:
      return {"evaluate", "--quiet"};
    case Measure::kPlan:
      return {"plan"};
  }
  return {};
}

}  // namespace

std::vector<Point> points_of(const Experiment& experiment) {
  std::vector<Point> points;
  for (const Grid& grid : experiment.grids) {
    const size_t first = points.size();
    expand(grid, 0, Point{.id = {}, .label = {}, .grid = &grid, .axes = {}, .flags = grid.flags}, points);
    for (size_t i = first; i < points.size(); ++i) {
      points[i].id = fmt::format("p{:03}", i + 1);
      std::string& label = points[i].label;
      if (label.empty()) {
        label = grid.name;
      } else if (experiment.grids.size() > 1) {
        label.insert(0, grid.name + ": ");
      }
    }
  }
  return points;
}

std::string with_directory(std::string text, const fs::path& directory) {
  static constexpr std::string_view kPlace = "{output}";
  for (size_t at = 0; (at = text.find(kPlace, at)) != std::string::npos;) {
    text.replace(at, kPlace.size(), directory.string());
    at += directory.string().size();
  }
  return text;
}

std::string ChildCommand::text() const {
  std::vector<std::string> words = environment;
  words.emplace_back("qwen2");
  words.insert(words.end(), arguments.begin(), arguments.end());
  return shell_command(words);
}

ChildCommand command_of(const Point& point, uint64_t seed, int64_t repeat, const fs::path& directory,
                        const fs::path& result) {
  ChildCommand command{.environment = {}, .arguments = words_of(point.grid->measure)};
  const auto add = [&](std::string_view name, const std::string& value) {
    command.arguments.push_back(fmt::format("--{}", name));
    command.arguments.push_back(value);
  };
  for (const auto& flag : point.flags) {
    const std::string_view name = flag.key();
    if (name == "threads") {
      command.environment.push_back("OMP_NUM_THREADS=" + plain(flag.value()));
    } else if (!flag.value().is_bool()) {
      add(name, with_directory(plain(flag.value()), directory));
    } else if (flag.value().get_bool()) {
      command.arguments.push_back(fmt::format("--{}", name));
    }
  }
  if (point.grid->measure == Measure::kServe && !point.flags.contains("seed"))
    add("seed", std::to_string(seed + static_cast<uint64_t>(repeat)));
  add("output", result.string());
  return command;
}

ChildCommand command_of(const Setup& setup, const fs::path& directory) {
  ChildCommand command{.environment = {}, .arguments = setup.arguments};
  for (std::string& argument : command.arguments) argument = with_directory(std::move(argument), directory);
  return command;
}

}  // namespace qwen2
