// Other servers' answers, played back byte for byte, and what is asked of each.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/memory.h"
#include "loadgen/load_loop.h"
#include "paths.h"
#include "schedule_server.h"

namespace qwen2 {
namespace {

struct Exchange {
  RequestRecord record;
  std::string path;
  boost::json::object body;
};

// Sends one request to a server that answers with `file`.
Exchange play(const std::string& file, const Dialect& dialect) {
  const auto bytes = read_text_file(test::source_folder() / "tests/data/exchanges" / file);
  EXPECT_TRUE(bytes) << file;
  const test::PlaybackServer server(*bytes);
  PlannedRequest planned;
  planned.exact = false;
  planned.prompt_tokens = 5;
  planned.body = boost::json::serialize(body_of(dialect, {"m", "a b", 8, 0, false, 64}));
  LoopOptions options;
  options.call = {*parse_url(server.url()), dialect, {}, 30};
  const size_t index = 0;
  LoopResult result = run_loop(options, std::span(&planned, 1), std::span(&index, 1), {});
  EXPECT_EQ(result.records.size(), 1U);
  const std::string request = server.requests().at(0);
  Exchange exchange;
  exchange.record = result.records.at(0);
  exchange.path = request.substr(5, request.find(' ', 5) - 5);
  exchange.body = boost::json::parse(request.substr(request.find("\r\n\r\n") + 4)).as_object();
  return exchange;
}

struct Expected {
  const char* file;
  ServerKind kind;
  ApiFlavour flavour;
  const char* path;
  const char* text;
  size_t events;
  int64_t prompt_tokens;  // 5: the server does not say
  int64_t completion_tokens;
};

TEST(Exchanges, StreamsAreReadAsEachServerMeansThem) {
  constexpr auto kCompletions = ApiFlavour::kCompletions;
  constexpr auto kChat = ApiFlavour::kChat;
  for (const Expected& e : std::vector<Expected>{
           {"llamacpp/completions.http", ServerKind::kLlamaCpp, kCompletions, "/v1/completions", " a river",
            2, 3, 2},
           {"llamacpp/chat_reasoning.http", ServerKind::kLlamaCpp, kChat, "/v1/chat/completions",
            " it handlesRivers", 4, 17, 4},
           {"llamacpp/chat_timings_only.http", ServerKind::kLlamaCpp, kChat, "/v1/chat/completions", "Hi!", 2,
            17, 2},
           {"vllm/completions.http", ServerKind::kVllm, kCompletions, "/v1/completions", " The \u00e9", 4, 3,
            4},
           {"vllm/completions_several_tokens.http", ServerKind::kVllm, kCompletions, "/v1/completions",
            " one two three four five", 2, 3, 5},
           {"vllm/chat.http", ServerKind::kVllm, kChat, "/v1/chat/completions", "Hello", 3, 21, 3},
           {"tgi/generate_stream.http", ServerKind::kTgi, kCompletions, "/generate_stream", " a river", 3, 3,
            3},
           {"tgi/generate_stream_old.http", ServerKind::kTgi, kCompletions, "/generate_stream", " a river", 2,
            5, 2},
           {"ollama/generate.http", ServerKind::kOllama, kCompletions, "/api/generate", "That's", 3, 11, 3},
           {"ollama/generate_cached_prompt.http", ServerKind::kOllama, kCompletions, "/api/generate",
            "That's", 3, 5, 3},
           {"ollama/chat_thinking.http", ServerKind::kOllama, kChat, "/api/chat", "HmYes.", 3, 11, 3}}) {
    const Exchange got = play(e.file, {e.kind, e.flavour, true});
    EXPECT_EQ(got.record.failure, "") << e.file << ": " << got.record.detail;
    EXPECT_EQ(got.path, e.path) << e.file;
    EXPECT_EQ(got.record.text, e.text) << e.file;
    EXPECT_EQ(got.record.content_times.size(), e.events) << e.file;
    EXPECT_EQ(got.record.prompt_tokens, e.prompt_tokens) << e.file;
    EXPECT_EQ(got.record.completion_tokens, e.completion_tokens) << e.file;
  }
}

TEST(Exchanges, FailuresAreToldApart) {
  for (const auto& [file, kind, failure, words] :
       std::vector<std::tuple<const char*, ServerKind, const char*, const char*>>{
           {"llamacpp/stream_error.http", ServerKind::kLlamaCpp, "server_error", "Context size"},
           {"llamacpp/stream_error_old.http", ServerKind::kLlamaCpp, "server_error", "context shift"},
           {"llamacpp/loading.http", ServerKind::kLlamaCpp, "http_5xx", "Loading model"},
           {"vllm/stream_error.http", ServerKind::kVllm, "server_error", "EngineCore"},
           {"vllm/stream_error_old.http", ServerKind::kVllm, "server_error", "Internal error"},
           {"vllm/too_long.http", ServerKind::kVllm, "http_4xx", "maximum context length"},
           {"tgi/stream_error.http", ServerKind::kTgi, "server_error", "out of memory"},
           {"tgi/generate_stream_cut.http", ServerKind::kTgi, "cut_stream", "ended"},
           {"tgi/overloaded.http", ServerKind::kTgi, "http_429", "overloaded"},
           {"ollama/stream_error.http", ServerKind::kOllama, "server_error", "CUDA error"},
           {"ollama/cut.http", ServerKind::kOllama, "cut_stream", "ended"}}) {
    const Exchange got = play(file, {kind, ApiFlavour::kCompletions, true});
    EXPECT_EQ(got.record.failure, failure) << file;
    EXPECT_NE(got.record.detail.find(words), std::string::npos) << file << ": " << got.record.detail;
  }
}

TEST(Exchanges, WholeAnswersAreRead) {
  const Exchange tgi = play("tgi/generate.http", {ServerKind::kTgi, ApiFlavour::kCompletions, false});
  EXPECT_EQ(tgi.record.failure, "") << tgi.record.detail;
  EXPECT_EQ(tgi.path, "/generate");
  EXPECT_EQ(tgi.record.text, " a river");
  EXPECT_EQ(tgi.record.completion_tokens, 2);
  EXPECT_TRUE(tgi.record.content_times.empty());
  const Exchange ollama =
      play("ollama/generate_whole.http", {ServerKind::kOllama, ApiFlavour::kCompletions, false});
  EXPECT_EQ(ollama.record.failure, "") << ollama.record.detail;
  EXPECT_EQ(ollama.record.text, "Hello! How can I help you today?");
  EXPECT_EQ(ollama.record.prompt_tokens, 11);
  EXPECT_EQ(ollama.record.completion_tokens, 18);
  EXPECT_TRUE(ollama.record.content_times.empty());
}

TEST(Exchanges, EachServerIsAskedInItsOwnWords) {
  const Exchange tgi = play("tgi/generate_stream.http", {ServerKind::kTgi, ApiFlavour::kCompletions, true});
  EXPECT_EQ(tgi.body.at("inputs"), "a b");
  EXPECT_EQ(tgi.body.at("parameters").at("max_new_tokens"), 8);
  EXPECT_EQ(tgi.body.at("parameters").at("do_sample"), false);
  EXPECT_FALSE(tgi.body.at("parameters").as_object().contains("temperature"));  // 0 would be refused
  const Exchange ollama = play("ollama/generate.http", {ServerKind::kOllama, ApiFlavour::kCompletions, true});
  EXPECT_EQ(ollama.body.at("raw"), true);
  EXPECT_EQ(ollama.body.at("options").at("num_predict"), 8);
  EXPECT_EQ(ollama.body.at("options").at("num_ctx"), 64);
  const Exchange vllm = play("vllm/completions.http", {ServerKind::kVllm, ApiFlavour::kCompletions, true});
  EXPECT_EQ(vllm.body.at("max_tokens"), 8);
  EXPECT_EQ(vllm.body.at("stream_options").at("include_usage"), true);
  EXPECT_FALSE(check(Dialect{ServerKind::kTgi, ApiFlavour::kCompletions, true}, true));
  EXPECT_FALSE(check(Dialect{ServerKind::kOllama, ApiFlavour::kChat, true}, true));
  EXPECT_FALSE(check(Dialect{ServerKind::kVllm, ApiFlavour::kGenerate, true}, false));
  EXPECT_TRUE(check(Dialect{ServerKind::kLlamaCpp, ApiFlavour::kChat, true}, true));
}

}  // namespace
}  // namespace qwen2
