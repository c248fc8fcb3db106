#include <gtest/gtest.h>

#include <set>

#include "loadgen/http_client.h"
#include "loadgen/sse.h"
#include "loadgen/statistics.h"
#include "loadgen/workload.h"
#include "paths.h"
#include "random_data.h"

namespace qwen2 {
namespace {

TEST(Statistics, PercentilesInterpolateBetweenRanks) {
  const std::vector<double> sorted{10, 20, 30, 40};
  EXPECT_DOUBLE_EQ(percentile(sorted, 0), 10);
  EXPECT_DOUBLE_EQ(percentile(sorted, 50), 25);
  EXPECT_DOUBLE_EQ(percentile(sorted, 95), 38.5);
  EXPECT_DOUBLE_EQ(percentile(sorted, 100), 40);
  EXPECT_DOUBLE_EQ(percentile({7}, 99), 7);
}

TEST(Statistics, SummariesSayWhenThereAreTooFewSamples) {
  const Summary summary = summarise({3, 1, 2});
  EXPECT_EQ(summary.n, 3U);
  EXPECT_DOUBLE_EQ(summary.mean, 2);
  EXPECT_DOUBLE_EQ(summary.p50, 2);
  EXPECT_FALSE(summary.enough_for(95));
  EXPECT_TRUE(summarise(std::vector<double>(20, 1.0)).enough_for(95));
  EXPECT_FALSE(summarise(std::vector<double>(99, 1.0)).enough_for(99));
  EXPECT_TRUE(summarise(std::vector<double>(100, 1.0)).enough_for(99));
  EXPECT_EQ(summarise({}).n, 0U);
}

TEST(Sse, SplitsAnywhere) {
  const std::string stream =
      "data: one\n\n: a comment\nevent: x\ndata:two\r\ndata: lines\r\n\r\nid: 4\n\ndata\n\ndata: "
      "[DONE]\n\ndata: cut";
  const std::vector<std::string> expected{"one", "two\nlines", "", "[DONE]"};
  for (int round = 0; round < 200; ++round) {
    SseParser parser;
    std::vector<std::string> events;
    for (size_t at = 0; at < stream.size();) {
      const auto count = static_cast<size_t>(test::uniform(1, 9));
      for (std::string& event : parser.push(std::string_view(stream).substr(at, count)))
        events.push_back(std::move(event));
      at += count;
    }
    ASSERT_EQ(events, expected);
  }
}

TEST(Url, IsTakenApart) {
  const auto plain = parse_url("http://127.0.0.1:8000");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->host, "127.0.0.1");
  EXPECT_EQ(plain->port, "8000");
  EXPECT_EQ(plain->prefix, "");
  EXPECT_EQ(parse_url("http://localhost:1/v1/")->prefix, "");
  EXPECT_EQ(parse_url("http://localhost/engines/x/v1")->prefix, "/engines/x");
  EXPECT_EQ(parse_url("http://[::1]:9")->host, "::1");
  EXPECT_EQ(parse_url("http://localhost")->port, "80");
  EXPECT_FALSE(parse_url("https://localhost"));
  EXPECT_FALSE(parse_url("localhost:8000"));
  EXPECT_FALSE(parse_url("http://"));
}

TEST(Workload, PromptsHaveExactLengthsAndDiffer) {
  const auto tokenizer = Tokenizer::load(test::demo_model());
  ASSERT_TRUE(tokenizer);
  const auto maker = PromptMaker::create(*tokenizer);
  ASSERT_TRUE(maker) << maker.error().message;
  std::set<std::string> starts;
  for (uint64_t index = 0; index < 50; ++index) {
    const auto length = test::uniform(1, 3000);
    const std::string prompt = maker->make(length, 1, index);
    EXPECT_EQ(static_cast<int64_t>(tokenizer->encode(prompt)->size()), length);
    EXPECT_EQ(maker->make(length, 1, index), prompt);
    starts.insert(maker->make(20, 1, index));
  }
  EXPECT_EQ(starts.size(), 50U);
  EXPECT_NE(maker->make(20, 1, 0), maker->make(20, 2, 0));
}

}  // namespace
}  // namespace qwen2
