// Experiment files, their points and schedules, metrics, environments, and the child processes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>

#include "base/memory.h"
#include "base/subprocess.h"
#include "experiment/environment.h"
#include "experiment/metrics.h"
#include "experiment/runner.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::string_view kFile = R"(
name = "small"
title = "A small one"
seed = 7
repeats = 3
cooldown = 0.5

[flags]
model = "models/demo"
kv = "fp16"

[profile.cpu]
flags = { device = "cpu" }
[profile.cpu.grid.speed]
axes = { prompt = [4] }
[profile.cpu.grid.fit]
skip = true

[[setup]]
command = ["quantize", "--output", "{output}/int4"]
creates = "{output}/int4"

[[grid]]
name = "speed"
measure = "engine"
flags = { runs = 1, kv = "int8" }
axes = { prompt = [16, 32], variant = [{ name = "plain" }, { name = "one", threads = 1, precision = "int4" }] }
estimate = 2

[[grid]]
name = "fit"
measure = "plan"
repeats = 1
flags = { gpu = "rtx2060" }
may-be-refused = true

[[plot]]
title = "Speed"
x = "prompt"
y = "decode_tokens_per_second.median"
series = "variant"
log_x = true
)";

Experiment parsed(std::string_view text = kFile, const std::string& profile = "") {
  auto experiment = parse_experiment(std::string(text), "small.toml", profile);
  EXPECT_TRUE(experiment) << experiment.error().message;
  return experiment ? *std::move(experiment) : Experiment{};
}

TEST(ExperimentFile, SaysWhatItSays) {
  const Experiment e = parsed();
  EXPECT_EQ(e.name, "small");
  EXPECT_EQ(e.seed, 7U);
  EXPECT_EQ(e.cooldown_seconds, 0.5);
  EXPECT_TRUE(e.shuffle);
  ASSERT_EQ(e.grids.size(), 2U);
  EXPECT_EQ(e.grids[0].repeats, 3);
  EXPECT_EQ(e.grids[0].estimate_seconds, 2);
  EXPECT_EQ(e.grids[0].flags, (Flags{{"model", "models/demo"}, {"kv", "int8"}, {"runs", 1}}));
  EXPECT_EQ(e.grids[1].repeats, 1);
  EXPECT_TRUE(e.grids[1].may_be_refused);
  ASSERT_EQ(e.setup.size(), 1U);
  EXPECT_EQ(command_of(e.setup[0], "out").text(), "qwen2 quantize --output out/int4");
  ASSERT_EQ(e.plots.size(), 1U);
  EXPECT_EQ(e.plots[0].at("series"), "variant");
  EXPECT_EQ(e.plots[0].at("log_x"), true);
}

TEST(ExperimentFile, PointsAreTheProductOfTheAxesInTheFilesOrder) {
  const Experiment e = parsed();
  const auto points = points_of(e);
  ASSERT_EQ(points.size(), 5U);
  const std::vector<std::string> labels = {"speed: prompt 16, plain", "speed: prompt 16, one",
                                           "speed: prompt 32, plain", "speed: prompt 32, one", "fit"};
  for (size_t i = 0; i < points.size(); ++i) EXPECT_EQ(points[i].label, labels[i]);
  EXPECT_EQ(points[3].id, "p004");
  EXPECT_EQ(points[3].axes, (json::object{{"prompt", 32}, {"variant", "one"}}));
  EXPECT_EQ(
      command_of(points[3], 7, 1, "out", "out/points/p004/r2.json").text(),
      "OMP_NUM_THREADS=1 qwen2 bench engine --model models/demo --kv int8 --runs 1 --prompt 32 --precision "
      "int4 --output out/points/p004/r2.json");
}

TEST(ExperimentFile, AProfileReplacesValues) {
  const Experiment e = parsed(kFile, "cpu");
  ASSERT_EQ(e.grids.size(), 1U);
  EXPECT_EQ(e.grids[0].flags.at("device"), "cpu");
  EXPECT_EQ(e.grids[0].flags.at("kv"), "int8");
  EXPECT_EQ(points_of(e).size(), 2U);
  EXPECT_EQ(points_of(e)[0].label, "prompt 4, plain");
  const auto missing = parse_experiment(std::string(kFile), "small.toml", "gpu");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("[profile.gpu]"), std::string::npos);
}

TEST(ExperimentFile, SetReplacesFlagsAndAxes) {
  Experiment e = parsed();
  ASSERT_TRUE(override_flag(e, "prompt=64"));
  ASSERT_TRUE(override_flag(e, "fit.gpu=t4"));
  ASSERT_TRUE(override_flag(e, "speed.ignore-eos=true"));
  EXPECT_EQ(points_of(e).size(), 3U);
  EXPECT_EQ(points_of(e)[0].axes.at("prompt"), 64);
  EXPECT_EQ(e.grids[0].flags.at("ignore-eos"), true);
  EXPECT_EQ(e.grids[1].flags.at("gpu"), "t4");
  EXPECT_FALSE(e.grids[0].flags.contains("gpu"));
  for (const char* wrong : {"prompt", "=1", "none.a=1", "output=x", "speed.resume=x"})
    EXPECT_FALSE(override_flag(e, wrong)) << wrong;
}

TEST(ExperimentFile, BooleansAreFlagsWithoutAValueAndLoadTestsHaveSeeds) {
  const Experiment e = parsed(R"(
name = "load"
[[grid]]
name = "load"
measure = "serve"
flags = { ignore-eos = true, no-stream = false, rate = 0.5, slo = "a b" }
)");
  EXPECT_EQ(command_of(points_of(e)[0], 10, 2, "out", "r.json").text(),
            "qwen2 bench serve --ignore-eos --rate 0.5 --slo 'a b' --seed 12 --output r.json");
}

TEST(ExperimentFile, ErrorsNameTheKeyAndTheLine) {
  const std::string grid = "name = \"x\"\n[[grid]]\nname = \"g\"\nmeasure = \"engine\"\n";
  for (const auto& [text, line, what] : {
           std::tuple{std::string("name = \"x\"\nrepeat = 3\n"), 2, "repeat"},
           {std::string("name = 3\n"), 1, "name"},
           {std::string("title = \"x\"\n"), 1, "name"},
           {std::string("name = \"x\"\nseed = 1.5\n"), 2, "seed"},
           {std::string("name = \"x\"\nrepeats = 0\n"), 2, "repeats"},
           {std::string("name = \"x\"\nshuffle = 1\n"), 2, "shuffle"},
           {std::string("name = \"x\"\ngrid = 1\n"), 2, "grid"},
           {std::string("name = \"x\"\n\nname = \"y\"\n"), 3, "name"},
           {std::string("name = \"x\"\n[flags]\na = [1]\n"), 3, "'a'"},
           {grid + "axis = { a = [1] }\n", 5, "axis"},
           {grid + "axes = { a = 1 }\n", 5, "'a'"},
           {grid + "axes = { a = [] }\n", 5, "'a'"},
           {grid + "axes = { a = [1, 1] }\n", 5, "twice"},
           {grid + "axes = { a = [{ b = 1 }] }\n", 5, "name"},
           {grid + "flags = { output = \"x\" }\n", 5, "output"},
           {grid + "flags = { ladder = \"rate=1,2\" }\n", 5, "as an axis"},
           {grid + "axes = { search = [\"rate\"] }\n", 5, "as an axis"},
           {grid + "flags = { threads = 0 }\n", 5, "threads"},
           {grid + "timeout = -1\n", 5, "timeout"},
           {grid + "[[grid]]\nname = \"g\"\nmeasure = \"plan\"\n", 5, "'g'"},
           {grid + "[[grid]]\nname = \"h\"\nmeasure = \"speed\"\n", 7, "speed"},
           {grid + "[[setup]]\ncommand = \"quantize\"\n", 5, "command"},
           {grid + "[[plot]]\ntitle = \"t\"\nx = \"a\"\n", 5, "'y'"},
           {grid + "[[plot]]\nz = \"t\"\n", 6, "'z'"},
       }) {
    const auto experiment = parse_experiment(text, "bad.toml", "");
    ASSERT_FALSE(experiment) << text;
    const std::string& message = experiment.error().message;
    EXPECT_NE(message.find(fmt::format("'bad.toml' line {}:", line)), std::string::npos) << message;
    EXPECT_NE(message.find(what), std::string::npos) << message;
  }
}

TEST(ExperimentFile, ThoseOfTheRepositoryAreRight) {
  const fs::path folder = fs::path(QWEN2_SOURCE_DIR) / "experiments";
  size_t count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const auto experiment = read_experiment(entry.path(), "");
    ASSERT_TRUE(experiment) << experiment.error().message;
    const auto points = points_of(*experiment);
    const auto jobs = schedule(points, std::vector<bool>(points.size(), true), experiment->seed, true);
    EXPECT_TRUE(estimate_seconds(*experiment, points, jobs)) << entry.path();
    for (const json::value& plot : experiment->plots) {
      const auto known = [&](const json::value& name) {
        const std::string text(name.as_string());
        return find_metric(text) != nullptr ||
               std::ranges::any_of(points, [&](const Point& p) { return p.axes.contains(text); });
      };
      EXPECT_TRUE(known(plot.at("x")) && known(plot.at("y"))) << entry.path() << json::serialize(plot);
    }
    ++count;
  }
  EXPECT_GE(count, 1U);
}

TEST(Schedule, EveryBlockHasEveryPointOnce) {
  const Experiment e = parsed();
  const auto points = points_of(e);
  const std::vector<bool> all(points.size(), true);
  const auto jobs = schedule(points, all, 1, true);
  ASSERT_EQ(jobs.size(), 4U * 3 + 1);
  std::set<size_t> first;
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(jobs[i].repeat, 0);
    first.insert(jobs[i].point);
  }
  EXPECT_EQ(first.size(), 5U);
  const auto order = [&](uint64_t seed) {
    std::vector<size_t> found;
    for (const Job& job : schedule(points, all, seed, true)) found.push_back(job.point);
    return found;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
  EXPECT_EQ(schedule(points, {false, false, false, false, true}, 1, true).size(), 1U);
  EXPECT_EQ(estimate_seconds(e, points, jobs), std::nullopt);  // the second grid has none
  EXPECT_EQ(estimate_seconds(e, points, std::vector<Job>(3, Job{0, 0})), 3 * 2.5);
}

TEST(Metrics, AreFoundInResults) {
  const json::value parsed = json::parse(R"({"a": {"median": 2.5}, "completed": 3, "request_goodput": null,
    "memory_plan": {"total": 7}, "timeline": [{"vram_bytes": 5}, {"vram_bytes": 9}, {"vram_bytes": null}, 3]})");
  const auto read = [&](std::string_view name) {
    return read_metric(parsed.as_object(), *find_metric(name));
  };
  EXPECT_EQ(read("completed"), 3);
  EXPECT_EQ(read("memory_plan.total"), 7);
  EXPECT_EQ(read("peak_vram_bytes"), 9);
  EXPECT_EQ(read("peak_host_bytes"), std::nullopt);
  EXPECT_EQ(read("request_goodput"), std::nullopt);
  EXPECT_EQ(read("p99_ttft_ms"), std::nullopt);
  EXPECT_EQ(read("decode_tokens_per_second.median"), std::nullopt);
  EXPECT_EQ(find_metric("nothing"), nullptr);
  EXPECT_EQ(find_metric("p99_ttft_ms")->better, Better::kLower);
}

TEST(Fingerprint, TellsModelsApart) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("qwen2-fingerprint-{}", getpid());
  fs::create_directories(folder);
  std::string weights(3 << 20, 'w');
  const auto with = [&](const std::string& config) {
    EXPECT_TRUE(write_file(folder / "config.json", config));
    EXPECT_TRUE(write_file(folder / "model.safetensors", weights));
    const auto hash = model_fingerprint(folder.string());
    EXPECT_TRUE(hash);
    return hash.value_or("");
  };
  const std::string first = with("{}");
  EXPECT_EQ(first.size(), std::string("fnv1a64:0123456789abcdef").size());
  EXPECT_EQ(with("{}"), first);
  EXPECT_NE(with("{ }"), first);
  weights[(2 << 20) + 100] = 'v';  // in the sampled start of a MiB
  EXPECT_NE(with("{}"), first);
  weights[(2 << 20) + 100] = 'w';
  weights.back() = 'v';
  EXPECT_NE(with("{}"), first);
  EXPECT_TRUE(write_file(folder / "README.md", "not of the model"));
  weights.back() = 'w';
  EXPECT_EQ(with("{}"), first);
  fs::remove_all(folder);
  EXPECT_NE(*model_fingerprint("synthetic:qwen2-0.5b"), *model_fingerprint("synthetic:qwen2-1.5b"));
  EXPECT_FALSE(model_fingerprint("/no/model"));
}

TEST(Environment, NamesMachineProgramModelAndCommand) {
  const json::object e = describe_environment("synthetic:qwen2-0.5b", 3);
  for (const char* key :
       {"cpu", "isa", "kernel", "host", "compiler", "commit", "version", "command", "model_hash"})
    EXPECT_TRUE(e.at(key).is_string()) << key;
  EXPECT_EQ(e.at("seed"), 3);
  EXPECT_NE(std::string(e.at("command").as_string()).find("unit_tests"), std::string::npos);
  EXPECT_TRUE(describe_environment("", std::nullopt).at("model_hash").is_null());
}

TEST(Subprocess, LogsAndEnds) {
  const fs::path log = fs::temp_directory_path() / fmt::format("qwen2-subprocess-{}.log", getpid());
  auto child = Subprocess::start_logged({"/bin/sh", "-c", "echo out; echo $A >&2; exit 3"}, {"A=error"}, log);
  ASSERT_TRUE(child) << child.error().message;
  EXPECT_EQ(child->wait(60), 3);
  EXPECT_EQ(*read_text_file(log), "out\nerror\n");
  auto sleeper = Subprocess::start_logged({"/bin/sh", "-c", "sleep 1000 & sleep 1000"}, {}, log);
  ASSERT_TRUE(sleeper);
  EXPECT_EQ(sleeper->wait(0.05), std::nullopt);
  sleeper->signal(SIGTERM);
  EXPECT_EQ(sleeper->wait(60), 128 + SIGTERM);
  EXPECT_FALSE(Subprocess::start_logged({"/no/program"}, {}, log));
  fs::remove(log);
  EXPECT_EQ(shell_command(std::vector<std::string>{"a", "b c", "it's", ""}), R"(a 'b c' 'it'\''s' '')");
}

// The system keeps no status of children whose SIGCHLD is ignored: that must not read as success.
TEST(Subprocess, AnUnknownStatusIsNoSuccess) {
  const auto handler = std::signal(SIGCHLD, SIG_IGN);
  auto child = Subprocess::start({"/bin/true"});
  ASSERT_TRUE(child);
  EXPECT_EQ(child->wait(10), Subprocess::kStatusUnknown);
  EXPECT_EQ(child->wait(10), Subprocess::kStatusUnknown);
  std::signal(SIGCHLD, handler);
}

}  // namespace
}  // namespace qwen2
