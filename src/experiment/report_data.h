// An experiment directory as the report reads it: manifest.json, summary.json and the measurements of each
// point.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace qwen2::report {

constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();

// Larger counts in files are errors: sums of counts must not overflow.
constexpr int64_t kMostCounted = 1'000'000'000'000'000;

enum class Better { kHigher, kLower, kNone };

// One metric over the repeats of a point. The interval has no value (NaN) with one repeat.
struct Metric {
  int64_t n = 0;
  double mean = kNoValue;
  double low = kNoValue;  // of the 95 % interval of the mean
  double high = kNoValue;
  double median = kNoValue;
  double min = kNoValue;
  double max = kNoValue;
  std::string label;  // for people
  std::string unit;
  Better better = Better::kNone;

  [[nodiscard]] bool has_interval() const { return low <= high; }
};

struct AxisValue {
  std::string text;
  double number = kNoValue;  // where it is one
  bool operator==(const AxisValue& other) const { return text == other.text; }
};

struct Request {
  int64_t index = 0;
  double sent = kNoValue;  // this and the following: seconds since the start of the measurement
  double first_content = kNoValue;
  double last_content = kNoValue;
  double end = kNoValue;
  double queue_seconds = kNoValue;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  std::string failure;  // its kind; empty: none
};

struct TimelineSample {
  double t = kNoValue;
  double vram_bytes = kNoValue, host_bytes = kNoValue;
  double running = kNoValue, waiting = kNoValue;
};

struct PlannedMemory {
  std::vector<std::pair<std::string, double>> parts;  // bytes
  double total = 0;
  double budget = kNoValue;
};

// What one repeat's result file holds beside its metrics.
struct Measurement {
  std::vector<double> ttft;  // seconds, one for each request that has it
  std::vector<Request> requests;
  std::vector<TimelineSample> timeline;
  std::optional<PlannedMemory> plan;
  double memory_bytes = kNoValue;  // measured: on the device where there is one, else of the process
  std::map<std::string, int64_t> failures;
  bool interrupted = false;
  bool fits = true;
  std::string cure;
};

enum class RepeatStatus { kOk, kFailed, kRefused, kMissing };

struct Repeat {
  std::string file;  // relative to the directory; may be empty unless kOk
  RepeatStatus status = RepeatStatus::kOk;
  std::string error;
  double seconds = kNoValue;
  Measurement measurement;  // of kOk
};

struct Point {
  std::string id, label, grid, measure, command;
  std::vector<std::pair<std::string, AxisValue>> axes;
  std::vector<Repeat> repeats;
  std::map<std::string, Metric> metrics;

  [[nodiscard]] const AxisValue* axis(std::string_view name) const;
  [[nodiscard]] const Metric* metric(const std::string& name) const;
  [[nodiscard]] int64_t count(RepeatStatus status) const;
};

// A plot that the experiment's file asks for.
struct PlotWish {
  std::string title, x, y, series;
  std::optional<bool> log_x, log_y;
};

struct Experiment {
  std::string name, title, question, started, finished;
  bool interrupted = false;
  std::vector<std::pair<std::string, std::string>> environment;
  std::vector<Point> points;
  std::vector<PlotWish> plots;
};

// A result file that is not there makes its repeat kMissing; one that breaks its format is an error, which
// names the file and the field.
Result<Experiment> load_experiment(const std::filesystem::path& folder);

// The result file of one repeat; `measure` as in the manifest.
Result<Measurement> load_measurement(const std::filesystem::path& file, const std::string& measure);

}  // namespace qwen2::report
