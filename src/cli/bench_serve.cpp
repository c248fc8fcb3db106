#include <unistd.h>

#include <cmath>
#include <cstdio>

#include "base/interrupt.h"
#include "base/machine.h"
#include "base/memory.h"
#include "base/subprocess.h"
#include "cli/cli.h"
#include "loadgen/load_test.h"
#include "loadgen/result_file.h"
#include "loadgen/search.h"
#include "loadgen/table.h"

namespace qwen2::cli {
namespace {

namespace json = boost::json;

struct BenchServeFlags {
  LoadTestOptions test;
  ModelFlags model;  // to start the service, or for its tokeniser
  std::string backend = "auto";
  std::string endpoint = "completions";
  std::string arrivals = "poisson";
  std::string ctx_len = "2048";
  std::string max_new_tokens;
  std::string slo;
  std::string ladder_text;
  std::optional<Ladder> ladder;
  std::string search;
  std::string policy = "continuous";
  std::string output;
  std::string resume;
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

void show_requests(int64_t done, int64_t total, int64_t failed) {
  constexpr int64_t kWidth = 30;
  if (::isatty(STDERR_FILENO) == 0) return;
  const auto filled = static_cast<size_t>(done * kWidth / total);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  fmt::print(stderr, "\r[{}] {}/{} requests, {} failed{}", bar, done, total, failed,
             done == total ? "\n" : "");
  std::fflush(stderr);
}

// --ladder and --search, each with what it needs and what it excludes.
Status parse_series(BenchServeFlags& flags) {
  if (flags.ladder_text.empty() && flags.search.empty()) return {};
  if (!flags.ladder_text.empty() && !flags.search.empty())
    return fail(ErrorKind::kInvalidArgument, "--ladder and --search exclude each other");
  if (!flags.search.empty() && flags.slo.empty())
    return fail(ErrorKind::kInvalidArgument, "--search needs --slo: what the load is to meet");
  if (!flags.test.trace.empty()) {
    return fail(ErrorKind::kInvalidArgument,
                "--trace has its own load: neither --ladder nor --search goes with it");
  }
  if (flags.test.rate && flags.search != "rate")
    return fail(ErrorKind::kInvalidArgument, "--rate goes only with --search rate, which starts from it");
  if (flags.ladder_text.empty()) return {};
  QWEN2_TRY(flags.ladder, Ladder::parse(flags.ladder_text));
  return {};
}

// The flags that are text, as what they mean.
Status parse_flags(BenchServeFlags& flags) {
  LoadTestOptions& test = flags.test;
  test.flavour = flags.endpoint == "chat"       ? ApiFlavour::kChat
                 : flags.endpoint == "generate" ? ApiFlavour::kGenerate
                                                : ApiFlavour::kCompletions;
  test.arrivals = flags.arrivals == "constant" ? Arrivals::kConstant
                  : flags.arrivals == "gamma"  ? Arrivals::kGamma
                                               : Arrivals::kPoisson;
  test.backend = server_kind_of(flags.backend);
  test.stream = !flags.no_stream;
  QWEN2_TRY(test.ctx_len, Lengths::parse(flags.ctx_len, "--ctx-len"));
  if (!flags.max_new_tokens.empty()) {
    QWEN2_TRY(test.max_new_tokens, Lengths::parse(flags.max_new_tokens, "--max-new-tokens"));
  }
  if (!flags.slo.empty()) {
    QWEN2_TRY(test.objective, Objective::parse(flags.slo));
  }
  QWEN2_CHECK(check(test));
  if (test.url.empty() == flags.model.model.empty()) {
    return fail(ErrorKind::kInvalidArgument,
                "give either --url (a running service) or --model (one is started)");
  }
  if (flags.output.empty()) flags.output = flags.resume;
  return parse_series(flags);
}

// One run of the program: the service, if it is ours, and what every test needs.
class Bench {
 public:
  explicit Bench(BenchServeFlags& flags) : flags_(flags) {}

  Status run() {
    QWEN2_TRY(tokenizer_, open_tokenizer(flags_.model, true));
    QWEN2_TRY(chat_, open_chat(flags_.model, &*tokenizer_));
    flags_.test.tokenizer = tokenizer_name(flags_.model);
    if (flags_.test.url.empty()) {
      QWEN2_TRY(service_, Subprocess::start(serve_arguments(flags_)));
      QWEN2_TRY(flags_.test.url, wait_until_listening(*service_));
      flags_.test.service_pid = service_->pid();
    }
    QWEN2_TRY(target_, find_target(flags_.test));
    return !flags_.ladder && flags_.search.empty() ? run_one() : run_several();
  }

 private:
  Result<LoadTestResult> test(const LoadTestOptions& options, std::optional<LoadTestResult> earlier) {
    const LoopHooks hooks{show_requests, interrupted, nullptr};
    return run_load_test(options, target_, *tokenizer_, chat_, hooks, std::move(earlier));
  }

  // The flags of the service that this test started; null where it runs already.
  [[nodiscard]] json::value service_flags() const {
    if (flags_.model.model.empty()) return nullptr;
    json::object served = to_json(flags_.model);
    served["policy"] = flags_.policy;
    served["max_queue_requests"] = flags_.max_queue_requests;
    return served;
  }
  [[nodiscard]] Measured measured(const LoadTestOptions& options) const {
    return {options, target_.model, std::string(name_of(target_.dialect.kind)), service_flags()};
  }

  // The result's JSON; its requests' lines are written beside the output.
  Result<json::object> keep(const LoadTestOptions& options, const LoadTestResult& result,
                            const std::string& step) {
    json::object root = to_json(options, result);
    if (json::value service = service_flags(); service.is_object()) root["service"] = std::move(service);
    if (flags_.output.empty()) return root;
    const auto path = requests_path(flags_.output, step);
    QWEN2_CHECK(write_file(path, requests_jsonl(result)));
    root["requests_file"] = path.filename().string();
    return root;
  }

  Status run_one() {
    std::optional<LoadTestResult> earlier;
    if (!flags_.resume.empty()) {
      QWEN2_TRY(earlier, read_earlier(flags_.resume, measured(flags_.test)));
    }
    QWEN2_TRY(const LoadTestResult result, test(flags_.test, std::move(earlier)));
    std::fputs(format_table(flags_.test, result).c_str(), stdout);
    for (size_t i = 0; i < std::min<size_t>(static_cast<size_t>(flags_.show_answers), result.records.size());
         ++i)
      fmt::print("answer {}: {}\n", result.records[i].index, result.records[i].text);
    QWEN2_TRY(json::object root, keep(flags_.test, result, ""));
    if (!flags_.output.empty())
      QWEN2_CHECK(write_result(flags_.output, std::move(root), flags_.model.model, flags_.test.seed));
    return result.interrupted ? interruption() : Status();
  }

  // The steps that an interrupted ladder or search has finished, by their load.
  Status read_steps() {
    if (flags_.resume.empty()) return {};
    QWEN2_TRY(const std::string text, read_text_file(flags_.resume, size_t{2} << 30));
    json::error_code code;
    const json::value root = json::parse(text, code);
    const json::value* steps = code ? nullptr : root.find_pointer("/steps", code);
    if (steps == nullptr || !steps->is_array()) {
      return fail(ErrorKind::kFormat, "--resume '{}' is not the result of a ladder or a search",
                  flags_.resume);
    }
    for (const json::value& value : steps->get_array()) {
      const json::object* step = value.if_object();
      const json::value* load = step == nullptr ? nullptr : step->if_contains("load");
      const json::value* part = step == nullptr ? nullptr : step->if_contains("interrupted");
      if (load == nullptr || part == nullptr || !load->is_number() || part->is_null()) {
        return fail(ErrorKind::kFormat, "--resume '{}': a step has no 'load' or no 'interrupted'",
                    flags_.resume);
      }
      if (*part == json::value(false)) earlier_steps_.push_back({load->to_number<double>(code), *step});
    }
    return {};
  }

  Result<LoadStep> run_step(LoadAxis axis, double load, size_t step) {
    const LoadTestOptions options = at_load(flags_.test, axis, load, step, !flags_.search.empty());
    for (const LoadStep& earlier : earlier_steps_) {
      // A load may have been written with a digit less.
      if (std::abs(earlier.load - load) > 1e-9 * load) continue;
      QWEN2_CHECK(check_same(earlier.result, measured(options), flags_.resume));
      return earlier;
    }
    fmt::print("step {}: {} {}\n", step + 1, name_of(axis), load);
    std::fflush(stdout);
    QWEN2_TRY(const LoadTestResult result, test(options, std::nullopt));
    QWEN2_TRY(json::object root, keep(options, result, fmt::format("step{}", step + 1)));
    return LoadStep{load, std::move(root)};
  }

  Status run_several() {
    QWEN2_CHECK(read_steps());
    QWEN2_TRY(const SearchResult result, run_all_steps());
    std::fputs(format_table(result).c_str(), stdout);
    if (!flags_.output.empty())
      QWEN2_CHECK(write_result(flags_.output, to_json(result), flags_.model.model, flags_.test.seed));
    if (result.failed) return std::unexpected(*result.failed);
    return result.interrupted ? interruption() : Status();
  }

  Result<SearchResult> run_all_steps() {
    if (flags_.ladder) {
      return run_ladder(*flags_.ladder,
                        [&](double load, size_t step) { return run_step(flags_.ladder->axis, load, step); });
    }
    const LoadAxis axis = *load_axis_of(flags_.search);
    const double first = axis == LoadAxis::kRate ? flags_.test.rate.value_or(1) : 1;
    return run_search(axis, first, *flags_.test.objective,
                      [&](double load, size_t step) { return run_step(axis, load, step); });
  }

  [[nodiscard]] Status interruption() const {
    if (flags_.output.empty())
      return fail(ErrorKind::kInterrupted, "interrupted; without --output nothing is kept");
    return fail(ErrorKind::kInterrupted,
                "interrupted; '{}' has what was done, and the same command with --resume {} goes on",
                flags_.output, flags_.output);
  }

  BenchServeFlags& flags_;
  InterruptGuard guard_;
  std::optional<Tokenizer> tokenizer_;
  ChatTemplate chat_;
  std::optional<Subprocess> service_;
  Target target_;
  std::vector<LoadStep> earlier_steps_;
};

Status bench_serve(BenchServeFlags& flags) {
  QWEN2_CHECK(parse_flags(flags));
  return Bench(flags).run();
}

void add_load_flags(CLI::App& command, BenchServeFlags& flags) {
  LoadTestOptions& test = flags.test;
  command.add_option("--concurrency", test.concurrency,
                     "Closed loop: clients, each with one request at a time");
  command.add_option("--ramp", test.ramp,
                     "Closed loop: seconds over which the clients start (default: one request's time)");
  command.add_option("--rate", test.rate, "Open loop: requests a second, whatever becomes of them");
  command.add_option("--arrivals", flags.arrivals, "Open loop: poisson, constant or gamma")
      ->check(CLI::IsMember({"poisson", "constant", "gamma"}));
  command.add_option("--burstiness", test.burstiness, "Shape of gamma: 1 is poisson, less is burstier");
  command.add_option("--trace", test.trace,
                     "Arrivals and lengths from a file: JSONL, Azure's or BurstGPT's CSV");
  command.add_option("--speed", test.speed, "Of the trace's clock");
  command.add_option("--ladder", flags.ladder_text,
                     "One test after another until saturation: concurrency=1,2,4 or rate=1,2");
  command.add_option("--search", flags.search, "The highest rate or concurrency that meets --slo")
      ->check(CLI::IsMember({"rate", "concurrency"}));
  command.add_option("--slo", flags.slo, "What a good request meets: ttft=2s,tpot=100ms,e2el=10s,p=99");
}

void add_request_flags(CLI::App& command, BenchServeFlags& flags) {
  LoadTestOptions& test = flags.test;
  command.add_option("--requests", test.requests,
                     "Requests that are measured (default: 15, or all of the trace or the prompts)");
  command.add_option("--warmup", test.warmup, "Requests before the measurement");
  command.add_option("--prompts", test.prompts,
                     "Prompts from a file: ShareGPT's JSON, or JSONL with \"prompt\"");
  command.add_option("--ctx-len", flags.ctx_len,
                     "Prompt tokens of each request, exactly: N, uniform:LOW:HIGH, normal:MEAN:STD:LOW:HIGH, "
                     "lognormal:MEDIAN:SIGMA:LOW:HIGH");
  command.add_option(
      "--max-new-tokens", flags.max_new_tokens,
      "Tokens of each answer, as --ctx-len (default: 64, or as long as the answers of --prompts)");
  command.add_option("--shared-prefix", test.shared_prefix, "Tokens that all prompts begin with");
  command.add_option("--temperature", test.temperature, "0 is greedy");
  command.add_option("--seed", test.seed, "Of the prompts, lengths and arrivals");
  command.add_option("--timeout", test.timeout_seconds, "Seconds of one request");
  command.add_flag("--ignore-eos", test.ignore_eos, "Answers go on to --max-new-tokens");
  command.add_flag("--no-stream", flags.no_stream, "One response instead of events");
}

}  // namespace

void add_bench_serve(CLI::App& app, Action& action) {
  auto flags = std::make_shared<BenchServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "Load-test a service");
  flags->model.add_to(*command);
  add_chat_flags(*command, flags->model);
  command->get_option("--model")->required(false);
  LoadTestOptions& test = flags->test;
  command->add_option("--url", test.url,
                      "A running service, http://host:port; without it, --model is served for the test");
  command
      ->add_option("--backend", flags->backend,
                   "What the service is: auto, qwen2, openai, llamacpp, vllm, tgi or ollama")
      ->check(CLI::IsMember({"auto", "qwen2", "openai", "llamacpp", "vllm", "tgi", "ollama"}));
  command->add_option("--served-model", test.model,
                      "The model's name in the API (default: the first of /v1/models)");
  command->add_option("--endpoint", flags->endpoint, "completions, chat or generate")
      ->check(CLI::IsMember({"completions", "chat", "generate"}));
  add_load_flags(*command, *flags);
  add_request_flags(*command, *flags);
  command->add_option("--policy", flags->policy, "With --model: continuous or serial")
      ->check(CLI::IsMember({"continuous", "serial"}));
  command->add_option("--max-queue-requests", flags->max_queue_requests,
                      "With --model: requests that may wait");
  command->add_option("--sample-interval", test.sample_interval, "Seconds between two looks at the service");
  command->add_option("--show-answers", flags->show_answers, "Print the first N answers");
  command->add_option("--output", flags->output,
                      "JSON file of the result; its requests go to a .requests.jsonl beside");
  command->add_option("--resume", flags->resume, "Go on with the interrupted run of this --output");
  command->callback([flags, &action] { action = [flags] { return bench_serve(*flags); }; });
}

}  // namespace qwen2::cli
