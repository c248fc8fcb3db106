#include "experiment/experiment_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <span>

#include "base/memory.h"

namespace qwen2 {
namespace {

// Why an experiment may not give a child this flag; empty where it may.
std::string_view refusal_of(std::string_view flag) {
  if (flag == "output") return "the output is the experiment's own";
  if (flag == "resume") return "`experiment run --resume` goes on with what is left";
  if (flag == "ladder" || flag == "search")
    return "a point has one result; give the loads as an axis, such as axes = { concurrency = [1, 2, 4] }";
  return "";
}

namespace json = boost::json;

using Keys = std::span<const std::string_view>;

constexpr auto kTopKeys =
    std::to_array<std::string_view>({"name", "title", "question", "seed", "repeats", "cooldown", "shuffle",
                                     "timeout", "flags", "setup", "grid", "plot", "profile"});
constexpr auto kGridKeys = std::to_array<std::string_view>(
    {"name", "measure", "flags", "axes", "repeats", "estimate", "timeout", "may-be-refused"});
constexpr auto kSetupKeys = std::to_array<std::string_view>({"command", "creates", "timeout"});
constexpr auto kPlotKeys = std::to_array<std::string_view>({"title", "x", "y", "series", "log_x", "log_y"});
constexpr auto kProfileKeys = std::to_array<std::string_view>({"repeats", "cooldown", "flags", "grid"});
constexpr auto kProfileGridKeys =
    std::to_array<std::string_view>({"flags", "axes", "repeats", "estimate", "timeout", "skip"});

// Reads one file; every error names file and line.
class Reader {
 public:
  Reader(std::string_view where, const std::string& profile) : where_(where), profile_(profile) {}

  Result<Experiment> read(const toml::table& root) {
    Experiment e;
    QWEN2_CHECK(check_keys(root, kTopKeys, "the file"));
    QWEN2_TRY(const toml::table* profile, find_profile(root));
    QWEN2_CHECK(text(root, "name", e.name, true));
    QWEN2_CHECK(text(root, "title", e.title));
    QWEN2_CHECK(text(root, "question", e.question));
    if (e.title.empty()) e.title = e.name;
    double seed = 0;
    QWEN2_CHECK(number(root, "seed", seed, 0, 1e9, true));
    e.seed = static_cast<uint64_t>(seed);
    QWEN2_CHECK(number(root, "cooldown", e.cooldown_seconds, 0, 3600));
    QWEN2_CHECK(boolean(root, "shuffle", e.shuffle));
    Grid common;
    QWEN2_CHECK(grid_values(root, common));
    if (profile != nullptr) {
      QWEN2_CHECK(check_keys(*profile, kProfileKeys, "[profile." + profile_ + "]"));
      QWEN2_CHECK(number(*profile, "cooldown", e.cooldown_seconds, 0, 3600));
      QWEN2_CHECK(grid_values(*profile, common));
    }
    QWEN2_CHECK(read_grids(root, profile, common, e));
    QWEN2_CHECK(read_setup(root, e));
    QWEN2_CHECK(read_plots(root, e));
    return e;
  }

 private:
  template <class... Args>
  std::unexpected<Error> at(const toml::source_region& source, fmt::format_string<Args...> format,
                            Args&&... args) const {
    return fail(ErrorKind::kFormat, "'{}' line {}: {}", where_, source.begin.line,
                fmt::format(format, std::forward<Args>(args)...));
  }

  Status check_keys(const toml::table& table, Keys keys, std::string_view place) const {
    for (const auto& [key, node] : table) {
      if (std::ranges::find(keys, key.str()) != keys.end()) continue;
      return at(key.source(), "unknown key '{}' in {}; expected one of {}", key.str(), place,
                fmt::join(keys, ", "));
    }
    return {};
  }

  Status text(const toml::table& table, std::string_view key, std::string& value,
              bool required = false) const {
    const toml::node* node = table.get(key);
    if (node == nullptr) {
      if (required) return at(table.source(), "'{}' is missing", key);
      return {};
    }
    const auto found = node->value_exact<std::string>();
    if (!found || (required && found->empty())) return at(node->source(), "'{}' must be a text", key);
    value = *found;
    return {};
  }

  Status boolean(const toml::table& table, std::string_view key, bool& value) const {
    const toml::node* node = table.get(key);
    if (node == nullptr) return {};
    const auto found = node->value_exact<bool>();
    if (!found) return at(node->source(), "'{}' must be true or false", key);
    value = *found;
    return {};
  }

  Status number(const toml::table& table, std::string_view key, double& value, double low, double high,
                bool whole = false) const {
    const toml::node* node = table.get(key);
    if (node == nullptr) return {};
    const auto found = node->value<double>();
    if (!node->is_number() || !found || !(*found >= low && *found <= high) ||
        (whole && !node->is_integer())) {
      return at(node->source(), "'{}' must be {} from {} to {}", key, whole ? "an integer" : "a number", low,
                high);
    }
    value = *found;
    return {};
  }

  // The table under `key`, or null.
  Result<const toml::table*> table_of(const toml::table& table, std::string_view key) const {
    const toml::node* node = table.get(key);
    if (node == nullptr || node->is_table()) return node == nullptr ? nullptr : node->as_table();
    return at(node->source(), "'{}' must be a table", key);
  }

  // The tables of the array [[key]]; none where it is missing.
  Result<std::vector<const toml::table*>> tables_of(const toml::table& table, std::string_view key) const {
    std::vector<const toml::table*> tables;
    const toml::node* node = table.get(key);
    if (node == nullptr) return tables;
    if (!node->is_array_of_tables()) return at(node->source(), "'{}' must be tables: [[{}]]", key, key);
    for (const toml::node& item : *node->as_array()) tables.push_back(item.as_table());
    return tables;
  }

  Result<json::value> scalar(const toml::node& node, std::string_view key) const {
    if (const auto* value = node.as_string()) return json::value(value->get());
    if (const auto* value = node.as_integer()) return json::value(value->get());
    if (const auto* value = node.as_floating_point()) return json::value(value->get());
    if (const auto* value = node.as_boolean()) return json::value(value->get());
    return at(node.source(), "'{}' must be a text, a number, true or false", key);
  }

  // The keys of a table in the order in which they were written.
  static std::vector<std::string> written_order(const toml::table& table) {
    std::vector<std::pair<toml::source_position, std::string>> found;
    for (const auto& [key, node] : table) found.emplace_back(key.source().begin, key.str());
    std::ranges::sort(found, [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::string> keys;
    keys.reserve(found.size());
    for (auto& [position, key] : found) keys.push_back(std::move(key));
    return keys;
  }

  Status check_flag(const std::string& key, const toml::node& node) const {
    const std::string_view why = refusal_of(key);
    if (!why.empty()) return at(node.source(), "the flag '{}' cannot be given: {}", key, why);
    return {};
  }

  // Puts the flags of `table` in, over what `flags` had.
  Status add_flags(const toml::table& table, Flags& flags, std::string_view except = {}) const {
    for (const std::string& key : written_order(table)) {
      if (key == except) continue;
      const toml::node& node = *table.get(key);
      QWEN2_CHECK(check_flag(key, node));
      if (key == "threads" && !(node.is_integer() && node.value_or(0) >= 1 && node.value_or(0) <= 1024))
        return at(node.source(), "'threads' must be an integer from 1 to 1024");
      QWEN2_TRY(flags[key], scalar(node, key));
    }
    return {};
  }

  Status add_flags_of(const toml::table& table, Flags& flags) const {
    QWEN2_TRY(const toml::table* given, table_of(table, "flags"));
    if (given == nullptr) return {};
    return add_flags(*given, flags);
  }

  // What grids, the file (for all grids) and profiles may say alike.
  Status grid_values(const toml::table& table, Grid& grid) const {
    double repeats = static_cast<double>(grid.repeats);
    QWEN2_CHECK(number(table, "repeats", repeats, 1, 1000, true));
    grid.repeats = static_cast<int64_t>(repeats);
    QWEN2_CHECK(number(table, "timeout", grid.timeout_seconds, 1, 86400));
    QWEN2_CHECK(number(table, "estimate", grid.estimate_seconds, 0, 86400));
    return add_flags_of(table, grid.flags);
  }

  Result<Axis::Value> axis_value(const toml::node& node, const std::string& axis) const {
    Axis::Value value;
    if (const toml::table* together = node.as_table()) {
      std::string name;
      QWEN2_CHECK(text(*together, "name", name, true));
      value.name = name;
      QWEN2_CHECK(add_flags(*together, value.flags, "name"));
      return value;
    }
    QWEN2_CHECK(check_flag(axis, node));
    toml::table one;
    one.insert(axis, node);
    QWEN2_CHECK(add_flags(one, value.flags));
    value.name = value.flags[axis];
    return value;
  }

  Result<Axis> read_axis(const toml::node& node, const std::string& name) const {
    Axis axis{name, {}};
    const toml::array* values = node.as_array();
    if (values == nullptr || values->empty())
      return at(node.source(), "the axis '{}' must be a list of values", name);
    for (const toml::node& item : *values) {
      QWEN2_TRY(Axis::Value value, axis_value(item, name));
      for (const Axis::Value& other : axis.values) {
        if (other.name == value.name)
          return at(item.source(), "the axis '{}' has {} twice", name, json::serialize(value.name));
      }
      axis.values.push_back(std::move(value));
    }
    return axis;
  }

  Status read_axes(const toml::table& table, Grid& grid, bool replaces) const {
    QWEN2_TRY(const toml::table* axes, table_of(table, "axes"));
    if (axes == nullptr) return {};
    for (const std::string& name : written_order(*axes)) {
      const toml::node& node = *axes->get(name);
      QWEN2_TRY(Axis axis, read_axis(node, name));
      if (!replaces) {
        grid.axes.push_back(std::move(axis));
        continue;
      }
      const auto place = std::ranges::find(grid.axes, name, &Axis::name);
      if (place == grid.axes.end())
        return at(node.source(), "the grid '{}' has no axis '{}' to replace", grid.name, name);
      *place = std::move(axis);
    }
    return {};
  }

  Result<Grid> read_grid(const toml::table& table, const Grid& common) const {
    Grid grid = common;
    QWEN2_CHECK(check_keys(table, kGridKeys, "[[grid]]"));
    QWEN2_CHECK(text(table, "name", grid.name, true));
    std::string measure;
    QWEN2_CHECK(text(table, "measure", measure, true));
    const auto parsed = parse_measure(measure);
    if (!parsed) return at(table.get("measure")->source(), "{}", parsed.error().message);
    grid.measure = *parsed;
    QWEN2_CHECK(boolean(table, "may-be-refused", grid.may_be_refused));
    QWEN2_CHECK(grid_values(table, grid));
    QWEN2_CHECK(read_axes(table, grid, false));
    return grid;
  }

  // A profile's [profile.NAME.grid.GRID]; false where it leaves the grid out.
  Result<bool> apply_profile(const toml::table* profile_grids, Grid& grid) const {
    if (profile_grids == nullptr) return true;
    QWEN2_TRY(const toml::table* own, table_of(*profile_grids, grid.name));
    if (own == nullptr) return true;
    QWEN2_CHECK(check_keys(*own, kProfileGridKeys, fmt::format("[profile.{}.grid.{}]", profile_, grid.name)));
    bool skip = false;
    QWEN2_CHECK(boolean(*own, "skip", skip));
    QWEN2_CHECK(grid_values(*own, grid));
    QWEN2_CHECK(read_axes(*own, grid, true));
    return !skip;
  }

  Status read_grids(const toml::table& root, const toml::table* profile, const Grid& common,
                    Experiment& e) const {
    QWEN2_TRY(const auto tables, tables_of(root, "grid"));
    if (tables.empty()) return at(root.source(), "there is no [[grid]]");
    const toml::table* profile_grids = nullptr;
    if (profile != nullptr) {
      QWEN2_TRY(profile_grids, table_of(*profile, "grid"));
    }
    std::set<std::string> names;
    for (const toml::table* table : tables) {
      QWEN2_TRY(Grid grid, read_grid(*table, common));
      if (!names.insert(grid.name).second)
        return at(table->source(), "there are two grids of the name '{}'", grid.name);
      QWEN2_TRY(const bool used, apply_profile(profile_grids, grid));
      if (used) e.grids.push_back(std::move(grid));
    }
    if (profile_grids == nullptr) return {};
    for (const auto& [key, node] : *profile_grids) {
      if (!names.contains(std::string(key.str())))
        return at(key.source(), "there is no grid '{}'", key.str());
    }
    return {};
  }

  Status read_setup(const toml::table& root, Experiment& e) const {
    QWEN2_TRY(const auto tables, tables_of(root, "setup"));
    for (const toml::table* table : tables) {
      Setup setup;
      QWEN2_CHECK(check_keys(*table, kSetupKeys, "[[setup]]"));
      QWEN2_CHECK(text(*table, "creates", setup.creates));
      QWEN2_CHECK(number(*table, "timeout", setup.timeout_seconds, 1, 86400));
      const toml::array* words = table->get_as<toml::array>("command");
      if (words == nullptr || words->empty() || !words->is_homogeneous<std::string>()) {
        return at(table->source(),
                  "'command' must be a list of texts, such as [\"quantize\", \"--model\", ...]");
      }
      for (const toml::node& word : *words) setup.arguments.push_back(word.as_string()->get());
      e.setup.push_back(std::move(setup));
    }
    return {};
  }

  Status read_plots(const toml::table& root, Experiment& e) const {
    QWEN2_TRY(const auto tables, tables_of(root, "plot"));
    for (const toml::table* table : tables) {
      QWEN2_CHECK(check_keys(*table, kPlotKeys, "[[plot]]"));
      json::object plot;
      for (const auto* const key : {"title", "x", "y", "series"}) {
        std::string value;
        QWEN2_CHECK(text(*table, key, value, key != std::string_view("series")));
        if (!value.empty()) plot[key] = value;
      }
      for (const auto* const key : {"log_x", "log_y"}) {
        bool value = false;
        QWEN2_CHECK(boolean(*table, key, value));
        if (value) plot[key] = true;
      }
      e.plots.push_back(std::move(plot));
    }
    return {};
  }

  // The profile that was asked for; all of them are checked to be tables.
  Result<const toml::table*> find_profile(const toml::table& root) const {
    QWEN2_TRY(const toml::table* profiles, table_of(root, "profile"));
    if (profile_.empty()) return nullptr;
    const toml::table* found = nullptr;
    if (profiles != nullptr) {
      QWEN2_TRY(found, table_of(*profiles, profile_));
    }
    if (found == nullptr)
      return fail(ErrorKind::kInvalidArgument, "'{}' has no [profile.{}]", where_, profile_);
    return found;
  }

  std::string_view where_;
  const std::string& profile_;
};

json::value parse_flag_value(std::string_view text) {
  if (text == "true" || text == "false") return text == "true";
  const char* begin = text.data();
  const char* end = begin + text.size();
  int64_t whole = 0;
  if (const auto r = std::from_chars(begin, end, whole); r.ec == std::errc() && r.ptr == end) return whole;
  double number = 0;
  if (const auto r = std::from_chars(begin, end, number); r.ec == std::errc() && r.ptr == end) return number;
  return json::value(text);
}

void override_in(Grid& grid, const std::string& key, const json::value& value) {
  for (Axis& axis : grid.axes) {
    if (axis.name != key) continue;
    axis.values = {{value, Flags{{key, value}}}};
    return;
  }
  grid.flags[key] = value;
}

}  // namespace

std::string_view name_of(Measure measure) {
  switch (measure) {
    case Measure::kEngine:
      return "engine";
    case Measure::kServe:
      return "serve";
    case Measure::kEvaluate:
      return "evaluate";
    case Measure::kPlan:
      return "plan";
  }
  return "";
}

Result<Measure> parse_measure(std::string_view text) {
  for (const Measure m : {Measure::kEngine, Measure::kServe, Measure::kEvaluate, Measure::kPlan}) {
    if (name_of(m) == text) return m;
  }
  return fail(ErrorKind::kFormat, "unknown measure '{}'; expected engine, serve, evaluate or plan", text);
}

Result<Experiment> parse_experiment(std::string text, std::string_view where, const std::string& profile) {
  toml::table root;
  try {
    root = toml::parse(text, where);
  } catch (const toml::parse_error& error) {
    return fail(ErrorKind::kFormat, "'{}' line {}: {}", where, error.source().begin.line,
                error.description());
  }
  QWEN2_TRY(Experiment experiment, Reader(where, profile).read(root));
  experiment.text = std::move(text);
  return experiment;
}

Result<Experiment> read_experiment(const std::filesystem::path& path, const std::string& profile) {
  QWEN2_TRY(std::string text, read_text_file(path, size_t{1} << 20));
  return parse_experiment(std::move(text), path.string(), profile);
}

Status override_flag(Experiment& experiment, std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string_view::npos)
    return fail(ErrorKind::kInvalidArgument, "--set '{}': expected KEY=VALUE or GRID.KEY=VALUE", text);
  const std::string key(text.substr(0, equals));
  const json::value value = parse_flag_value(text.substr(equals + 1));
  const size_t dot = key.find('.');
  const std::string_view why = refusal_of(dot == std::string::npos ? key : key.substr(dot + 1));
  if (!why.empty()) return fail(ErrorKind::kInvalidArgument, "--set '{}': {}", text, why);
  if (dot == std::string::npos) {
    for (Grid& grid : experiment.grids) override_in(grid, key, value);
    return {};
  }
  const auto grid = std::ranges::find(experiment.grids, key.substr(0, dot), &Grid::name);
  if (grid == experiment.grids.end())
    return fail(ErrorKind::kInvalidArgument, "--set '{}': there is no grid '{}'", text, key.substr(0, dot));
  override_in(*grid, key.substr(dot + 1), value);
  return {};
}

}  // namespace qwen2
