// Ladders, searches and resumed runs, on servers that are a formula.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/memory.h"
#include "loadgen/result_file.h"
#include "loadgen/search.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

// A server of 8 places: throughput grows up to there, and 90 % of the requests are good up to `limit`.
StepRunner server(LoadAxis axis, double limit, std::vector<double>& loads) {
  return [axis, limit, &loads](double load, size_t step) -> Result<LoadStep> {
    EXPECT_EQ(step, loads.size());
    loads.push_back(load);
    const double served = std::min(load, 8.0);
    json::object result{{"completed", 100}, {"failed", 0}, {"interrupted", false}};
    result["output_throughput"] = served * 100;
    result["request_goodput"] = served;
    result["slo_attained"] = load <= limit ? 0.9 : 0.5;
    result["kept_up"] = axis == LoadAxis::kRate ? json::value(served / load) : json::value(nullptr);
    return LoadStep{load, result};
  };
}

TEST(Ladder, ParsesAndNamesWhatIsWrong) {
  const auto ladder = Ladder::parse("rate=0.5,1,20");
  ASSERT_TRUE(ladder);
  EXPECT_EQ(ladder->axis, LoadAxis::kRate);
  EXPECT_EQ(ladder->loads, (std::vector<double>{0.5, 1, 20}));
  for (const char* text : {"", "rate", "rate=", "rate=1,", "rate=2,1", "rate=1,1", "speed=1",
                           "concurrency=1.5", "rate=-1", "rate=1x", "concurrency=100000", "rate=nan"}) {
    const auto wrong = Ladder::parse(text);
    ASSERT_FALSE(wrong) << text;
    EXPECT_NE(wrong.error().message.find("--ladder"), std::string::npos);
  }
}

TEST(Ladder, StopsAtSaturation) {
  std::vector<double> loads;
  const auto closed =
      run_ladder(*Ladder::parse("concurrency=1,2,4,8,16,32"), server(LoadAxis::kConcurrency, 100, loads));
  ASSERT_TRUE(closed);
  EXPECT_EQ(loads, (std::vector<double>{1, 2, 4, 8, 16}));
  EXPECT_EQ(closed->verdict.at("saturated_at"), 16.0);
  EXPECT_EQ(closed->verdict.at("best_load"), 8.0);
  loads.clear();
  const auto open = run_ladder(*Ladder::parse("rate=4,8,9,40"), server(LoadAxis::kRate, 100, loads));
  EXPECT_EQ(loads, (std::vector<double>{4, 8, 9}));  // 8 of 9 is below 0.9
  EXPECT_EQ(open->verdict.at("saturated"), true);
  loads.clear();
  const auto low = run_ladder(*Ladder::parse("rate=1,2"), server(LoadAxis::kRate, 100, loads));
  EXPECT_EQ(low->verdict.at("saturated"), false);
  EXPECT_TRUE(low->verdict.at("saturated_at").is_null());
}

TEST(Ladder, FailuresSaturateAndAnInterruptionEnds) {
  const auto failing = [](double load, size_t) -> Result<LoadStep> {
    return LoadStep{load, {{"completed", 8}, {"failed", 2}, {"output_throughput", load}, {"kept_up", 1.0}}};
  };
  EXPECT_EQ(run_ladder(*Ladder::parse("rate=1,2"), failing)->steps.size(), 1U);
  const auto stopped = [](double load, size_t) -> Result<LoadStep> {
    return LoadStep{load, {{"completed", 8}, {"failed", 0}, {"interrupted", true}}};
  };
  const auto result = run_ladder(*Ladder::parse("rate=1,2"), stopped);
  EXPECT_TRUE(result->interrupted);
  EXPECT_EQ(result->steps.size(), 1U);
}

TEST(Ladder, AStepThatCannotRunLeavesTheOthers) {
  const auto second_fails = [](double load, size_t step) -> Result<LoadStep> {
    if (step > 0) return fail(ErrorKind::kInvalidArgument, "the file has 3 prompts");
    return LoadStep{load, {{"completed", 8}, {"failed", 0}, {"output_throughput", load}}};
  };
  const auto result = run_ladder(*Ladder::parse("concurrency=1,2,4"), second_fails);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->steps.size(), 1U);
  ASSERT_TRUE(result->failed);
  EXPECT_EQ(to_json(*result).at("failed"), "the file has 3 prompts");
  const auto first_fails = [&](double load, size_t) { return second_fails(load, 1); };
  EXPECT_FALSE(run_ladder(*Ladder::parse("concurrency=1,2"), first_fails));
}

TEST(Search, FindsTheHighestLoadThatMeets) {
  const Objective objective = *Objective::parse("ttft=1s,p=90");
  for (const double limit : {1.0, 2.0, 5.0, 6.0, 7.0, 40.0, 1000.0}) {
    std::vector<double> loads;
    const auto result =
        run_search(LoadAxis::kConcurrency, 1, objective, server(LoadAxis::kConcurrency, limit, loads));
    ASSERT_TRUE(result);
    const double found = result->verdict.at("highest_load_that_meets").as_double();
    EXPECT_LE(found, limit);
    EXPECT_GE(found + std::max(1.0, found * kSearchStep), limit + (limit <= 20 ? 1 : 0)) << limit;
    EXPECT_LT(loads.size(), 25U);
  }
  for (const double limit : {0.01, 0.7, 3.3, 8.5}) {
    std::vector<double> loads;
    const auto result = run_search(LoadAxis::kRate, 1, objective, server(LoadAxis::kRate, limit, loads));
    const double found = result->verdict.at("highest_load_that_meets").as_double();
    EXPECT_LE(found, limit);
    EXPECT_GE(found * (1 + kSearchStep), limit);
    EXPECT_DOUBLE_EQ(result->verdict.at("request_goodput").as_double(), std::min(found, 8.0));
  }
}

// Good answers while a queue grows: too short a test shows nothing else.
TEST(Search, ARateMustBeOneThatTheServerKeepsUpWith) {
  std::vector<double> loads;
  const auto result =
      run_search(LoadAxis::kRate, 1, *Objective::parse("ttft=1s,p=90"), server(LoadAxis::kRate, 1e9, loads));
  const double found = result->verdict.at("highest_load_that_meets").as_double();
  EXPECT_LE(found * kMinKeptUp, 8.0);
  EXPECT_GE(found * (1 + kSearchStep) * kMinKeptUp, 8.0);
}

TEST(Search, SaysWhenNoLoadMeetsOrEveryOneDoes) {
  const Objective objective = *Objective::parse("ttft=1s,p=90");
  std::vector<double> loads;
  const auto none =
      run_search(LoadAxis::kConcurrency, 1, objective, server(LoadAxis::kConcurrency, 0, loads));
  EXPECT_TRUE(none->verdict.at("highest_load_that_meets").is_null());
  EXPECT_EQ(loads, std::vector<double>{1});
  loads.clear();
  const auto all =
      run_search(LoadAxis::kConcurrency, 1, objective, server(LoadAxis::kConcurrency, 1e9, loads));
  EXPECT_TRUE(all->verdict.at("lowest_load_that_does_not").is_null());
  EXPECT_EQ(loads.back(), kMaxConcurrency);
}

TEST(Objective, AnAnswerWithoutATokenHasNoFirstOneInTime) {
  RequestRecord record;
  record.end = 0.5;
  EXPECT_TRUE(is_good(record, *Objective::parse("e2el=1s,p=90")));
  EXPECT_FALSE(is_good(record, *Objective::parse("ttft=1s,p=90")));
  record.content_times = {0.25};
  record.first_content = record.last_content = 0.25;
  EXPECT_TRUE(
      is_good(record, *Objective::parse("ttft=1s,tpot=1ms,p=90")));  // one token has no time between two
}

TEST(AtLoad, GivesEveryStepPromptsAndEnoughRequests) {
  LoadTestOptions options;
  options.requests = 10;
  const auto high = at_load(options, LoadAxis::kConcurrency, 64, 3);
  EXPECT_EQ(high.concurrency, 64);
  EXPECT_EQ(high.requests, 128);
  EXPECT_NE(high.part, at_load(options, LoadAxis::kConcurrency, 64, 4).part);
  EXPECT_EQ(at_load(options, LoadAxis::kRate, 2.5, 0).rate, 2.5);
  EXPECT_EQ(at_load(options, LoadAxis::kRate, 2.5, 0).requests, 10);
  EXPECT_EQ(at_load(options, LoadAxis::kRate, 2.5, 0, true).requests, 25);
  EXPECT_EQ(at_load(options, LoadAxis::kRate, 0.5, 0, true).requests, 10);
}

class Resume : public testing::Test {
 protected:
  Resume() {
    folder_ = std::filesystem::temp_directory_path() /
              fmt::format("qwen2-resume-{}-{}", getpid(), testing::UnitTest::GetInstance()->random_seed());
    std::filesystem::create_directories(folder_);
    result_.planned = 5;
    result_.date = "20260101-000000";
    result_.duration = 2.5;
    result_.interrupted = true;
    result_.segments = {{"20260101-000000", 2.5, 2}};
    result_.timeline = {{0.5, {}, 100, 2, 1, 7, 3}};
    for (const int64_t index : {1, 3}) {
      RequestRecord record;
      record.index = index;
      record.scheduled = 0.25;
      record.sent = 0.5;
      record.content_times = {0.75, 1};
      record.first_content = 0.75;
      record.last_content = 1;
      record.end = 1.25;
      record.status = 200;
      record.prompt_tokens = 4;
      record.completion_tokens = 2;
      record.text = fmt::format("answer {}", index);
      if (index == 3) record.failure = "wrong_length";
      if (index == 3) record.detail = "too short";
      result_.records.push_back(record);
    }
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write() const {
    ASSERT_TRUE(write_file(file(), json::serialize(to_json(options_, result_))));
    ASSERT_TRUE(write_file(requests_path(file()), requests_jsonl(result_)));
  }
  [[nodiscard]] std::filesystem::path file() const { return folder_ / "run.json"; }

  std::filesystem::path folder_;
  LoadTestOptions options_;
  LoadTestResult result_;
  Measured measured_{options_, "", std::string(name_of(result_.dialect.kind)), nullptr};
};

TEST_F(Resume, ReadsWhatWasWritten) {
  EXPECT_EQ(requests_path(file()).filename(), "run.requests.jsonl");
  EXPECT_EQ(requests_path(file(), "step2").filename(), "run.step2.requests.jsonl");
  write();
  const auto read = read_earlier(file(), measured_);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(requests_jsonl(*read), requests_jsonl(result_));
  EXPECT_EQ(read->records[1].text, "answer 3");
  EXPECT_EQ(read->duration, 2.5);
  ASSERT_EQ(read->segments.size(), 1U);
  ASSERT_EQ(read->timeline.size(), 1U);
  EXPECT_EQ(read->timeline[0].kv_pages_used, 7);
}

// An error's body need not be text; the files must be.
TEST_F(Resume, KeepsWhatIsNoText) {
  result_.records[0].failure = "http_5xx";
  result_.records[0].detail = "bad \xff byte";
  result_.records[1].text = "\xc3";
  write();
  const auto read = read_earlier(file(), measured_);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->records[0].detail, "bad \xEF\xBF\xBD byte");
}

TEST_F(Resume, RefusesAnotherTestAndDamagedFiles) {
  write();
  Measured other = measured_;
  other.options.seed = 5;
  EXPECT_NE(read_earlier(file(), other).error().message.find("'seed'"), std::string::npos);
  other = measured_;
  other.model = "another";
  EXPECT_NE(read_earlier(file(), other).error().message.find("'model_id'"), std::string::npos);
  other = measured_;
  other.backend = "vllm";
  EXPECT_NE(read_earlier(file(), other).error().message.find("'backend'"), std::string::npos);
  other = measured_;
  other.service = json::object{{"precision", "int4"}};
  EXPECT_NE(read_earlier(file(), other).error().message.find("'precision'"), std::string::npos);
  EXPECT_NE(read_earlier(folder_ / "none.json", measured_).error().message.find("none.json"),
            std::string::npos);
  const std::string lines = requests_jsonl(result_);
  for (const std::string& damaged :
       {lines + lines, std::string("{}\n"), std::string("x\n"), lines.substr(0, 40)}) {
    ASSERT_TRUE(write_file(requests_path(file()), damaged));
    const auto read = read_earlier(file(), measured_);
    ASSERT_FALSE(read);
    EXPECT_NE(read.error().message.find("line"), std::string::npos) << read.error().message;
  }
  ASSERT_TRUE(write_file(file(), "[]"));
  EXPECT_FALSE(read_earlier(file(), measured_));
}

}  // namespace
}  // namespace qwen2
