#include <gtest/gtest.h>

#include "base/units.h"
#include "paths.h"
#include "server/openai_schema.h"

namespace qwen2 {
namespace {

class SchemaTest : public testing::Test {
 protected:
  SchemaTest() {
    model_.name = "demo";
    model_.tokenizer = &tokenizer_;
    model_.max_model_len = 1000;
  }
  // The error's "status param: message", or "ok".
  std::string outcome(Endpoint endpoint, const std::string& body) {
    const auto parsed = parse_request(endpoint, body, model_);
    if (parsed) return "ok";
    return fmt::format("{} {}: {}", parsed.error().status, parsed.error().param, parsed.error().message);
  }

  Tokenizer tokenizer_ = *Tokenizer::load(test::demo_model());
  ServedModel model_;
};

TEST_F(SchemaTest, ReadsAChat) {
  const auto parsed = parse_request(Endpoint::kChat,
                                    R"({"model":"demo","messages":[{"role":"developer","content":"Be brief."},
          {"role":"user","content":[{"type":"text","text":"H"},{"type":"text","text":"i"}]}],
          "max_completion_tokens":7,"temperature":0.5,"top_p":0.9,"top_k":-1,"seed":-3,"stop":["a","b"],"stream":true,
          "stream_options":{"include_usage":true},"n":1,"logprobs":false,"tools":[],"presence_penalty":0,"user":"me"})",
                                    model_);
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(
      tokenizer_.decode(parsed->generation.prompt),
      "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(parsed->generation.max_new_tokens, 7);
  EXPECT_EQ(parsed->generation.sampling.top_k, 0);
  EXPECT_EQ(parsed->generation.sampling.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(parsed->generation.stop.size(), 2U);
  EXPECT_TRUE(parsed->stream);
  EXPECT_TRUE(parsed->include_usage);
}

TEST_F(SchemaTest, ReadsPromptsInEveryForm) {
  const auto prompt = [&](const std::string& value) {
    const auto parsed = parse_request(Endpoint::kCompletions, R"({"prompt":)" + value + "}", model_);
    return parsed ? parsed->generation.prompt : std::vector<TokenId>{-1};
  };
  EXPECT_EQ(prompt("\"Hi\""), *tokenizer_.encode("Hi"));
  EXPECT_EQ(prompt("[\"Hi\"]"), *tokenizer_.encode("Hi"));
  EXPECT_EQ(prompt("[4,5]"), (std::vector<TokenId>{4, 5}));
  EXPECT_EQ(prompt("[[4,5]]"), (std::vector<TokenId>{4, 5}));
}

TEST_F(SchemaTest, NamesTheFieldThatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{", "400 : the body is not valid JSON"},
      {"[]", "400 : the body must be"},
      {R"({"prompt":"a","model":"gpt-4"})", "404 model: "},
      {R"({"prompt":"a","model":3})", "400 model: "},
      {R"({})", "400 prompt: "},
      {R"({"prompt":7})", "400 prompt: "},
      {R"({"prompt":[1,"a"]})", "400 prompt: "},
      {R"({"prompt":[-1]})", "400 prompt: "},
      {R"({"prompt":[1.5]})", "400 prompt: "},
      {R"({"prompt":["a","b"]})", "400 prompt: several"},
      {R"({"prompt":"a","max_tokens":"5"})", "400 max_tokens: "},
      {R"({"prompt":"a","max_tokens":1.5})", "400 max_tokens: "},
      {R"({"prompt":"a","temperature":"hot"})", "400 temperature: "},
      {R"({"prompt":"a","temperature":1e999})", "400"},
      {R"({"prompt":"a","stream":1})", "400 stream: "},
      {R"({"prompt":"a","stream_options":1})", "400 stream_options: "},
      {R"({"prompt":"a","stream_options":{"include_usage":2}})", "400 include_usage: "},
      {R"({"prompt":"a","stop":5})", "400 stop: "},
      {R"({"prompt":"a","stop":["a",5]})", "400 stop: "},
      {R"({"prompt":"a","seed":"x"})", "400 seed: "},
      {R"({"prompt":"a","n":2})", "400 n: "},
      {R"({"prompt":"a","best_of":3})", "400 best_of: "},
      {R"({"prompt":"a","logprobs":5})", "400 logprobs: "},
      {R"({"prompt":"a","echo":true})", "400 echo: "},
      {R"({"prompt":"a","presence_penalty":0.5})", "400 presence_penalty: "},
      {R"({"prompt":"a","tools":[{}]})", "400 tools: "},
  };
  for (const auto& [body, expected] : cases) {
    const std::string actual = outcome(Endpoint::kCompletions, body);
    EXPECT_TRUE(actual.starts_with(expected)) << body << " -> " << actual;
  }
  for (const char* messages :
       {"7", "[]", "[7]", R"([{"content":"a"}])", R"([{"role":"robot","content":"a"}])",
        R"([{"role":"user"}])", R"([{"role":"user","content":7}])",
        R"([{"role":"user","content":[{"type":"image_url"}]}])"}) {
    const std::string actual = outcome(Endpoint::kChat, fmt::format(R"({{"messages":{}}})", messages));
    EXPECT_TRUE(actual.starts_with("400 messages")) << messages << " -> " << actual;
  }
  EXPECT_TRUE(outcome(Endpoint::kChat, "{}").starts_with("400 messages"));
  EXPECT_TRUE(outcome(Endpoint::kChat, std::string(2000, '[')).starts_with("400"));
}

TEST_F(SchemaTest, ErrorsHaveOpenAisShape) {
  const HttpError full = to_http_error({ErrorKind::kUnavailable, "the queue is full: ..."}, 3);
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.retry_after, 3);
  const auto body = boost::json::parse(full.body()).at("error");
  EXPECT_EQ(body.at("code").as_string(), "queue_full");
  EXPECT_TRUE(body.at("param").is_null());
  EXPECT_EQ(to_http_error({ErrorKind::kUnavailable, "the service is shutting down"}, 1).status, 503);
  EXPECT_EQ(to_http_error({ErrorKind::kInvalidArgument, "x"}, 1).status, 400);
  EXPECT_EQ(to_http_error({ErrorKind::kInternal, "x"}, 1).status, 500);
}

TEST(Units, BytesAreReadAndWritten) {
  EXPECT_EQ(*parse_bytes("6GiB"), 6 * kGiB);
  EXPECT_EQ(*parse_bytes("1.5 GB"), 1500000000U);
  EXPECT_EQ(*parse_bytes("4096"), 4096U);
  for (const char* bad : {"", "GiB", "-1", "6 GiBs", "1e30GiB", "nan"}) EXPECT_FALSE(parse_bytes(bad)) << bad;
  EXPECT_EQ(format_bytes(3 * kGiB / 2), "1.50 GiB");
  EXPECT_EQ(format_bytes(12), "12 B");
}

}  // namespace
}  // namespace qwen2
