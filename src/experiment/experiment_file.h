// What an experiments/*.toml file says; docs/experiments.md describes the format.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace qwen2 {

// Names without "--" and their values: strings, numbers and booleans, in the file's order. "threads" is no
// flag but the child's OMP_NUM_THREADS.
using Flags = boost::json::object;

// Several values of a flag, or of several flags together.
struct Axis {
  struct Value {
    boost::json::value name;  // as labels, plots and comparisons know it
    Flags flags;
  };
  std::string name;
  std::vector<Value> values;
};

enum class Measure { kEngine, kServe, kEvaluate, kPlan };
std::string_view name_of(Measure measure);
Result<Measure> parse_measure(std::string_view text);

// Every combination of the axes' values is a point.
struct Grid {
  std::string name;
  Measure measure = Measure::kEngine;
  Flags flags;  // the file's common ones included
  std::vector<Axis> axes;
  int64_t repeats = 1;
  double estimate_seconds = 0;  // of one child process; zero: not known
  double timeout_seconds = 600;
  bool may_be_refused = false;  // a plan that does not fit is a result here
};

// A command of this program that makes what the grids need.
struct Setup {
  std::vector<std::string> arguments;
  std::string creates;  // the command is left out where this path exists
  double timeout_seconds = 3600;
};

struct Experiment {
  std::string text;  // the file's own
  std::string name, title, question;
  uint64_t seed = 0;
  double cooldown_seconds = 0;  // between two child processes
  bool shuffle = true;
  std::vector<Setup> setup;
  std::vector<Grid> grids;
  boost::json::array plots;  // as the manifest has them
};

// `profile` names a [profile.NAME] of the file whose values replace the others'; empty: none. `where` is the
// file's name for errors, which name key and line.
Result<Experiment> parse_experiment(std::string text, std::string_view where, const std::string& profile);
Result<Experiment> read_experiment(const std::filesystem::path& path, const std::string& profile);

// `text` is "KEY=VALUE" for every grid or "GRID.KEY=VALUE" for one: the flag has this one value. A flag that
// is an axis keeps its place as an axis of one value.
Status override_flag(Experiment& experiment, std::string_view text);

}  // namespace qwen2
