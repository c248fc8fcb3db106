// Runs an experiment: one child process of this program for each point and repeat.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "experiment/manifest.h"
#include "experiment/points.h"

namespace qwen2 {

struct RunOptions {
  std::string program;  // the executable
  std::filesystem::path output;
  std::vector<std::string> only;  // names of grids; empty: all
  bool resume = false;
  std::vector<std::string> overrides;  // --set's texts, for the manifest
  std::string profile;                 // likewise
  std::function<bool()> stop;          // asked often; true ends the run early
};

// One child process that is to be run.
struct Job {
  size_t point = 0;    // in points_of()
  int64_t repeat = 0;  // from 0
};

// Every repeat of the points that `wanted` holds. With `shuffle`, in randomised blocks: the first repeat of
// all points in random order, then the second of all in another. So neither a point's repeats nor the points
// of a block share a moment of the machine, and what an interruption leaves has the same repeats everywhere.
std::vector<Job> schedule(const std::vector<Point>& points, const std::vector<bool>& wanted, uint64_t seed,
                          bool shuffle);

struct RunProgress {
  size_t done = 0, total = 0, failed = 0;
  std::optional<double> seconds_left;  // nothing while a grid has neither an estimate nor a result
  std::string label;                   // of what runs now, or ran last where `finished`
  bool finished = false;               // the child has ended
  std::string error;                   // why it failed or was refused
};

struct RunReport {
  Manifest manifest;
  size_t failed = 0;  // repeats that failed, or were refused where the grid does not allow it
};

// Seconds that `jobs` will take by the grids' estimates, and cool-downs; nothing where a grid has none.
std::optional<double> estimate_seconds(const Experiment& experiment, const std::vector<Point>& points,
                                       const std::vector<Job>& jobs);

// Which points the options ask for; a name that is no grid is an error.
Result<std::vector<bool>> wanted_points(const std::vector<Point>& points,
                                        const std::vector<std::string>& only);

// Writes experiment.toml, manifest.json (after every child) and points/ into the output directory. A child
// that fails is recorded, and the run goes on. When `stop` says so, the child that runs is interrupted,
// its repeat is left out, and the manifest says `interrupted`. With `resume` the directory's manifest is
// continued: what is ok or refused there is kept; a directory of another experiment, machine or program is an
// error.
Result<RunReport> run_experiment(const Experiment& experiment, const RunOptions& options,
                                 const std::function<void(const RunProgress&)>& progress);

}  // namespace qwen2
