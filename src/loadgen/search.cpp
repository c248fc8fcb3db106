#include "loadgen/search.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace qwen2 {
namespace {

namespace json = boost::json;

// A number of a step's result; 0 where there is none.
double number(const LoadStep& step, std::string_view key) {
  json::error_code code;
  const json::value* value = step.result.if_contains(key);
  const double number = value == nullptr ? 0 : value->to_number<double>(code);
  return code ? 0 : number;
}

bool is_interrupted(const LoadStep& step) {
  const json::value* value = step.result.if_contains("interrupted");
  return value != nullptr && value->is_bool() && value->get_bool();
}

double failed_share(const LoadStep& step) {
  const double failed = number(step, "failed");
  const double all = failed + number(step, "completed");
  return all > 0 ? failed / all : 1;
}

// A rate that the server does not keep up with is not met: the queue would grow until the objective is
// missed.
bool meets(LoadAxis axis, const LoadStep& step, const Objective& objective) {
  return number(step, "slo_attained") * 100 >= objective.percent &&
         (axis == LoadAxis::kConcurrency || number(step, "kept_up") >= kMinKeptUp);
}

const LoadStep& best_of(const std::vector<LoadStep>& steps, size_t count) {
  return *std::max_element(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(count),
                           [](const LoadStep& a, const LoadStep& b) {
                             return number(a, "output_throughput") < number(b, "output_throughput");
                           });
}

double between(LoadAxis axis, double low, double high) {
  return axis == LoadAxis::kRate ? std::sqrt(low * high) : std::floor((low + high) / 2);
}

bool close_enough(LoadAxis axis, double low, double high) {
  return high - low <= (axis == LoadAxis::kRate ? kSearchStep * low : std::max(1.0, kSearchStep * low));
}

// Runs one step more. False when it was the last: interrupted, or failed after others that are worth keeping.
Result<bool> take_step(double load, const StepRunner& run, SearchResult& result) {
  auto step = run(load, result.steps.size());
  if (!step && result.steps.empty()) return std::unexpected(step.error());
  if (!step) {
    result.failed = step.error();
    return false;
  }
  result.interrupted = is_interrupted(*step);
  result.steps.push_back(std::move(*step));
  return !result.interrupted;
}

// Runs steps and keeps what the search has learnt: the highest load that met, the lowest that did not.
class Bracket {
 public:
  Bracket(SearchResult& result, const Objective& objective, const StepRunner& run)
      : result_(result), objective_(objective), run_(run) {}

  // False when nothing more is to be run.
  Result<bool> try_load(double load) {
    QWEN2_TRY(const bool goes_on, take_step(load, run_, result_));
    if (!goes_on) return false;
    const bool met = meets(result_.axis, result_.steps.back(), objective_);
    if (met) low = std::max(low, load);
    if (!met) high = std::min(high, load);
    return true;
  }

  [[nodiscard]] bool has_low() const { return low > 0; }
  [[nodiscard]] bool has_high() const { return std::isfinite(high); }

  double low = 0;
  double high = std::numeric_limits<double>::infinity();

 private:
  SearchResult& result_;
  const Objective& objective_;
  const StepRunner& run_;
};

// One load that meets and one that does not, where there are such within bounds.
Status find_bracket(LoadAxis axis, double first, Bracket& bracket) {
  const double top = axis == LoadAxis::kRate ? first * kMaxRateFactor : kMaxConcurrency;
  const double bottom = axis == LoadAxis::kRate ? first / kMaxRateFactor : 1;
  for (double load = first; load <= top && load >= bottom;) {
    QWEN2_TRY(const bool goes_on, bracket.try_load(load));
    if (!goes_on || (bracket.has_low() && bracket.has_high())) break;
    const double next = bracket.has_low() ? load * 2 : load / 2;
    load = axis == LoadAxis::kRate ? next : std::floor(next);
  }
  return {};
}

json::value load_or_null(bool there, double load) {
  return there ? json::value(load) : json::value(nullptr);
}

}  // namespace

std::string_view name_of(LoadAxis axis) {
  return axis == LoadAxis::kRate ? "rate" : "concurrency";
}

std::optional<LoadAxis> load_axis_of(std::string_view name) {
  if (name == "rate") return LoadAxis::kRate;
  if (name == "concurrency") return LoadAxis::kConcurrency;
  return std::nullopt;
}

Result<Ladder> Ladder::parse(std::string_view text) {
  const auto wrong = [&] {
    return fail(ErrorKind::kInvalidArgument,
                "--ladder '{}' must be concurrency=N,N,... or rate=R,R,... with ascending numbers above 0",
                text);
  };
  const size_t equals = text.find('=');
  const auto axis = load_axis_of(text.substr(0, equals));
  if (!axis || equals == std::string_view::npos) return wrong();
  Ladder ladder{*axis, {}};
  std::string_view rest = text.substr(equals + 1);
  while (true) {
    const std::string_view part = rest.substr(0, rest.find(','));
    double load = 0;
    const auto [end, code] = std::from_chars(part.data(), part.data() + part.size(), load);
    const double previous = ladder.loads.empty() ? 0 : ladder.loads.back();
    if (code != std::errc{} || end != part.data() + part.size() || !std::isfinite(load) || load <= previous)
      return wrong();
    if (axis == LoadAxis::kConcurrency && (load != std::floor(load) || load > kMaxConcurrency))
      return wrong();
    ladder.loads.push_back(load);
    if (part.size() == rest.size()) return ladder;
    rest.remove_prefix(part.size() + 1);
  }
}

LoadTestOptions at_load(const LoadTestOptions& options, LoadAxis axis, double load, size_t step,
                        bool searching) {
  LoadTestOptions out = options;
  out.part = step + 1;
  if (axis == LoadAxis::kRate) {
    out.rate = load;
    if (searching && (out.requests || out.prompts.empty())) {
      const auto enough = static_cast<int64_t>(std::ceil(std::min(load * kSearchSeconds, kMostRequests)));
      out.requests = std::max(out.requests.value_or(kDefaultRequests), enough);
    }
    return out;
  }
  out.rate.reset();
  out.concurrency = static_cast<int64_t>(load);
  // A file's prompts end where they end.
  if (out.requests || out.prompts.empty())
    out.requests = std::max(out.requests.value_or(kDefaultRequests), 2 * out.concurrency);
  return out;
}

std::optional<std::string> saturation(LoadAxis axis, const std::vector<LoadStep>& steps) {
  const LoadStep& last = steps.back();
  if (failed_share(last) > kMaxFailed) {
    return fmt::format("{:.0f} % of the requests failed, more than {:.0f} %", failed_share(last) * 100,
                       kMaxFailed * 100);
  }
  if (axis == LoadAxis::kRate) {
    const double kept_up = number(last, "kept_up");
    if (kept_up >= kMinKeptUp) return std::nullopt;
    return fmt::format("requests were answered at {:.2f} of the rate at which they came, less than {}",
                       kept_up, kMinKeptUp);
  }
  if (steps.size() < 2) return std::nullopt;
  const LoadStep& best = best_of(steps, steps.size() - 1);
  const double before = number(best, "output_throughput");
  if (before <= 0 || last.load <= best.load) return std::nullopt;
  const double gain = number(last, "output_throughput") / before - 1;
  const double load_gain = last.load / best.load - 1;
  if (gain >= kMinGain * load_gain) return std::nullopt;
  return fmt::format("output throughput grew by {:.1f} % while the load grew by {:.0f} %: less than {} of it",
                     gain * 100, load_gain * 100, kMinGain);
}

Result<SearchResult> run_ladder(const Ladder& ladder, const StepRunner& run) {
  SearchResult result;
  result.axis = ladder.axis;
  std::optional<std::string> reason;
  for (const double load : ladder.loads) {
    QWEN2_TRY(const bool goes_on, take_step(load, run, result));
    if (!goes_on) break;
    reason = saturation(ladder.axis, result.steps);
    if (reason) break;
  }
  const LoadStep& best = best_of(result.steps, result.steps.size());
  result.verdict = {{"kind", "ladder"},
                    {"axis", name_of(ladder.axis)},
                    {"saturated", reason.has_value()},
                    {"saturated_at", reason ? json::value(result.steps.back().load) : json::value(nullptr)},
                    {"reason", reason ? json::value(*reason) : json::value(nullptr)},
                    {"best_load", best.load},
                    {"best_output_throughput", number(best, "output_throughput")}};
  return result;
}

Result<SearchResult> run_search(LoadAxis axis, double first, const Objective& objective,
                                const StepRunner& run) {
  SearchResult result;
  result.axis = axis;
  Bracket bracket(result, objective, run);
  QWEN2_CHECK(find_bracket(axis, first, bracket));
  while (!result.interrupted && !result.failed && bracket.has_low() && bracket.has_high() &&
         bracket.low < bracket.high && !close_enough(axis, bracket.low, bracket.high)) {
    QWEN2_TRY([[maybe_unused]] const bool goes_on,
              bracket.try_load(between(axis, bracket.low, bracket.high)));
  }
  json::value goodput;
  for (const LoadStep& step : result.steps) {
    if (step.load == bracket.low) goodput = number(step, "request_goodput");
  }
  result.verdict = {{"kind", "search"},
                    {"axis", name_of(axis)},
                    {"slo", objective.text()},
                    {"highest_load_that_meets", load_or_null(bracket.has_low(), bracket.low)},
                    {"lowest_load_that_does_not", load_or_null(bracket.has_high(), bracket.high)},
                    {"request_goodput", goodput}};
  return result;
}

json::object to_json(const SearchResult& result) {
  json::array steps;
  for (const LoadStep& step : result.steps) {
    json::object object{{"load", step.load}};
    for (const auto& [key, value] : step.result) object[key] = value;
    steps.emplace_back(std::move(object));
  }
  return {{"schema", "qwen2-bench-serve-ladder/1"},
          {"axis", name_of(result.axis)},
          {"interrupted", result.interrupted},
          {"failed", result.failed ? json::value(result.failed->message) : json::value(nullptr)},
          {"verdict", result.verdict},
          {"steps", std::move(steps)}};
}

}  // namespace qwen2
