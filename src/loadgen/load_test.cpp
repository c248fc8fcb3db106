#include "loadgen/load_test.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <map>

#include "base/units.h"

namespace qwen2 {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;

// The bodies of all requests, made before the clock starts.
struct Plan {
  HttpCall call;  // without its body
  std::vector<std::string> bodies;
  const LoadTestOptions* options = nullptr;
};

json::object request_body(const LoadTestOptions& o, const std::string& model, const std::string& prompt) {
  json::object body;
  body["model"] = model;
  if (o.flavour == ApiFlavour::kChat) {
    body["messages"] = json::array{json::object{{"role", "user"}, {"content", prompt}}};
  } else {
    body["prompt"] = prompt;
  }
  body[o.flavour == ApiFlavour::kGenerate ? "max_new_tokens" : "max_tokens"] = o.max_new_tokens;
  body["temperature"] = o.temperature;
  body["stream"] = o.stream;
  if (o.stream && o.flavour != ApiFlavour::kGenerate)
    body["stream_options"] = json::object{{"include_usage", true}};
  if (o.ignore_eos) body["ignore_eos"] = true;
  return body;
}

// A different length than asked for means that the measurement is of something else.
void check_lengths(const LoadTestOptions& o, RequestRecord& record) {
  if (!record.failure.empty()) return;
  if (record.prompt_tokens >= 0 && record.prompt_tokens != o.ctx_len) {
    record.failure = "wrong_length";
    record.detail =
        fmt::format("the server counts {} prompt tokens, {} were sent", record.prompt_tokens, o.ctx_len);
  } else if (o.ignore_eos && record.completion_tokens >= 0 && record.completion_tokens != o.max_new_tokens) {
    record.failure = "wrong_length";
    record.detail = fmt::format("the answer has {} tokens, {} were asked for", record.completion_tokens,
                                o.max_new_tokens);
  }
}

struct Shared {
  const Plan* plan;
  std::vector<RequestRecord>* records;
  const Progress* progress;
  size_t first_body = 0;
  size_t next = 0;
  int64_t done = 0;
  int64_t failed = 0;
};

asio::awaitable<void> client(Shared& shared) {
  while (shared.next < shared.records->size()) {
    const size_t index = shared.next++;
    RequestRecord& record = (*shared.records)[index];
    record.index = static_cast<int64_t>(index);
    HttpCall call = shared.plan->call;
    call.body = shared.plan->bodies[shared.first_body + index];
    record.scheduled = now_seconds();
    co_await send_request(std::move(call), record);
    check_lengths(*shared.plan->options, record);
    ++shared.done;
    if (!record.failure.empty()) ++shared.failed;
    (*shared.progress)(shared.done, static_cast<int64_t>(shared.records->size()), shared.failed);
  }
}

void run_clients(const Plan& plan, size_t first_body, std::vector<RequestRecord>& records, int64_t clients,
                 const Progress& progress) {
  asio::io_context io(1);
  Shared shared{&plan, &records, &progress, first_body};
  for (int64_t i = 0; i < clients; ++i) asio::co_spawn(io, client(shared), asio::detached);
  io.run();
}

Result<std::string> served_model(const Url& url) {
  QWEN2_TRY(const std::string body, http_get(url, "/v1/models", 10));
  json::error_code code;
  const json::value root = json::parse(body, code);
  const json::value* id = code ? nullptr : root.find_pointer("/data/0/id", code);
  if (id == nullptr || !id->is_string())
    return fail(ErrorKind::kIo, "/v1/models does not name a model; use --served-model");
  return std::string(id->get_string());
}

Result<int64_t> words_per_prompt(const LoadTestOptions& o, const Tokenizer& tokenizer,
                                 const ChatTemplate& chat) {
  if (o.flavour != ApiFlavour::kChat) return o.ctx_len;
  const ChatMessage empty{"user", ""};
  QWEN2_TRY(const auto overhead, tokenizer.encode(chat.render(std::span(&empty, 1), true)));
  const int64_t left = o.ctx_len - static_cast<int64_t>(overhead.size());
  if (left < 1) {
    return fail(ErrorKind::kInvalidArgument,
                "--ctx-len {} is too short: the chat template alone has {} tokens", o.ctx_len,
                overhead.size());
  }
  return left;
}

// Every measured quantity of the requests that succeeded.
struct Measures {
  Summary ttft, tpot, itl, e2e, queue;
  double duration = 0;
  int64_t succeeded = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::map<std::string, int64_t> failures;
};

Measures measure(const LoadTestResult& result) {
  Measures m;
  std::vector<double> ttft, tpot, itl, e2e, queue;
  for (const RequestRecord& r : result.records) {
    if (!r.failure.empty()) {
      ++m.failures[r.failure];
      continue;
    }
    ++m.succeeded;
    m.prompt_tokens += std::max<int64_t>(0, r.prompt_tokens);
    m.completion_tokens += std::max<int64_t>(0, r.completion_tokens);
    e2e.push_back(r.end - r.scheduled);
    if (r.queue_seconds >= 0) queue.push_back(r.queue_seconds);
    if (r.content_times.empty()) continue;
    ttft.push_back(r.first_content - r.scheduled);
    if (r.completion_tokens > 1 && r.content_times.size() > 1) {
      tpot.push_back((r.last_content - r.first_content) / static_cast<double>(r.completion_tokens - 1));
    }
    for (size_t i = 1; i < r.content_times.size(); ++i)
      itl.push_back(r.content_times[i] - r.content_times[i - 1]);
  }
  m.ttft = summarise(std::move(ttft));
  m.tpot = summarise(std::move(tpot));
  m.itl = summarise(std::move(itl));
  m.e2e = summarise(std::move(e2e));
  m.queue = summarise(std::move(queue));
  m.duration = result.end - result.start;
  return m;
}

json::object record_json(const RequestRecord& r, double origin) {
  json::object object{{"index", r.index}, {"scheduled", r.scheduled - origin}, {"end", r.end - origin}};
  object["status"] = r.status;
  object["failure"] = r.failure.empty() ? json::value(nullptr) : json::value(r.failure);
  if (!r.detail.empty()) object["detail"] = r.detail;
  object["prompt_tokens"] = r.prompt_tokens;
  object["completion_tokens"] = r.completion_tokens;
  if (r.queue_seconds >= 0) object["queue_seconds"] = r.queue_seconds;
  json::array times;
  for (const double time : r.content_times) times.push_back(time - origin);
  object["content_times"] = std::move(times);
  object["text"] = r.text;
  return object;
}

std::string_view flavour_name(ApiFlavour flavour) {
  return flavour == ApiFlavour::kChat       ? "chat"
         : flavour == ApiFlavour::kGenerate ? "generate"
                                            : "completions";
}

}  // namespace

Status check(const LoadTestOptions& o) {
  const auto positive = [](std::string_view flag, int64_t value) -> Status {
    if (value >= 1) return {};
    return fail(ErrorKind::kInvalidArgument, "{} must be at least 1", flag);
  };
  QWEN2_CHECK(positive("--concurrency", o.concurrency));
  QWEN2_CHECK(positive("--requests", o.requests));
  QWEN2_CHECK(positive("--ctx-len", o.ctx_len));
  QWEN2_CHECK(positive("--max-new-tokens", o.max_new_tokens));
  if (o.warmup < 0) return fail(ErrorKind::kInvalidArgument, "--warmup must not be negative");
  return {};
}

Result<LoadTestResult> run_load_test(const LoadTestOptions& options, const Tokenizer& tokenizer,
                                     const ChatTemplate& chat, const Progress& progress) {
  QWEN2_CHECK(check(options));
  QWEN2_TRY(const Url url, parse_url(options.url));
  LoadTestResult result;
  result.model = options.model;
  if (result.model.empty()) {
    QWEN2_TRY(result.model, served_model(url));
  }
  QWEN2_TRY(const PromptMaker prompts, PromptMaker::create(tokenizer));
  QWEN2_TRY(const int64_t words, words_per_prompt(options, tokenizer, chat));
  Plan plan{{url, options.flavour, {}, options.stream, options.timeout_seconds}, {}, &options};
  const int64_t total = options.warmup + options.requests;
  for (int64_t i = 0; i < total; ++i) {
    const std::string prompt = prompts.make(words, options.seed, static_cast<uint64_t>(i));
    plan.bodies.push_back(json::serialize(request_body(options, result.model, prompt)));
  }
  result.warmup.resize(static_cast<size_t>(options.warmup));
  run_clients(plan, 0, result.warmup, std::min(options.concurrency, options.warmup),
              [](int64_t, int64_t, int64_t) {});
  result.records.resize(static_cast<size_t>(options.requests));
  result.start = now_seconds();
  run_clients(plan, result.warmup.size(), result.records, std::min(options.concurrency, options.requests),
              progress);
  result.end = now_seconds();
  return result;
}

json::object to_json(const LoadTestOptions& o, const LoadTestResult& result) {
  const Measures m = measure(result);
  json::object root;
  root["parameters"] = json::object{{"url", o.url},
                                    {"model", result.model},
                                    {"endpoint", flavour_name(o.flavour)},
                                    {"mode", "closed_loop"},
                                    {"concurrency", o.concurrency},
                                    {"requests", o.requests},
                                    {"warmup", o.warmup},
                                    {"ctx_len", o.ctx_len},
                                    {"max_new_tokens", o.max_new_tokens},
                                    {"temperature", o.temperature},
                                    {"stream", o.stream},
                                    {"ignore_eos", o.ignore_eos},
                                    {"seed", o.seed}};
  json::object failures;
  for (const auto& [kind, count] : m.failures) failures[kind] = count;
  const double duration = m.duration > 0 ? m.duration : 1;
  root["summary"] = json::object{
      {"duration_seconds", m.duration},
      {"succeeded", m.succeeded},
      {"failed", o.requests - m.succeeded},
      {"failures", failures},
      {"prompt_tokens", m.prompt_tokens},
      {"completion_tokens", m.completion_tokens},
      {"requests_per_second", static_cast<double>(m.succeeded) / duration},
      {"output_tokens_per_second", static_cast<double>(m.completion_tokens) / duration},
      {"total_tokens_per_second", static_cast<double>(m.prompt_tokens + m.completion_tokens) / duration},
      {"ttft_seconds", to_json(m.ttft)},
      {"tpot_seconds", to_json(m.tpot)},
      {"itl_seconds", to_json(m.itl)},
      {"e2e_seconds", to_json(m.e2e)},
      {"queue_seconds", to_json(m.queue)}};
  json::array requests;
  for (const RequestRecord& r : result.records) requests.push_back(record_json(r, result.start));
  root["requests"] = std::move(requests);
  json::array warmup;
  for (const RequestRecord& r : result.warmup) warmup.push_back(record_json(r, result.start));
  root["warmup_requests"] = std::move(warmup);
  return root;
}

std::string format_table(const LoadTestOptions& o, const LoadTestResult& result) {
  const Measures m = measure(result);
  std::string out = fmt::format("{} requests, {} at a time, {} prompt + {} new tokens, {} ({})\n", o.requests,
                                o.concurrency, o.ctx_len, o.max_new_tokens, flavour_name(o.flavour),
                                o.stream ? "streaming" : "not streaming");
  out += fmt::format("{:<12}{:>10}{:>10}{:>10}{:>10}{:>8}\n", "", "mean", "p50", "p95", "p99", "n");
  const auto row = [&](std::string_view name, const Summary& s) {
    if (s.n == 0) return;
    const auto cell = [&](double seconds, double p) {
      return fmt::format("{:.1f}{}", seconds * 1e3, p > 0 && !s.enough_for(p) ? "*" : " ");
    };
    out += fmt::format("{:<12}{:>10}{:>10}{:>10}{:>10}{:>8}\n", name, cell(s.mean, 0), cell(s.p50, 50),
                       cell(s.p95, 95), cell(s.p99, 99), s.n);
  };
  row("TTFT ms", m.ttft);
  row("TPOT ms", m.tpot);
  row("ITL ms", m.itl);
  row("E2E ms", m.e2e);
  row("queue ms", m.queue);
  const double duration = m.duration > 0 ? m.duration : 1;
  out += fmt::format("throughput  {:.2f} requests/s, {:.1f} output tokens/s, {:.1f} tokens/s in all\n",
                     static_cast<double>(m.succeeded) / duration,
                     static_cast<double>(m.completion_tokens) / duration,
                     static_cast<double>(m.prompt_tokens + m.completion_tokens) / duration);
  out += fmt::format("failures    {} of {}", o.requests - m.succeeded, o.requests);
  for (const auto& [kind, count] : m.failures) out += fmt::format(", {} {}", count, kind);
  for (const RequestRecord& r : result.records) {
    if (r.failure.empty()) continue;
    out += fmt::format("\n            first: {}", r.detail);
    break;
  }
  out += "\n";
  if (!m.e2e.enough_for(99)) out += "* too few samples for this percentile\n";
  return out;
}

}  // namespace qwen2
