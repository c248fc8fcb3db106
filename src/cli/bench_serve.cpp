#include <unistd.h>

#include <cstdio>

#include "base/machine.h"
#include "base/subprocess.h"
#include "cli/cli.h"
#include "loadgen/load_test.h"

namespace qwen2::cli {
namespace {

namespace json = boost::json;

struct BenchServeFlags {
  LoadTestOptions test;
  ModelFlags model;  // to start the service, or for its tokeniser
  std::string endpoint = "completions";
  std::string policy = "continuous";
  std::string output;
  int64_t max_queue_requests = 64;
  int64_t show_answers = 0;
  bool no_stream = false;
};

// The flags of the service that --model starts: those that the user gave here.
std::vector<std::string> serve_arguments(const BenchServeFlags& flags) {
  std::vector<std::string> arguments{executable_path(),
                                     "serve",
                                     "--quiet",
                                     "--port",
                                     "0",
                                     "--policy",
                                     flags.policy,
                                     "--max-queue-requests",
                                     std::to_string(flags.max_queue_requests)};
  for (const CLI::Option* option : flags.model.options) {
    if (option->count() == 0) continue;
    arguments.push_back(option->get_name());
    arguments.push_back(option->as<std::string>());
  }
  return arguments;
}

Result<std::string> wait_until_listening(Subprocess& service) {
  static constexpr std::string_view kReady = "listening on ";
  while (true) {
    auto line = service.read_line(600);
    if (!line) return within("the service did not start", line.error());
    if (line->starts_with(kReady)) return line->substr(kReady.size());
  }
}

void show_progress(int64_t done, int64_t total, int64_t failed) {
  constexpr int64_t kWidth = 30;
  if (::isatty(STDERR_FILENO) == 0) return;
  const auto filled = static_cast<size_t>(done * kWidth / total);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  fmt::print(stderr, "\r[{}] {}/{} requests, {} failed{}", bar, done, total, failed,
             done == total ? "\n" : "");
  std::fflush(stderr);
}

Status bench_serve(BenchServeFlags& flags) {
  LoadTestOptions& test = flags.test;
  test.flavour = flags.endpoint == "chat"       ? ApiFlavour::kChat
                 : flags.endpoint == "generate" ? ApiFlavour::kGenerate
                                                : ApiFlavour::kCompletions;
  test.stream = !flags.no_stream;
  QWEN2_CHECK(check(test));
  if (test.url.empty() == flags.model.model.empty()) {
    return fail(ErrorKind::kInvalidArgument,
                "give either --url (a running service) or --model (one is started)");
  }
  QWEN2_TRY(const auto tokenizer, open_tokenizer(flags.model, true));
  QWEN2_TRY(const ChatTemplate chat, open_chat(flags.model));
  std::optional<Subprocess> service;
  if (test.url.empty()) {
    QWEN2_TRY(service, Subprocess::start(serve_arguments(flags)));
    QWEN2_TRY(test.url, wait_until_listening(*service));
  }
  QWEN2_TRY(const LoadTestResult result, run_load_test(test, *tokenizer, chat, show_progress));
  std::fputs(format_table(test, result).c_str(), stdout);
  for (int64_t i = 0; i < flags.show_answers && i < test.requests; ++i) {
    fmt::print("answer {}: {}\n", i, result.records[static_cast<size_t>(i)].text);
  }
  if (flags.output.empty()) return {};
  json::object root = to_json(test, result);
  if (!flags.model.model.empty()) {
    json::object served = to_json(flags.model);
    served["policy"] = flags.policy;
    root["service"] = std::move(served);
  }
  return write_result(flags.output, std::move(root), flags.model.model, test.seed);
}

}  // namespace

void add_bench_serve(CLI::App& app, Action& action) {
  auto flags = std::make_shared<BenchServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "Load-test an OpenAI-compatible service (closed loop)");
  flags->model.add_to(*command);
  command->get_option("--model")->required(false);
  LoadTestOptions& test = flags->test;
  command->add_option("--url", test.url,
                      "A running service, http://host:port; without it, --model is served for the test");
  command->add_option("--served-model", test.model,
                      "The model's name in the API (default: the first of /v1/models)");
  command->add_option("--endpoint", flags->endpoint, "completions, chat or generate")
      ->check(CLI::IsMember({"completions", "chat", "generate"}));
  command->add_option("--concurrency", test.concurrency, "Clients, each with one request at a time");
  command->add_option("--requests", test.requests, "Requests that are measured");
  command->add_option("--warmup", test.warmup, "Requests before the measurement");
  command->add_option("--ctx-len", test.ctx_len, "Prompt tokens of each request, exactly");
  command->add_option("--max-new-tokens", test.max_new_tokens, "Tokens of each answer");
  command->add_option("--temperature", test.temperature, "0 is greedy");
  command->add_option("--seed", test.seed, "Of the prompts");
  command->add_option("--timeout", test.timeout_seconds, "Seconds of one request");
  command->add_flag("--ignore-eos", test.ignore_eos, "Answers go on to --max-new-tokens");
  command->add_flag("--no-stream", flags->no_stream, "One response instead of events");
  command->add_option("--policy", flags->policy, "With --model: continuous or serial")
      ->check(CLI::IsMember({"continuous", "serial"}));
  command->add_option("--max-queue-requests", flags->max_queue_requests,
                      "With --model: requests that may wait");
  command->add_option("--show-answers", flags->show_answers, "Print the first N answers");
  command->add_option("--output", flags->output, "JSON file with the summary and every request");
  command->callback([flags, &action] { action = [flags] { return bench_serve(*flags); }; });
}

}  // namespace qwen2::cli
