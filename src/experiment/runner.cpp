#include "experiment/runner.h"

#include <algorithm>
#include <csignal>
#include <map>
#include <random>
#include <thread>

#include "base/json_fields.h"
#include "base/memory.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "experiment/differences.h"
#include "experiment/environment.h"
#include "model/memory_plan.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr double kPatience = 15;  // seconds for an interrupted child to write what it has

// What a child process came to.
struct Ended {
  enum class How { kExit, kTimeout, kStopped } how = How::kExit;
  int status = 0;
  double seconds = 0;
};

// The line of a child's output that says what went wrong: that of a memory plan, the first error of this
// program, the first line after wrong usage, or the last of all.
std::string error_line(const std::string& log, bool refused, int status) {
  constexpr int kUsage = 2;
  std::string found;
  for (size_t begin = 0; begin < log.size();) {
    const size_t end = std::min(log.find('\n', begin), log.size());
    const std::string line = log.substr(begin, end - begin);
    begin = end + 1;
    const size_t own = line.starts_with("qwen2: ") ? 7 : 0;
    const size_t plan = line.find(kPlanFollows);
    if (refused && plan != std::string::npos) return line.substr(own, plan - own - 1);
    if (!refused && own > 0) return line.substr(own);
    if (!line.empty() && (status != kUsage || found.empty())) found = line;
  }
  return found;
}

// How long jobs take, from those that have ended and from the file's estimates.
class Clock {
 public:
  void add(const Grid& grid, double seconds) {
    auto& [count, sum] = seen_[&grid];
    ++count;
    sum += seconds;
  }

  std::optional<double> seconds_for(const std::vector<Point>& points, std::span<const Job> jobs,
                                    double cooldown) const {
    double total = cooldown * static_cast<double>(jobs.size());
    for (const Job& job : jobs) {
      const Grid& grid = *points[job.point].grid;
      const auto found = seen_.find(&grid);
      if (found == seen_.end() && grid.estimate_seconds == 0) return std::nullopt;
      total += found == seen_.end() ? grid.estimate_seconds : found->second.second / found->second.first;
    }
    return total;
  }

 private:
  std::map<const Grid*, std::pair<double, double>> seen_;  // count and sum
};

bool counts_as_failed(const Grid& grid, const Repeat& repeat) {
  return repeat.outcome == Outcome::kFailed || (repeat.outcome == Outcome::kRefused && !grid.may_be_refused);
}

void shuffle_jobs(std::vector<Job>& jobs, std::mt19937_64& random) {
  for (size_t i = jobs.size(); i > 1; --i) std::swap(jobs[i - 1], jobs[random() % i]);
}

// The model that all points have, or none.
std::string common_model(const std::vector<Point>& points) {
  std::string model;
  for (const Point& point : points) {
    const json::value* value = point.flags.if_contains("model");
    if (value == nullptr || !value->is_string()) return {};
    if (!model.empty() && value->get_string() != model) return {};
    model = value->get_string();
  }
  return model.find('{') == std::string::npos ? model : std::string();
}

class Run {
 public:
  Run(const Experiment& experiment, const RunOptions& options,
      const std::function<void(const RunProgress&)>& progress)
      : experiment_(experiment), options_(options), progress_(progress), points_(points_of(experiment)) {}

  Result<RunReport> run() {
    QWEN2_TRY(wanted_, wanted_points(points_, options_.only));
    QWEN2_CHECK(prepare_directory());
    for (const Job& job : schedule(points_, wanted_, experiment_.seed, experiment_.shuffle)) {
      if (!has(job)) jobs_.push_back(job);
    }
    QWEN2_CHECK(save());
    QWEN2_CHECK(run_setup());
    for (size_t i = 0; i < jobs_.size() && !stopped(); ++i) {
      if (i > 0) rest(experiment_.cooldown_seconds);
      if (!stopped()) QWEN2_CHECK(run_job(i));
    }
    report_.manifest.interrupted = stopped();
    report_.manifest.finished = utc_now();
    QWEN2_CHECK(save());
    report_.manifest.points = listed_points();
    return std::move(report_);
  }

 private:
  [[nodiscard]] bool stopped() const { return options_.stop && options_.stop(); }

  void rest(double seconds) const {
    const double end = now_seconds() + seconds;
    while (now_seconds() < end && !stopped()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

  [[nodiscard]] bool has(const Job& job) const {
    const auto& repeats = report_.manifest.points[job.point].repeats;
    return std::ranges::find(repeats, job.repeat + 1, &Repeat::number) != repeats.end();
  }

  Manifest new_manifest() {
    Manifest m;
    m.name = experiment_.name;
    m.title = experiment_.title;
    m.question = experiment_.question;
    m.started = utc_now();
    m.seed = experiment_.seed;
    m.profile = options_.profile;
    m.overrides = options_.overrides;
    m.environment = describe_environment(common_model(points_), experiment_.seed);
    m.plots = experiment_.plots;
    for (const Point& p : points_) {
      m.points.push_back(
          {p.id,
           p.label,
           p.grid->name,
           p.grid->measure,
           p.axes,
           p.flags,
           command_of(p, experiment_.seed, 0, options_.output, result_path(options_.output, p, 0)).text(),
           {}});
    }
    return m;
  }

  [[nodiscard]] static fs::path result_path(const fs::path& directory, const Point& point, int64_t repeat) {
    return directory / "points" / point.id / fmt::format("r{}.json", repeat + 1);
  }

  Status prepare_directory() {
    std::error_code code;
    fs::create_directories(options_.output / "points", code);
    if (code) {
      return fail(ErrorKind::kIo, "--output: cannot create '{}': {}", options_.output.string(),
                  code.message());
    }
    report_.manifest = new_manifest();
    if (fs::exists(options_.output / "manifest.json")) {
      if (!options_.resume) {
        return fail(ErrorKind::kInvalidArgument,
                    "--output '{}' holds an experiment already: continue it with --resume, or name another",
                    options_.output.string());
      }
      QWEN2_TRY(const Manifest earlier, read_manifest(options_.output));
      QWEN2_CHECK(take_over(earlier));
    }
    return write_file(options_.output / "experiment.toml", experiment_.text);
  }

  // Keeps what an earlier run finished.
  Status take_over(const Manifest& earlier) {
    const auto refuse = [](const std::string& why) {
      return fail(ErrorKind::kInvalidArgument, "--resume: {}", why);
    };
    Manifest& now = report_.manifest;
    if (earlier.name != now.name || earlier.seed != now.seed)
      return refuse(fmt::format("the directory holds '{}' with seed {}", earlier.name, earlier.seed));
    std::vector<Named> differences = environment_differences(earlier.environment, now.environment);
    for (const std::string_view key : {"commit", "dirty"}) {
      const json::value* value = earlier.environment.if_contains(key);
      if (value != nullptr && *value == now.environment.at(key)) continue;
      differences.push_back({std::string(key), value == nullptr ? "nothing" : json::serialize(*value),
                             json::serialize(now.environment.at(key))});
    }
    if (!differences.empty()) return refuse("it was begun elsewhere: " + describe(differences));
    for (const ManifestPoint& old : earlier.points) {
      const auto same = std::ranges::find(now.points, old.id, &ManifestPoint::id);
      if (same == now.points.end() || same->measure != old.measure || same->flags != old.flags)
        return refuse(fmt::format("its point {} ({}) is not the file's", old.id, old.label));
      for (const Repeat& repeat : old.repeats) {
        if (repeat.outcome == Outcome::kFailed) continue;
        const Grid& grid = *points_[static_cast<size_t>(same - now.points.begin())].grid;
        same->repeats.push_back(repeat);
        clock_.add(grid, repeat.seconds);
        if (counts_as_failed(grid, repeat)) ++report_.failed;
      }
    }
    now.started = earlier.started;
    return {};
  }

  // Points of other grids are listed once they have been run.
  [[nodiscard]] std::vector<ManifestPoint> listed_points() const {
    std::vector<ManifestPoint> listed;
    for (size_t i = 0; i < points_.size(); ++i) {
      const ManifestPoint& point = report_.manifest.points[i];
      if (wanted_[i] || !point.repeats.empty()) listed.push_back(point);
    }
    return listed;
  }

  Status save() const {
    Manifest manifest = report_.manifest;
    manifest.points = listed_points();
    return write_manifest(options_.output, manifest);
  }

  Result<Ended> run_child(const ChildCommand& command, const fs::path& log, double timeout) const {
    std::vector<std::string> arguments{options_.program};
    arguments.insert(arguments.end(), command.arguments.begin(), command.arguments.end());
    const double start = now_seconds();
    QWEN2_TRY(Subprocess child, Subprocess::start_logged(arguments, command.environment, log));
    Ended ended;
    std::optional<int> status;
    while (!(status = child.wait(0.05))) {
      const bool late = now_seconds() - start > timeout;
      if (!stopped() && !late) continue;
      if (late) ended.how = Ended::How::kTimeout;
      child.signal(SIGINT);
      static_cast<void>(child.wait(kPatience));
      break;
    }
    if (stopped()) ended.how = Ended::How::kStopped;  // it may have ended by the same Ctrl-C
    ended.status = status.value_or(-1);
    ended.seconds = now_seconds() - start;
    return ended;
  }

  Status run_setup() {
    for (size_t i = 0; i < experiment_.setup.size() && !stopped(); ++i) {
      const Setup& setup = experiment_.setup[i];
      if (!setup.creates.empty() && fs::exists(with_directory(setup.creates, options_.output))) continue;
      const ChildCommand command = command_of(setup, options_.output);
      report(0, "setup: " + command.text(), false, "");
      const fs::path log = options_.output / fmt::format("setup-{}.log", i + 1);
      QWEN2_TRY(const Ended ended, run_child(command, log, setup.timeout_seconds));
      if (ended.how == Ended::How::kStopped || (ended.how == Ended::How::kExit && ended.status == 0))
        continue;
      return fail(ErrorKind::kUnavailable, "the setup command '{}' failed: {}; its output is in '{}'",
                  command.text(), failure(ended, log, false, setup.timeout_seconds), log.string());
    }
    return {};
  }

  static std::string failure(const Ended& ended, const fs::path& log, bool refused, double timeout) {
    if (ended.how == Ended::How::kTimeout) return fmt::format("it took more than {} seconds", timeout);
    const auto text = read_text_file(log);
    const std::string line = text ? error_line(*text, refused, ended.status) : "";
    return line.empty() ? fmt::format("exit status {}", ended.status) : valid_utf8(line);
  }

  // What came of it, from the exit status, the log and the result.
  static Repeat judge(const Grid& grid, const Ended& ended, const fs::path& log, const fs::path& result) {
    Repeat repeat;
    repeat.seconds = ended.seconds;
    repeat.outcome = Outcome::kFailed;
    if (ended.how == Ended::How::kTimeout || ended.status != 0) {
      const auto text = read_text_file(log);
      const bool refused = ended.how == Ended::How::kExit && text && text->find(kPlanFollows) != text->npos;
      if (refused) repeat.outcome = Outcome::kRefused;
      repeat.error = failure(ended, log, refused, grid.timeout_seconds);
      return repeat;
    }
    const auto fields = JsonFields::read(result);
    if (!fields) {
      repeat.error = fields.error().message;
      return repeat;
    }
    if (grid.measure == Measure::kServe && fields->find<int64_t>("completed") == 0) {
      repeat.error = "no request was completed";
      return repeat;
    }
    repeat.outcome = Outcome::kOk;
    return repeat;
  }

  Status run_job(size_t index) {
    const Job& job = jobs_[index];
    const Point& point = points_[job.point];
    const fs::path result = result_path(options_.output, point, job.repeat);
    const fs::path log = fs::path(result).replace_extension(".log");
    std::error_code code;
    fs::create_directories(result.parent_path(), code);
    fs::remove(result, code);  // of a run before
    report(index, point.label, false, "");
    const ChildCommand command = command_of(point, experiment_.seed, job.repeat, options_.output, result);
    QWEN2_TRY(const Ended ended, run_child(command, log, point.grid->timeout_seconds));
    if (ended.how == Ended::How::kStopped) return {};
    Repeat repeat = judge(*point.grid, ended, log, result);
    repeat.number = job.repeat + 1;
    repeat.file = result_path({}, point, job.repeat).string();
    if (counts_as_failed(*point.grid, repeat)) ++report_.failed;
    clock_.add(*point.grid, repeat.seconds);
    auto& repeats = report_.manifest.points[job.point].repeats;
    repeats.push_back(repeat);
    std::ranges::sort(repeats, {}, &Repeat::number);
    report(index + 1, point.label, true, repeat.error);
    return save();
  }

  void report(size_t done, const std::string& label, bool finished, const std::string& error) const {
    RunProgress p{.done = done,
                  .total = jobs_.size(),
                  .failed = report_.failed,
                  .seconds_left = {},
                  .label = label,
                  .finished = finished,
                  .error = error};
    p.seconds_left =
        clock_.seconds_for(points_, std::span(jobs_).subspan(done), experiment_.cooldown_seconds);
    progress_(p);
  }

  const Experiment& experiment_;
  const RunOptions& options_;
  const std::function<void(const RunProgress&)>& progress_;
  std::vector<Point> points_;
  std::vector<bool> wanted_;
  std::vector<Job> jobs_;
  Clock clock_;
  RunReport report_;
};

}  // namespace

std::vector<Job> schedule(const std::vector<Point>& points, const std::vector<bool>& wanted, uint64_t seed,
                          bool shuffle) {
  int64_t most = 0;
  for (const Point& point : points) most = std::max(most, point.grid->repeats);
  std::mt19937_64 random(seed);
  std::vector<Job> jobs;
  for (int64_t repeat = 0; repeat < most; ++repeat) {
    std::vector<Job> block;
    for (size_t i = 0; i < points.size(); ++i) {
      if (wanted[i] && repeat < points[i].grid->repeats) block.push_back({i, repeat});
    }
    if (shuffle) shuffle_jobs(block, random);
    jobs.insert(jobs.end(), block.begin(), block.end());
  }
  return jobs;
}

std::optional<double> estimate_seconds(const Experiment& experiment, const std::vector<Point>& points,
                                       const std::vector<Job>& jobs) {
  return Clock().seconds_for(points, jobs, experiment.cooldown_seconds);
}

Result<std::vector<bool>> wanted_points(const std::vector<Point>& points,
                                        const std::vector<std::string>& only) {
  for (const std::string& name : only) {
    if (std::ranges::none_of(points, [&](const Point& p) { return p.grid->name == name; }))
      return fail(ErrorKind::kInvalidArgument, "--only '{}': there is no such grid", name);
  }
  std::vector<bool> wanted;
  wanted.reserve(points.size());
  for (const Point& point : points)
    wanted.push_back(only.empty() || std::ranges::find(only, point.grid->name) != only.end());
  return wanted;
}

Result<RunReport> run_experiment(const Experiment& experiment, const RunOptions& options,
                                 const std::function<void(const RunProgress&)>& progress) {
  return Run(experiment, options, progress).run();
}

}  // namespace qwen2
