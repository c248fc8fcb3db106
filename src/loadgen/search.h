// Several load tests in a row: up a ladder of loads until the server is saturated, or in search of the
// highest load that meets an objective.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "loadgen/options.h"

namespace qwen2 {

enum class LoadAxis { kConcurrency, kRate };

std::string_view name_of(LoadAxis axis);
std::optional<LoadAxis> load_axis_of(std::string_view name);

struct Ladder {
  LoadAxis axis = LoadAxis::kConcurrency;
  std::vector<double> loads;

  // "concurrency=1,2,4" or "rate=0.5,1,2", ascending. The error names --ladder.
  static Result<Ladder> parse(std::string_view text);
};

// The options of one step. Each has prompts of its own, and at least two requests a client; of a search over
// rates, arrivals over kSearchSeconds.
LoadTestOptions at_load(const LoadTestOptions& options, LoadAxis axis, double load, size_t step,
                        bool searching = false);

struct LoadStep {
  double load = 0;
  boost::json::object result;  // as to_json() of result_file.h makes it
};

// Runs the test at a load; the second number counts the steps from 0.
using StepRunner = std::function<Result<LoadStep>(double load, size_t step)>;

struct SearchResult {
  LoadAxis axis = LoadAxis::kConcurrency;
  std::vector<LoadStep> steps;  // in the order in which they ran
  boost::json::object verdict;
  bool interrupted = false;
  std::optional<Error> failed;  // why a step after the first could not run: the others are kept
};

// A step saturates the server, and is the last, when
//   more than kMaxFailed of its requests failed, or
//   open loop: "kept_up" is below kMinKeptUp, or
//   closed loop: against the best earlier step, output throughput grew by less than kMinGain of what the load
//   did.
constexpr double kMaxFailed = 0.1;
constexpr double kMinKeptUp = 0.9;
constexpr double kMinGain = 0.1;

// Why the last of `steps` saturates the server; nothing where it does not.
std::optional<std::string> saturation(LoadAxis axis, const std::vector<LoadStep>& steps);

Result<SearchResult> run_ladder(const Ladder& ladder, const StepRunner& run);

// Doubles the load from `first` (or halves it) until one load meets the objective and one does not, then
// halves what lies between them until that is kSearchStep of the lower one, or one client. A rate must also
// be one that the server keeps up with ("kept_up" of kMinKeptUp), shown by arrivals over kSearchSeconds.
constexpr double kSearchStep = 0.05;
constexpr double kSearchSeconds = 10;
constexpr double kMostRequests = 1e6;  // of one step for that reason
constexpr double kMaxConcurrency = 4096;
constexpr double kMaxRateFactor = 4096;  // of the first rate, up and down

Result<SearchResult> run_search(LoadAxis axis, double first, const Objective& objective,
                                const StepRunner& run);

// The file of a ladder or a search.
boost::json::object to_json(const SearchResult& result);

}  // namespace qwen2
