#include <algorithm>
#include <boost/json.hpp>
#include <numeric>

#include "base/memory.h"
#include "base/units.h"
#include "cli/cli.h"
#include "engine/evaluation.h"

namespace qwen2::cli {
namespace {

namespace json = boost::json;

struct EvaluateFlags {
  ModelFlags model;
  ModelFlags reference;  // the model is empty: none
  std::string text;
  std::string output;
  int64_t window = 512;
  int64_t max_windows = 0;  // 0: all
  bool chats = false;
  bool quiet = false;
};

// What is read together, and which of its tokens are scored.
struct Window {
  std::span<const TokenId> tokens;
  std::vector<bool> scored;
};

// Neighbouring windows of a text; every token but a window's first is scored.
std::vector<Window> text_windows(std::span<const TokenId> tokens, int64_t size) {
  std::vector<Window> windows;
  for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(size)) {
    const auto part = tokens.subspan(begin, std::min(static_cast<size_t>(size), tokens.size() - begin));
    windows.push_back({part, std::vector<bool>(part.size(), true)});
  }
  return windows;
}

bool is_at(std::span<const TokenId> tokens, size_t at, std::span<const TokenId> part) {
  return at + part.size() <= tokens.size() &&
         std::equal(part.begin(), part.end(), tokens.begin() + static_cast<std::ptrdiff_t>(at));
}

// One window a chat, in ChatML; the assistant's tokens are scored, each turn's end included.
Result<std::vector<Window>> chat_windows(std::span<const TokenId> tokens, const Tokenizer& tokenizer,
                                         int64_t size) {
  QWEN2_TRY(const auto system, tokenizer.encode(MarkedText("<|im_start|>system\n")));
  QWEN2_TRY(const auto assistant, tokenizer.encode(MarkedText("<|im_start|>assistant\n")));
  QWEN2_TRY(const auto end, tokenizer.encode(MarkedText("<|im_end|>")));
  std::vector<Window> windows;
  bool answering = false;
  for (size_t at = 0; at < tokens.size(); ++at) {
    if (is_at(tokens, at, system)) windows.push_back({tokens.subspan(at, 0), {}});
    if (windows.empty())
      return fail(ErrorKind::kFormat, "--chats: the text does not start with <|im_start|>system");
    Window& chat = windows.back();
    chat.tokens = {chat.tokens.data(), chat.tokens.size() + 1};
    chat.scored.push_back(answering);
    if (is_at(tokens, at, end)) answering = false;
    if (at + 1 >= assistant.size() && is_at(tokens, at + 1 - assistant.size(), assistant)) answering = true;
    if (static_cast<int64_t>(chat.tokens.size()) > size) {
      return fail(ErrorKind::kInvalidArgument, "--chats: chat {} has more than --window {} tokens",
                  windows.size(), size);
    }
  }
  return windows;
}

Result<OpenModel> open_for(ModelFlags& flags, int64_t window) {
  flags.limits.max_num_seqs = 1;
  flags.limits.max_model_len = window;
  return open_model(flags, true);
}

// Hands the logits of every position of a window to `sink`, in order.
Status run_window(Backend& backend, std::span<const TokenId> tokens, const Backend::LogitSink& sink) {
  std::vector<uint32_t> pages(tokens.size() / static_cast<size_t>(backend.page_tokens()) + 1);
  std::iota(pages.begin(), pages.end(), 0U);
  const auto chunk_tokens = static_cast<size_t>(backend.plan().limits.prefill_chunk);
  for (size_t begin = 0; begin < tokens.size(); begin += chunk_tokens) {
    const auto part = tokens.subspan(begin, std::min(chunk_tokens, tokens.size() - begin));
    QWEN2_CHECK(backend.forward_all(
        {part, static_cast<int64_t>(begin), pages, false},
        [&](int64_t i, std::span<const float> logits) { sink(static_cast<int64_t>(begin) + i, logits); }));
  }
  return {};
}

Status evaluate_window(OpenModel& model, OpenModel* reference, const Window& window, Evaluation& evaluation) {
  const std::span<const TokenId> tokens = window.tokens;
  std::vector<std::vector<float>> expected(tokens.size());
  if (reference != nullptr) {
    QWEN2_CHECK(run_window(*reference->backend, tokens, [&](int64_t i, std::span<const float> logits) {
      expected[static_cast<size_t>(i)].assign(logits.begin(), logits.end());
    }));
  }
  return run_window(*model.backend, tokens, [&](int64_t i, std::span<const float> logits) {
    const auto at = static_cast<size_t>(i);
    if (at + 1 < tokens.size() && window.scored[at + 1]) evaluation.add(logits, tokens[at + 1], expected[at]);
  });
}

json::object to_json(const EvaluateFlags& flags, const OpenModel& model, const EvaluationSummary& s) {
  json::object root = to_json(flags.model);
  root["backend"] = model.backend->describe();
  root["text"] = flags.text;
  root["window"] = flags.window;
  root["chats"] = flags.chats;
  root["weight_bytes"] = model.backend->plan().weights;
  root["bytes_per_decode_step"] = model.backend->bytes_per_decode_step();
  root["kv_bytes_per_token"] = model.backend->plan().kv_bytes_per_token;
  root["positions"] = s.positions;
  root["perplexity"] = s.perplexity;
  root["mean_nll"] = s.mean_nll;
  root["mean_nll_standard_error"] = s.nll_error;
  if (!flags.reference.model.empty()) {
    json::object reference = to_json(flags.reference);
    reference["perplexity"] = s.reference_perplexity;
    root["reference"] = std::move(reference);
    root["mean_kl"] = s.mean_kl;
    root["mean_kl_standard_error"] = s.kl_error;
    root["same_top1"] = s.same_top1;
    root["logit_error_p999"] = s.logit_error_p999;
  }
  return root;
}

void print_table(const EvaluateFlags& flags, const OpenModel& model, const EvaluationSummary& s) {
  fmt::print("{}, {} positions in {}\n", model_name(flags.model.model), s.positions,
             flags.chats ? "the answers of chats" : fmt::format("windows of {} tokens", flags.window));
  fmt::print("weights             {}\n", format_bytes(model.backend->plan().weights));
  fmt::print("KV, a token         {} B\n", model.backend->plan().kv_bytes_per_token);
  fmt::print("perplexity          {:.4f}  (mean NLL {:.5f} ± {:.5f} nats)\n", s.perplexity, s.mean_nll,
             s.nll_error);
  if (flags.reference.model.empty()) return;
  fmt::print("reference           {}, perplexity {:.4f}\n", flags.reference.model, s.reference_perplexity);
  fmt::print("mean KL             {:.6f} ± {:.6f} nats\n", s.mean_kl, s.kl_error);
  fmt::print("same top token      {:.2f} %\n", 100 * s.same_top1);
  fmt::print("logit error, p99.9  {:.4f}\n", s.logit_error_p999);
}

Status check(const EvaluateFlags& flags, const OpenModel& model, const std::optional<OpenModel>& reference,
             const std::vector<TokenId>& tokens) {
  if (tokens.size() < 2)
    return fail(ErrorKind::kInvalidArgument, "--text '{}' has fewer than two tokens", flags.text);
  QWEN2_CHECK(check_tokens(tokens, model.backend->config()));
  if (!reference) return {};
  const int64_t own = model.backend->config().vocab_size;
  const int64_t other = reference->backend->config().vocab_size;
  if (own == other) return {};
  return fail(ErrorKind::kInvalidArgument,
              "--reference has a vocabulary of {}, --model of {}: they cannot be compared", other, own);
}

Status evaluate(EvaluateFlags& flags) {
  if (flags.window < 2) return fail(ErrorKind::kInvalidArgument, "--window must be at least 2");
  QWEN2_TRY(const std::string text, read_text_file(flags.text));
  QWEN2_TRY(OpenModel model, open_for(flags.model, flags.window));
  std::optional<OpenModel> reference;
  if (!flags.reference.model.empty()) {
    flags.reference.tokenizer = flags.model.tokenizer;
    flags.reference.isa = flags.model.isa;
    QWEN2_TRY(reference, open_for(flags.reference, flags.window));
  }
  QWEN2_TRY(const std::vector<TokenId> tokens, model.tokenizer->encode(text));
  QWEN2_CHECK(check(flags, model, reference, tokens));
  Evaluation evaluation;
  auto windows = text_windows(tokens, flags.window);
  if (flags.chats) {
    QWEN2_TRY(windows, chat_windows(tokens, *model.tokenizer, flags.window));
  }
  if (flags.max_windows > 0) windows.resize(std::min(windows.size(), static_cast<size_t>(flags.max_windows)));
  for (size_t w = 0; w < windows.size(); ++w) {
    QWEN2_CHECK(evaluate_window(model, reference ? &*reference : nullptr, windows[w], evaluation));
    if (!flags.quiet)
      fmt::print(stderr, "\rwindow {} of {}{}", w + 1, windows.size(), w + 1 == windows.size() ? "\n" : "");
  }
  const EvaluationSummary summary = evaluation.summary();
  print_table(flags, model, summary);
  if (flags.output.empty()) return {};
  return write_result(flags.output, to_json(flags, model, summary), flags.model.model, std::nullopt);
}

}  // namespace

void add_evaluate(CLI::App& app, Action& action) {
  auto flags = std::make_shared<EvaluateFlags>();
  CLI::App* command =
      app.add_subcommand("evaluate", "Perplexity of a model on a text, and its distance from a reference");
  flags->model.add_to(*command);
  command->add_option("--text", flags->text, "File with the text (special tokens in it are taken as such)")
      ->required();
  command->add_option("--reference", flags->reference.model,
                      "Model to compare with, such as the one in 16 bits");
  command->add_option("--reference-precision", flags->reference.precision, "Its --precision");
  command->add_option("--reference-kv", flags->reference.kv, "Its --kv")
      ->check(CLI::IsMember({"fp16", "int8"}));
  command->add_option("--window", flags->window, "Tokens that are read together; each window starts afresh");
  command->add_flag("--chats", flags->chats,
                    "The text is ChatML: every chat is read alone, and only the assistant's tokens count");
  command->add_option("--max-windows", flags->max_windows, "Only the first windows (default: all)");
  command->add_option("--output", flags->output, "Write the result as JSON");
  command->add_flag("--quiet", flags->quiet, "No progress");
  command->callback([flags, &action] { action = [flags] { return evaluate(*flags); }; });
}

}  // namespace qwen2::cli
