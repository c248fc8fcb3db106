// An experiment's directory: manifest.json and what lies beside it. docs/experiments.md lists the fields.
#pragma once

#include <boost/json.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "experiment/experiment_file.h"

namespace qwen2 {

enum class Outcome {
  kOk,
  kFailed,
  kRefused,  // the memory plan did not fit
};
std::string_view name_of(Outcome outcome);

struct Repeat {
  int64_t number = 1;  // from 1
  std::string file;    // the result, relative to the directory; there only where the outcome is kOk
  Outcome outcome = Outcome::kOk;
  std::string error;
  double seconds = 0;
};

struct ManifestPoint {
  std::string id, label, grid;
  Measure measure = Measure::kEngine;
  boost::json::object axes;
  Flags flags;
  std::string command;  // of the first repeat
  std::vector<Repeat> repeats;
};

struct Manifest {
  std::string name, title, question;
  std::string started, finished;  // ISO 8601 in UTC; finished is empty until it is
  bool interrupted = false;
  uint64_t seed = 0;
  std::string profile;                 // of the file; empty: none
  std::vector<std::string> overrides;  // "KEY=VALUE"
  boost::json::object environment;
  std::vector<ManifestPoint> points;
  boost::json::array plots;
};

Status write_manifest(const std::filesystem::path& directory, const Manifest& manifest);
Result<Manifest> read_manifest(const std::filesystem::path& directory);

// The time now, "2026-11-24T12:00:00Z".
std::string utc_now();

}  // namespace qwen2
