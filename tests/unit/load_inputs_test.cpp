// What a load test is made of: arrivals, lengths, objectives, traces, prompts, plans.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "base/memory.h"
#include "loadgen/arrivals.h"
#include "loadgen/lengths.h"
#include "loadgen/objective.h"
#include "loadgen/plan.h"
#include "loadgen/prompt_file.h"
#include "loadgen/statistics.h"
#include "loadgen/trace.h"
#include "loadgen/watch.h"
#include "paths.h"
#include "random_data.h"

namespace qwen2 {
namespace {

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view contents)
      : path_(std::filesystem::temp_directory_path() /
              fmt::format("qwen2-load-{}-{}", getpid(), test::generator()())) {
    EXPECT_TRUE(write_file(path_, contents));
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { std::filesystem::remove(path_); }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

Summary gaps(const std::vector<double>& times) {
  std::vector<double> out;
  for (size_t i = 1; i < times.size(); ++i) out.push_back(times[i] - times[i - 1]);
  return summarise(out);
}

// The mean gap is 1 / rate; its standard deviation against it is 1 / sqrt(shape). Bounds of more than five
// standard errors of 40,000 gaps.
TEST(ArrivalTimes, HaveTheirRateAndBurstiness) {
  const auto seed = static_cast<uint64_t>(test::uniform(0, 1 << 30));
  for (const double shape : {0.25, 1.0, 4.0}) {
    const auto times = arrival_times(Arrivals::kGamma, 5, shape, 40001, seed);
    EXPECT_EQ(times.front(), 0);
    const Summary s = gaps(times);
    EXPECT_NEAR(s.mean, 0.2, 0.2 * 0.06);
    EXPECT_NEAR(s.std / s.mean, 1 / std::sqrt(shape), 0.12 / std::sqrt(shape));
    EXPECT_GE(s.min, 0);
  }
  EXPECT_NEAR(gaps(arrival_times(Arrivals::kPoisson, 5, 0.25, 40001, seed)).std, 0.2, 0.02);
  EXPECT_NEAR(gaps(arrival_times(Arrivals::kConstant, 5, 1, 1001, seed)).std, 0, 1e-9);
  EXPECT_EQ(arrival_times(Arrivals::kPoisson, 5, 1, 50, 7), arrival_times(Arrivals::kPoisson, 5, 1, 50, 7));
  EXPECT_NE(arrival_times(Arrivals::kPoisson, 5, 1, 50, 7), arrival_times(Arrivals::kPoisson, 5, 1, 50, 8));
}

TEST(LengthsTest, StayWithinTheirBoundsAndReachThem) {
  std::mt19937_64 random(test::seed());
  for (const char* text : {"17", "uniform:5:9", "normal:100:30:60:140", "lognormal:50:1:10:400"}) {
    const auto lengths = Lengths::parse(text, "--ctx-len");
    ASSERT_TRUE(lengths) << lengths.error().message;
    EXPECT_EQ(Lengths::parse(lengths->text(), "")->text(), lengths->text());
    std::set<int64_t> seen;
    for (int i = 0; i < 4000; ++i) seen.insert(lengths->sample(random));
    EXPECT_EQ(*seen.begin(), lengths->low()) << text;
    EXPECT_EQ(*seen.rbegin(), lengths->high()) << text;
  }
  for (const char* text :
       {"", "0", "-3", "1.5", "many", "uniform:9:5", "uniform:0:5", "uniform:5", "normal:5:1",
        "normal:a:1:1:2", "lognormal:0:1:1:2", "lognormal:5:-1:1:2", "99999999999999", "5 "}) {
    const auto wrong = Lengths::parse(text, "--ctx-len");
    ASSERT_FALSE(wrong) << text;
    EXPECT_NE(wrong.error().message.find("--ctx-len"), std::string::npos);
  }
}

TEST(ObjectiveTest, ParsesTimesAndNamesWhatIsWrong) {
  const auto objective = Objective::parse("ttft=2s,tpot=100ms,p=95");
  ASSERT_TRUE(objective);
  EXPECT_DOUBLE_EQ(*objective->ttft, 2);
  EXPECT_DOUBLE_EQ(*objective->tpot, 0.1);
  EXPECT_FALSE(objective->e2el);
  EXPECT_EQ(objective->percent, 95);
  EXPECT_EQ(Objective::parse(objective->text())->text(), objective->text());
  for (const char* text :
       {"", "p=99", "ttft", "ttft=2", "ttft=-1s", "itl=1s", "ttft=1s,p=101", "ttft=1s,,", "ttft=xs"})
    EXPECT_FALSE(Objective::parse(text)) << text;
}

void expect_trace(std::string_view contents) {
  const TemporaryFile file(contents);
  const auto trace = read_trace(file.path());
  ASSERT_TRUE(trace) << trace.error().message;
  ASSERT_EQ(trace->entries.size(), 3U) << contents;
  const double arrivals[] = {0, 1.5, 60};
  const int64_t inputs[] = {100, 200, 300};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(trace->entries[i].arrival, arrivals[i], 1e-6);
    EXPECT_EQ(trace->entries[i].input_tokens, inputs[i]);
    EXPECT_EQ(trace->entries[i].output_tokens, static_cast<int64_t>(i) + 1);
  }
}

TEST(TraceTest, ReadsJsonLinesAzureAndBurstGpt) {
  expect_trace(
      "{\"arrival\": 10, \"input_tokens\": 100, \"output_tokens\": 1}\n\n"
      "{\"output_tokens\": 3, \"arrival\": 70.0, \"input_tokens\": 300}\n"
      "{\"arrival\": 11.5, \"input_tokens\": 200, \"output_tokens\": 2, \"model\": \"x\"}\n");
  expect_trace(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,100,1\r\n"
      "2023-11-17 00:00:01.0000000,200,2\r\n2023-11-17 00:00:59.5000000,300,3\r\n");
  expect_trace(
      "\xEF\xBB\xBFTimestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
      "5,ChatGPT,100,1,101,Conversation log\n5.5,\"GPT-4, big\",50,0,50,API log\n"
      "6.5,GPT-4,200,2,202,API log\n65,ChatGPT,300,3,303,\"Conversation log\"\n");
  expect_trace(
      "{\"Timestamp\": \"2023-11-16T10:00:00Z\", \"Request tokens\": 100, \"Response tokens\": 1}\n"
      "{\"Timestamp\": \"2023-11-16T10:00:01.5+00:00\", \"Request tokens\": 200, \"Response tokens\": 2}\n"
      "{\"Timestamp\": \"2023-11-16T10:01:00\", \"Request tokens\": 300, \"Response tokens\": 3}\n");
}

TEST(TraceTest, NamesFileAndLineOfWhatIsWrong) {
  for (const auto& [contents, expected] : std::vector<std::pair<std::string, std::string>>{
           {"", "no requests"},
           {"a,b,c\n1,2,3\n", "arrival"},
           {"arrival,input_tokens\n1,2\n", "output_tokens"},
           {"arrival,input_tokens,output_tokens\n1,2\n", "line 2"},
           {"arrival,input_tokens,output_tokens\n1,2,3\nx,2,3\n", "line 3"},
           {"arrival,input_tokens,output_tokens\n1,-2,3\n", "input_tokens"},
           {"arrival,input_tokens,output_tokens\n1,2,1e99\n", "output_tokens"},
           {"arrival,input_tokens,output_tokens\n2023-13-01 00:00:00,2,3\n", "2023-13-01"},
           {"{\"arrival\": 1, \"input_tokens\": 5}\n", "line 1"},
           {"{\"arrival\": \n", "line 1"}}) {
    const TemporaryFile file(contents);
    const auto trace = read_trace(file.path());
    ASSERT_FALSE(trace) << contents;
    EXPECT_NE(trace.error().message.find("--trace"), std::string::npos);
    EXPECT_NE(trace.error().message.find(expected), std::string::npos) << trace.error().message;
  }
  for (const char* text : {"", "2023-11-16", "2023-02-30 00:00:00", "2023-11-16 24:00:00",
                           "2023-11-16 10:00:00+02:00", "2023-11-16 10:00:00.", "2023/11/16 10:00:00"})
    EXPECT_FALSE(parse_date(text)) << text;
}

TEST(PromptFile, ReadsShareGptAndLines) {
  const TemporaryFile share(
      R"([{"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello there"}]},
          {"id": "b", "conversations": [{"from": "gpt", "value": "no"}]}, {"conversations": []},
          {"id": "c", "conversations": [{"from": "user", "value": "Alone"}]}])");
  const auto prompts = read_prompts(share.path());
  ASSERT_TRUE(prompts) << prompts.error().message;
  ASSERT_EQ(prompts->size(), 2U);
  EXPECT_EQ((*prompts)[0].prompt, "Hi");
  EXPECT_EQ((*prompts)[0].answer, "Hello there");
  EXPECT_EQ((*prompts)[1].answer, "");
  const TemporaryFile lines("{\"prompt\": \"x\", \"answer\": \"y\"}\n\n{\"prompt\": \"z\"}\n");
  EXPECT_EQ(read_prompts(lines.path())->size(), 2U);
  for (const char* wrong : {"", "[1]", "{\"text\": 1}", "[", "nothing", "[]"}) {
    const TemporaryFile file(wrong);
    const auto result = read_prompts(file.path());
    ASSERT_FALSE(result) << wrong;
    EXPECT_NE(result.error().message.find("--prompts"), std::string::npos) << result.error().message;
  }
}

class PlanTest : public testing::Test {
 protected:
  Result<Plan> make(const LoadTestOptions& options) {
    return make_plan(options, {ServerKind::kQwen2, options.flavour, true}, "m", tokenizer_, chat_);
  }
  static std::string prompt_of(const PlannedRequest& request) {
    const auto body = boost::json::parse(request.body);
    const auto* messages = body.as_object().if_contains("messages");
    return std::string(messages != nullptr ? messages->at(0).at("content").as_string()
                                           : body.at("prompt").as_string());
  }
  [[nodiscard]] int64_t count(const std::string& text) const {
    return static_cast<int64_t>(tokenizer_.encode(text)->size());
  }

  Tokenizer tokenizer_ = *Tokenizer::load(test::demo_model());
  ChatTemplate chat_ = *ChatTemplate::load(test::demo_model());
};

TEST_F(PlanTest, PromptsAreAsLongAsPlannedAndDiffer) {
  LoadTestOptions options;
  options.ctx_len = *Lengths::parse("uniform:20:90", "");
  options.max_new_tokens = *Lengths::parse("uniform:1:5", "");
  options.requests = 40;
  options.warmup = 3;
  const auto plan = make(options);
  ASSERT_TRUE(plan) << plan.error().message;
  std::set<std::string> starts;
  for (const auto* part : {&plan->warmup, &plan->requests}) {
    for (const PlannedRequest& request : *part) {
      EXPECT_EQ(count(prompt_of(request)), request.prompt_tokens);
      starts.insert(prompt_of(request).substr(0, 60));
    }
  }
  EXPECT_EQ(starts.size(), 43U);
  EXPECT_EQ(make(options)->requests[7].body, plan->requests[7].body);
  options.part = 1;
  EXPECT_NE(make(options)->requests[7].body, plan->requests[7].body);
}

TEST_F(PlanTest, SharesAPrefixOnlyWhenAsked) {
  LoadTestOptions options;
  options.ctx_len = 50;
  options.shared_prefix = 30;
  options.requests = 10;
  const auto plan = make(options);
  ASSERT_TRUE(plan);
  const std::string first = prompt_of(plan->requests[0]);
  for (size_t i = 1; i < 10; ++i) {
    const std::string other = prompt_of(plan->requests[i]);
    EXPECT_EQ(count(other), 50);
    const auto end = std::mismatch(first.begin(), first.end(), other.begin(), other.end()).first;
    const int64_t shared = count(std::string(first.begin(), end));
    EXPECT_GE(shared, 30);
    EXPECT_LT(shared, 35);
  }
}

TEST_F(PlanTest, FollowsATraceAndAPromptFile) {
  const TemporaryFile trace("arrival,input_tokens,output_tokens\n0,40,3\n4,50,6\n");
  LoadTestOptions options;
  options.trace = trace.path();
  options.speed = 2;
  auto plan = make(options);
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->requests.size(), 2U);
  EXPECT_EQ(plan->requests[1].offset, 2);
  EXPECT_EQ(count(prompt_of(plan->requests[1])), 50);
  EXPECT_EQ(plan->requests[1].max_new_tokens, 6);
  options.requests = 3;
  EXPECT_NE(make(options).error().message.find("--requests"), std::string::npos);
  options.requests = 2;
  options.speed = 1e-9;
  EXPECT_NE(make(options).error().message.find("request 2 comes after 4e+09 seconds"), std::string::npos);

  const TemporaryFile prompts(
      "{\"prompt\": \"What is a river?\", \"answer\": \"Water.\"}\n{\"prompt\": \"Lake\"}\n");
  LoadTestOptions written;
  written.prompts = prompts.path();
  written.flavour = ApiFlavour::kChat;
  plan = make(written);
  ASSERT_TRUE(plan) << plan.error().message;
  EXPECT_EQ(prompt_of(plan->requests[0]), "What is a river?");
  EXPECT_GT(plan->requests[0].prompt_tokens, count("What is a river?"));
  EXPECT_EQ(plan->requests[0].max_new_tokens, count("Water."));
  EXPECT_EQ(plan->requests[1].max_new_tokens, kDefaultNewTokens);
  EXPECT_FALSE(plan->requests[0].exact);
}

TEST(Metrics, AreReadFromPrometheusPages) {
  WatchSample sample;
  read_metrics(
      "# HELP vllm:num_requests_running Number\nvllm:num_requests_running{engine=\"0\",model_name=\"m x\"} "
      "3.0\n"
      "vllm:num_requests_running{engine=\"1\"} 2.0\nvllm:num_requests_running_total 9\n"
      "vllm:num_requests_waiting{engine=\"0\"} 7.0",
      sample);
  EXPECT_EQ(sample.running, 5);
  EXPECT_EQ(sample.waiting, 7);
  WatchSample other;
  read_metrics("llamacpp:requests_processing 1\nllamacpp:requests_deferred x\n", other);
  EXPECT_EQ(other.running, 1);
}

}  // namespace
}  // namespace qwen2
