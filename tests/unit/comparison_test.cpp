// The statistics of repeats, manifests and summaries, and comparisons of runs.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <random>

#include "base/json_fields.h"
#include "base/memory.h"
#include "experiment/comparison.h"
#include "experiment/inference.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// The expected p and quantile are Simpson's rule over the density of t, in a program of its own.
TEST(Inference, IntervalsAndWelchsTest) {
  const std::array a = {10.1, 9.8, 10.4, 10.0};
  const std::array b = {11.2, 12.0, 11.5};
  const auto interval = mean_interval(moments_of(a), 0.95);
  ASSERT_TRUE(interval);
  // mean 10.075, sd 0.25, t(0.975, 3) = 3.182446
  EXPECT_NEAR(interval->low, 10.075 - 3.182446305 * 0.25 / 2, 1e-8);
  EXPECT_NEAR(interval->high, 10.075 + 3.182446305 * 0.25 / 2, 1e-8);
  // error 0.264706336, 3.140257801 degrees of freedom, t 5.635175523, t(0.975) 3.103525313
  const MeanDifference d = mean_difference(moments_of(a), moments_of(b), 0, 0, 0.95);
  EXPECT_NEAR(d.value, 1.491666667, 1e-9);
  EXPECT_NEAR(d.p, 0.009766534715, 1e-9);
  EXPECT_NEAR(d.interval.low, 1.491666667 - 0.821522815, 1e-8);
  EXPECT_NEAR(d.interval.high, 1.491666667 + 0.821522815, 1e-8);
  EXPECT_FALSE(mean_interval(moments_of(std::array{1.0}), 0.95));
}

// The distribution of t with two degrees of freedom has a closed form: P(T > t) = 1/2 - t / (2 sqrt(2 + t²)).
TEST(Inference, PAgainstAClosedForm) {
  const Moments a{2, 0, 1};
  const Moments b{2, 3, 1};  // equal variances, n = 2: two degrees of freedom, error 1
  for (const double least : {0.0, 1.0, 2.5}) {
    const double t = 3 - least;
    EXPECT_NEAR(mean_difference(a, b, least, 0, 0.95).p, 1 - t / std::sqrt(2 + t * t), 1e-12);
  }
  EXPECT_EQ(mean_difference(a, b, 3, 0, 0.95).p, 1);
  EXPECT_EQ(mean_difference({2, 1, 0}, {2, 1, 0}, 0, 0, 0.95).p, 1);
  EXPECT_EQ(mean_difference({2, 1, 0}, {2, 2, 0}, 0, 0, 0.95).p, 0);
  EXPECT_EQ(mean_difference({2, 1, 0}, {2, 2, 0}, 0, 1, 0.95).p,
            mean_difference({2, 1, 1}, {2, 2, 1}, 0, 0, 0.95).p);
}

TEST(Inference, HolmsCorrection) {
  const auto adjusted = holm_adjusted({0.01, 0.04, 0.03, 0.005});
  const std::array expected = {0.03, 0.06, 0.06, 0.02};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(adjusted[i], expected[i], 1e-12);
  EXPECT_EQ(holm_adjusted({0.9, 0.8}), (std::vector<double>{1, 1}));
  EXPECT_TRUE(holm_adjusted({}).empty());
}

// The share of wrong verdicts where nothing differs stays below alpha, and a difference inside of the least
// effect is no verdict either; one of half the speed is found.
TEST(Comparison, FalseVerdictsAreRare) {
  std::mt19937 random(20261124);
  std::normal_distribution<double> noise(0, 0.03);
  const Metric& speed = *find_metric("decode_tokens_per_second.median");
  const auto wrong = [&](double factor, int trials) {
    int found = 0;
    for (int i = 0; i < trials; ++i) {
      std::vector<Comparison> comparisons;
      for (int metric = 0; metric < 10; ++metric) {
        std::array<double, 4> a{}, b{};
        for (double& value : a) value = 100 * (1 + noise(random));
        for (double& value : b) value = 100 * factor * (1 + noise(random));
        comparisons.push_back(compare_metric(speed, a, b, {}));
      }
      decide(comparisons, 0.05);
      found +=
          std::ranges::any_of(comparisons, [](const auto& c) { return c.verdict != Verdict::kNoDifference; });
    }
    return found;
  };
  EXPECT_LE(wrong(1, 400), 40);  // 5 % would be 20; the least effect makes it far fewer
  EXPECT_LE(wrong(1.04, 400), 40);
  EXPECT_GE(wrong(0.5, 50), 49);
}

Comparison decided(std::string_view metric, std::vector<double> a, std::vector<double> b) {
  std::vector<Comparison> list = {compare_metric(*find_metric(metric), a, b, {})};
  decide(list, 0.05);
  return list[0];
}

TEST(Comparison, Verdicts) {
  using enum Verdict;
  const char* speed = "decode_tokens_per_second.median";
  const std::vector<double> base = {100, 101, 99};
  EXPECT_EQ(decided(speed, base, base).verdict, kNoDifference);
  EXPECT_EQ(decided(speed, base, {101, 100, 102}).verdict, kNoDifference);
  EXPECT_EQ(decided(speed, base, {50, 51, 49}).verdict, kWorse);
  EXPECT_EQ(decided(speed, {50, 51, 49}, base).verdict, kBetter);
  EXPECT_EQ(decided("p99_ttft_ms", base, {200, 202, 198}).verdict, kWorse);
  // Tiny variances: a difference below the least effect is none, however sure it is.
  EXPECT_EQ(decided(speed, {100, 100, 100}, {98, 98, 98}).verdict, kNoDifference);
  EXPECT_EQ(decided(speed, {100, 100, 100}, {80, 80, 80}).verdict, kWorse);
  // Wide ones: three values of a busy machine.
  EXPECT_EQ(decided(speed, {100, 20, 60}, {30, 70, 25}).verdict, kNoDifference);
  // One repeat shows nothing of a measured metric, but all of an exact one.
  EXPECT_EQ(decided(speed, {100}, {50}).verdict, kNoDifference);
  EXPECT_EQ(decided("weight_bytes", {100}, {50}).verdict, kBetter);
  EXPECT_EQ(decided("mean_kl", {0}, {0.02}).verdict, kWorse);
  EXPECT_EQ(decided("mean_kl", {0}, {1e-12}).verdict, kNoDifference);
  EXPECT_EQ(decided("perplexity", {2.0}, {2.00001}).verdict, kNoDifference);
  EXPECT_EQ(decided("failed", {0, 0, 0}, {0, 0, 0}).verdict, kNoDifference);
}

// Directories as the runner writes them, with given results.
class Directories : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("qwen2-experiment-{}", getpid());
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  static Manifest manifest() {
    Manifest m;
    m.name = "x";
    m.environment = {{"cpu", "c"}, {"cores", 2}, {"threads", 2}};
    return m;
  }

  fs::path write(const std::string& name, Manifest m, const std::vector<std::vector<double>>& speeds,
                 const std::string& precision = "fp16", const std::string& hash = "h") {
    const fs::path directory = root_ / name;
    fs::create_directories(directory / "points");
    for (size_t i = 0; i < speeds.size(); ++i) {
      ManifestPoint point{.id = fmt::format("p{:03}", i + 1),
                          .label = "",
                          .grid = "g",
                          .axes = {{"batch", i}},
                          .flags = {{"batch", i}, {"precision", precision}},
                          .command = "",
                          .repeats = {}};
      for (size_t r = 0; r < speeds[i].size(); ++r) {
        const std::string file = fmt::format("points/p{}-{}.json", i, r);
        const json::object result{{"decode_tokens_per_second", json::object{{"median", speeds[i][r]}}},
                                  {"environment", json::object{{"model_hash", hash}}}};
        EXPECT_TRUE(write_file(directory / file, json::serialize(result)));
        point.repeats.push_back({.number = static_cast<int64_t>(r + 1),
                                 .file = file,
                                 .outcome = Outcome::kOk,
                                 .error = "",
                                 .seconds = 1});
      }
      if (speeds[i].empty()) {
        point.repeats.push_back(
            {.number = 1, .file = "none", .outcome = Outcome::kRefused, .error = "no", .seconds = 1});
      }
      m.points.push_back(point);
    }
    EXPECT_TRUE(write_manifest(directory, m));
    return directory;
  }

  fs::path root_;
};

TEST_F(Directories, AManifestReadsBackAsItWas) {
  Manifest m = manifest();
  m.profile = "cpu";
  m.overrides = {"a=1"};
  m.interrupted = true;
  m.plots = {json::object{{"title", "t"}}};
  const fs::path directory = write("a", m, {{1, 2}, {}});
  const auto read = read_manifest(directory);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->points.size(), 2U);
  EXPECT_EQ(read->points[0].repeats[1].file, "points/p0-1.json");
  EXPECT_EQ(read->points[1].repeats[0].outcome, Outcome::kRefused);
  EXPECT_EQ(read->points[1].repeats[0].error, "no");
  EXPECT_TRUE(read->interrupted);
  EXPECT_EQ(read->overrides, m.overrides);
  EXPECT_EQ(read->environment, m.environment);
  ASSERT_TRUE(write_file(directory / "manifest.json", R"({"schema": "qwen2-experiment/1", "name": 3})"));
  const auto broken = read_manifest(directory);
  ASSERT_FALSE(broken);
  EXPECT_NE(broken.error().message.find("manifest.json"), std::string::npos);
}

TEST_F(Directories, SummariesHoldTheInterval) {
  const fs::path directory = write("a", manifest(), {{10, 12, 14}, {}});
  const auto m = read_manifest(directory);
  const auto points = summarise_points(directory, *m);
  ASSERT_TRUE(points);
  ASSERT_TRUE(write_summary(directory, *points));
  const auto summary = JsonFields::read(directory / "summary.json");
  ASSERT_TRUE(summary) << summary.error().message;
  const json::object& metric =
      summary->object().at("points").at(0).at("metrics").at("decode_tokens_per_second.median").as_object();
  EXPECT_EQ(metric.at("n"), 3);
  EXPECT_EQ(metric.at("mean").as_double(), 12);
  EXPECT_EQ(metric.at("median").as_double(), 12);
  EXPECT_NEAR(metric.at("ci_high").as_double(), 12 + 4.30265273 * 2 / std::sqrt(3), 1e-7);
  EXPECT_EQ(metric.at("better"), "higher");
  EXPECT_NE(format_summary(*points).find("refused: no"), std::string::npos);
}

TEST_F(Directories, TheSameExperimentShowsNoDifferenceAndHalfTheSpeedIsWorse) {
  const fs::path a = write("a", manifest(), {{100, 101, 99}, {200, 204, 199}});
  const fs::path b = write("b", manifest(), {{101, 99, 100}, {201, 200, 203}});
  const fs::path c = write("c", manifest(), {{101, 99, 100}, {101, 100, 102}});
  const auto same = compare_experiments(a, b, {});
  ASSERT_TRUE(same) << same.error().message;
  EXPECT_EQ(same->comparisons.size(), 2U);
  EXPECT_FALSE(same->any(Verdict::kWorse) || same->any(Verdict::kBetter));
  const auto slower = compare_experiments(a, c, {});
  ASSERT_TRUE(slower);
  EXPECT_EQ(slower->comparisons[0].verdict, Verdict::kNoDifference);
  EXPECT_EQ(slower->comparisons[1].verdict, Verdict::kWorse);
  EXPECT_NE(format_comparison(*slower, {}).find("1 worse, 0 better"), std::string::npos);
  EXPECT_EQ(to_json(*slower, {}).at("verdict"), "worse");
}

TEST_F(Directories, APointThatOnlyOneSideCouldMeasureIsAVerdict) {
  const fs::path a = write("a", manifest(), {{100, 101}, {100, 101}});
  const fs::path b = write("b", manifest(), {{100, 101}, {}});
  EXPECT_TRUE(compare_experiments(a, b, {})->any(Verdict::kWorse));
  EXPECT_TRUE(compare_experiments(b, a, {})->any(Verdict::kBetter));
}

TEST_F(Directories, ARepeatThatFailedOnOneSideAloneIsAVerdict) {
  const fs::path a = write("a", manifest(), {{100, 101, 99}});
  Manifest broken = *read_manifest(write("b", manifest(), {{100, 101, 99}}));
  broken.points[0].repeats[1].outcome = Outcome::kFailed;
  ASSERT_TRUE(write_manifest(root_ / "b", broken));
  const auto worse = compare_experiments(a, root_ / "b", {});
  ASSERT_TRUE(worse) << worse.error().message;
  EXPECT_TRUE(worse->any(Verdict::kWorse));
  EXPECT_NE(format_comparison(*worse, {}).find("0 of 3 repeats of a failed, 1 of 3 of b"), std::string::npos);
  EXPECT_TRUE(compare_experiments(root_ / "b", a, {})->any(Verdict::kBetter));
  EXPECT_FALSE(compare_experiments(root_ / "b", root_ / "b", {})->any(Verdict::kWorse));
}

TEST_F(Directories, WhatDiffersTooMuchIsRefusedUnlessAllowed) {
  const std::vector<std::vector<double>> speeds = {{100, 101, 99}};
  const fs::path a = write("a", manifest(), speeds);
  Manifest other = manifest();
  other.environment["threads"] = 1;
  other.environment["commit"] = "may differ";
  const fs::path b = write("b", other, {{40, 41, 42}}, "int4", "another");
  CompareOptions options;
  const auto refused = compare_experiments(a, b, options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kUnsupported);
  for (const char* key :
       {"threads: 2 and 1", "precision: \"fp16\" and \"int4\"", "model_hash: \"h\" and \"another\""})
    EXPECT_NE(refused.error().message.find(key), std::string::npos) << refused.error().message;
  EXPECT_EQ(refused.error().message.find("may differ"), std::string::npos);
  options.allow = {"threads", "precision", "model_hash"};
  const auto allowed = compare_experiments(a, b, options);
  ASSERT_TRUE(allowed) << allowed.error().message;
  EXPECT_EQ(allowed->differences.size(), 3U);
  EXPECT_TRUE(allowed->any(Verdict::kWorse));
  const fs::path more = write("c", manifest(), {{100, 101}, {100, 101}});
  EXPECT_FALSE(compare_experiments(a, more, {}));
  options.allow = {"grid"};
  EXPECT_TRUE(compare_experiments(a, more, options));
  options.allow = {"batch"};  // its two points would be one
  EXPECT_FALSE(compare_experiments(a, more, options));
  options = {.metrics = {"nothing"}, .allow = {}};
  EXPECT_FALSE(compare_experiments(a, a, options));
  options.metrics = {"read_bandwidth_bytes_per_second"};
  EXPECT_FALSE(compare_experiments(a, a, options));
}

}  // namespace
}  // namespace qwen2
