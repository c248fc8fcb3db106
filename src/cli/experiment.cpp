#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "base/interrupt.h"
#include "base/machine.h"
#include "base/memory.h"
#include "cli/cli.h"
#include "experiment/comparison.h"
#include "experiment/runner.h"

namespace qwen2::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kSomethingFailed = 1;
constexpr int kNotComparable = 2;
constexpr int kWorse = 3;
constexpr int kInterrupted = 130;

struct RunFlags {
  std::string file;
  std::string output;
  std::string profile;
  std::string device;
  std::vector<std::string> overrides;
  std::vector<std::string> only;
  bool resume = false;
  bool dry_run = false;
};

struct CompareFlags {
  std::string a, b;
  CompareOptions options;
  double least_effect_percent = 5;
  std::string output;
};

// "75 s", "12 min", "1 h 5 min"
std::string duration(double seconds) {
  const int64_t whole = std::llround(seconds);
  if (whole < 90) return fmt::format("{} s", whole);
  if (whole < 5400) return fmt::format("{} min", (whole + 30) / 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

// A bar that redraws itself on a terminal; elsewhere a line for each child that has ended.
void show_point(const RunProgress& p) {
  constexpr size_t kWidth = 24;
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  const std::string clear = terminal ? "\r\033[K" : "";
  if (p.finished && (!terminal || !p.error.empty())) {
    fmt::print(stderr, "{}{}/{} {}{}{}\n", clear, p.done, p.total, p.label, p.error.empty() ? "" : ": ",
               p.error);
  } else if (!terminal && p.total > 0 && p.label.starts_with("setup: ")) {
    fmt::print(stderr, "{}\n", p.label);
  }
  if (!terminal) return;
  const size_t filled = p.total == 0 ? kWidth : p.done * kWidth / p.total;
  fmt::print(stderr, "{}[{}{}] {}/{}{}{}  {}{}", clear, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), p.done, p.total,
             p.failed > 0 ? fmt::format(", {} failed", p.failed) : "",
             p.seconds_left ? ", " + duration(*p.seconds_left) + " left" : "", p.label.substr(0, 60),
             p.finished && p.done == p.total ? "\n" : "");
  std::fflush(stderr);
}

// The commands in their order, and how long they would take.
Status print_plan(const Experiment& experiment, const RunFlags& flags) {
  const auto points = points_of(experiment);
  QWEN2_TRY(const auto wanted, wanted_points(points, flags.only));
  const auto jobs = schedule(points, wanted, experiment.seed, experiment.shuffle);
  for (const Setup& setup : experiment.setup) fmt::print("{}\n", command_of(setup, flags.output).text());
  for (const Job& job : jobs) {
    const Point& point = points[job.point];
    const fs::path result =
        fs::path(flags.output) / "points" / point.id / fmt::format("r{}.json", job.repeat + 1);
    fmt::print("{}\n", command_of(point, experiment.seed, job.repeat, flags.output, result).text());
  }
  const auto seconds = estimate_seconds(experiment, points, jobs);
  fmt::print("{} points, {} child processes, {}\n", std::ranges::count(wanted, true), jobs.size(),
             seconds ? "about " + duration(*seconds) : "without an estimate");
  return {};
}

Status run(RunFlags& flags, int& exit_code) {
  QWEN2_TRY(Experiment experiment, read_experiment(flags.file, flags.profile));
  if (!flags.device.empty()) flags.overrides.push_back("device=" + flags.device);
  for (const std::string& text : flags.overrides) QWEN2_CHECK(override_flag(experiment, text));
  if (flags.dry_run) return print_plan(experiment, flags);
  const InterruptGuard guard;
  const RunOptions options{.program = executable_path(),
                           .output = flags.output,
                           .only = flags.only,
                           .resume = flags.resume,
                           .overrides = flags.overrides,
                           .profile = flags.profile,
                           .stop = interrupted};
  QWEN2_TRY(const RunReport report, run_experiment(experiment, options, show_point));
  QWEN2_TRY(const auto points, summarise_points(flags.output, report.manifest));
  QWEN2_CHECK(write_summary(flags.output, points));
  if (report.manifest.interrupted) fmt::print(stderr, "\n");
  fmt::print("{}\n{}\n", experiment.title, format_summary(points));
  fmt::print("mean ± half of its 95 % interval; every result is in {}\n", flags.output);
  if (report.failed > 0) {
    fmt::print(stderr, "qwen2: {} measurements failed; their logs are in {}/points\n", report.failed,
               flags.output);
    exit_code = kSomethingFailed;
  }
  if (report.manifest.interrupted) {
    fmt::print(stderr, "qwen2: interrupted: what was measured is kept, and --resume continues\n");
    exit_code = kInterrupted;
  }
  return {};
}

Status compare(CompareFlags& flags, int& exit_code) {
  flags.options.least_effect = flags.least_effect_percent / 100;
  const auto report = compare_experiments(flags.a, flags.b, flags.options);
  if (!report) {
    const bool usage =
        report.error().kind == ErrorKind::kUnsupported || report.error().kind == ErrorKind::kInvalidArgument;
    if (!usage) return std::unexpected(report.error());
    fmt::print(stderr, "qwen2: {}\n", report.error().message);
    exit_code = kNotComparable;
    return {};
  }
  fmt::print("{}", format_comparison(*report, flags.options));
  if (report->any(Verdict::kWorse)) exit_code = kWorse;
  if (flags.output.empty()) return {};
  boost::json::object root = to_json(*report, flags.options);
  root["directories"] = {flags.a, flags.b};
  return write_file(flags.output, boost::json::serialize(root) + "\n");
}

void add_run(CLI::App& app, Action& action, int& exit_code) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Measure every point of an experiment's grids");
  command->add_option("file", flags->file, "experiments/*.toml")->required();
  command->add_option("--output", flags->output, "Directory for results")->required();
  command->add_flag("--resume", flags->resume, "Continue what the directory holds");
  command->add_option("--only", flags->only, "Only this grid; may be given again")->allow_extra_args(false);
  command->add_option("--profile", flags->profile, "The file's [profile.NAME] replaces values, such as cpu");
  command->add_option("--set", flags->overrides, "KEY=VALUE or GRID.KEY=VALUE: a flag's one value")
      ->allow_extra_args(false);
  command->add_option("--device", flags->device, "The same as --set device=...");
  command->add_flag("--dry-run", flags->dry_run, "Print the commands and the estimate, run nothing");
  command->callback(
      [flags, &action, &exit_code] { action = [flags, &exit_code] { return run(*flags, exit_code); }; });
}

void add_compare(CLI::App& app, Action& action, int& exit_code) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* command = app.add_subcommand(
      "compare", "Is B better or worse than A? Exit code 0: not worse, 3: worse, 2: they cannot be compared");
  command->add_option("a", flags->a, "Directory of the run to compare with")->required();
  command->add_option("b", flags->b, "Directory of the other run")->required();
  command->add_option("--metric", flags->options.metrics, "Only this metric; may be given again")
      ->allow_extra_args(false);
  command
      ->add_option("--allow", flags->options.allow,
                   "A difference that is meant, such as precision or threads")
      ->allow_extra_args(false);
  command->add_option("--alpha", flags->options.alpha, "Chance of any wrong verdict among all")
      ->check(CLI::Range(1e-6, 0.5));
  command
      ->add_option("--least-effect", flags->least_effect_percent,
                   "Percent; smaller differences of measured metrics are never a verdict")
      ->check(CLI::Range(0.0, 1000.0));
  command->add_option("--output", flags->output, "JSON file");
  command->callback(
      [flags, &action, &exit_code] { action = [flags, &exit_code] { return compare(*flags, exit_code); }; });
}

}  // namespace

void add_experiment(CLI::App& app, Action& action, int& exit_code) {
  CLI::App* command =
      app.add_subcommand("experiment", "Run and compare experiments: grids of measurements, repeated");
  command->require_subcommand(1);
  add_run(*command, action, exit_code);
  add_compare(*command, action, exit_code);
}

}  // namespace qwen2::cli
