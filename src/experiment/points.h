// The points of an experiment's grids, and the command that measures each.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "experiment/experiment_file.h"

namespace qwen2 {

struct Point {
  std::string id;     // "p001"; of its place among all points of the file
  std::string label;  // "engine: int4, prompt 2048"; without the grid's name where there is one grid
  const Grid* grid = nullptr;
  boost::json::object axes;  // the value's name by axis
  Flags flags;               // the grid's and the axes'; "{output}" stands for the experiment's directory
};

// In the order of the file, the last axis first to change. They refer to `experiment`.
std::vector<Point> points_of(const Experiment& experiment);

// A child process of this program.
struct ChildCommand {
  std::vector<std::string> environment;  // "OMP_NUM_THREADS=1"
  std::vector<std::string> arguments;    // without the program
  // As one line for a shell, "qwen2" in the program's place.
  [[nodiscard]] std::string text() const;
};

// Writes to `result`. A load test's --seed is the experiment's plus `repeat` (from 0), so that repeats have
// other prompts and runs of the same experiment the same.
ChildCommand command_of(const Point& point, uint64_t seed, int64_t repeat,
                        const std::filesystem::path& directory, const std::filesystem::path& result);

ChildCommand command_of(const Setup& setup, const std::filesystem::path& directory);

// `text` with the directory in the place of every "{output}".
std::string with_directory(std::string text, const std::filesystem::path& directory);

}  // namespace qwen2
