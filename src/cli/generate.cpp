#include <unistd.h>

#include <boost/json.hpp>
#include <cstdio>
#include <future>
#include <iostream>

#include "base/memory.h"
#include "cli/cli.h"
#include "engine/engine.h"

namespace qwen2::cli {
namespace {

namespace json = boost::json;

struct GenerateFlags {
  ModelFlags model;
  std::string prompt;
  std::string prompt_tokens;
  std::string system;
  std::string tokens_out;
  std::string logits_out;
  int64_t max_new_tokens = 256;
  SamplingParams sampling;
  bool raw = false;
  bool ignore_eos = false;
  CLI::App* command = nullptr;

  // Flags that the user gave replace the model's own defaults.
  [[nodiscard]] SamplingParams merged(SamplingParams defaults) const {
    if (command->count("--temperature") > 0) defaults.temperature = sampling.temperature;
    if (command->count("--top-k") > 0) defaults.top_k = sampling.top_k;
    if (command->count("--top-p") > 0) defaults.top_p = sampling.top_p;
    if (command->count("--repetition-penalty") > 0) defaults.repetition_penalty = sampling.repetition_penalty;
    // Greedy means the likeliest token: the model's own penalty would change it.
    if (defaults.temperature == 0 && command->count("--repetition-penalty") == 0)
      defaults.repetition_penalty = 1.0F;
    defaults.seed = sampling.seed;
    return defaults;
  }
};

Result<std::vector<TokenId>> read_tokens(const std::string& path) {
  QWEN2_TRY(const std::string text, read_text_file(path));
  json::error_code code;
  const json::value root = json::parse(text, code);
  if (code || !root.is_array())
    return fail(ErrorKind::kFormat, "'{}' must be a JSON array of token ids", path);
  std::vector<TokenId> tokens;
  for (const json::value& item : root.get_array()) {
    if (!item.is_int64() || item.get_int64() < 0 || item.get_int64() > INT32_MAX) {
      return fail(ErrorKind::kFormat, "'{}' must be a JSON array of token ids", path);
    }
    tokens.push_back(static_cast<TokenId>(item.get_int64()));
  }
  return tokens;
}

// Runs one request to its end, printing text as it comes; returns the new tokens.
Result<std::vector<TokenId>> run(Engine& engine, GenerationRequest request, bool print) {
  std::vector<TokenId> tokens;
  std::promise<TokenEvent> ended;
  auto handle = engine.submit(std::move(request), [&](const TokenEvent& event) {
    if (event.token >= 0) tokens.push_back(event.token);
    if (print) {
      std::fwrite(event.text.data(), 1, event.text.size(), stdout);
      std::fflush(stdout);
    }
    if (event.finish) ended.set_value(event);
  });
  if (!handle) return std::unexpected(handle.error());
  const TokenEvent last = ended.get_future().get();
  if (last.finish == FinishReason::kError) return std::unexpected(last.error);
  if (print) std::fputs("\n", stdout);
  return tokens;
}

// The logits of the last prompt position, computed in the same chunks as the engine's.
Status write_logits(Backend& backend, const std::vector<TokenId>& prompt, const std::string& path) {
  const Limits& limits = backend.plan().limits;
  const auto size = static_cast<int64_t>(prompt.size());
  QWEN2_CHECK(check_tokens(prompt, backend.config()));
  if (size > limits.max_model_len) {
    return fail(ErrorKind::kInvalidArgument, "the prompt has {} tokens, --max-model-len is {}", size,
                limits.max_model_len);
  }
  std::vector<uint32_t> pages(static_cast<size_t>(size / backend.page_tokens() + 1));
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<uint32_t>(i);
  for (int64_t position = 0; position < size; position += limits.prefill_chunk) {
    const int64_t count = std::min(limits.prefill_chunk, size - position);
    const Chunk chunk{std::span(prompt).subspan(static_cast<size_t>(position), static_cast<size_t>(count)),
                      position, pages, position + count == size};
    QWEN2_TRY(const Logits logits, backend.forward(std::span(&chunk, 1)));
    if (!chunk.needs_logits) continue;
    const auto row = logits.row(0);
    QWEN2_CHECK(write_file(path, {reinterpret_cast<const char*>(row.data()), row.size_bytes()}));
  }
  return {};
}

Status chat_loop(Engine& engine, const Tokenizer& tokenizer, const ChatTemplate& chat,
                 const GenerateFlags& flags, const SamplingParams& sampling) {
  std::vector<ChatMessage> messages;
  if (!flags.system.empty()) messages.push_back({"system", flags.system});
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  std::string line;
  while (true) {
    if (terminal) {
      std::fputs("> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line)) return {};
    if (line.empty()) continue;
    messages.push_back({"user", line});
    QWEN2_TRY(auto prompt, chat_tokens(tokenizer, chat, messages, true));
    GenerationRequest request{
        std::move(prompt), flags.max_new_tokens, sampling, {}, chat_end_tokens(tokenizer, chat),
        flags.ignore_eos};
    const int64_t left =
        engine.backend().plan().limits.max_model_len - static_cast<int64_t>(request.prompt.size());
    request.max_new_tokens = std::min(request.max_new_tokens, std::max<int64_t>(1, left));
    QWEN2_TRY(const auto tokens, run(engine, std::move(request), true));
    messages.push_back({"assistant", tokenizer.decode(tokens, true)});
  }
}

Result<std::vector<TokenId>> prompt_of(const GenerateFlags& flags, const Tokenizer* tokenizer,
                                       const ChatTemplate& chat) {
  if (!flags.prompt_tokens.empty() || tokenizer == nullptr) return read_tokens(flags.prompt_tokens);
  if (flags.raw) return tokenizer->encode(flags.prompt);
  std::vector<ChatMessage> messages;
  if (!flags.system.empty()) messages.push_back({"system", flags.system});
  messages.push_back({"user", flags.prompt});
  return chat_tokens(*tokenizer, chat, messages, true);
}

Status generate(GenerateFlags& flags) {
  flags.model.limits.max_num_seqs = 1;
  QWEN2_TRY(OpenModel open, open_model(flags.model, flags.prompt_tokens.empty()));
  QWEN2_TRY(SamplingParams sampling, sampling_defaults(open.generation_config));
  sampling = flags.merged(sampling);
  const Tokenizer* tokenizer = open.tokenizer_or_null();
  const bool interactive = flags.prompt.empty() && flags.prompt_tokens.empty();
  GenerationRequest request;
  if (!interactive) {
    QWEN2_TRY(request.prompt, prompt_of(flags, tokenizer, open.chat));
    if (!flags.logits_out.empty()) QWEN2_CHECK(write_logits(*open.backend, request.prompt, flags.logits_out));
  }
  Engine engine(std::move(open.backend), tokenizer, {});
  if (interactive && tokenizer != nullptr) return chat_loop(engine, *tokenizer, open.chat, flags, sampling);
  request.max_new_tokens = flags.max_new_tokens;
  request.sampling = sampling;
  request.ignore_eos = flags.ignore_eos;
  if (tokenizer != nullptr && !flags.raw) request.end_tokens = chat_end_tokens(*tokenizer, open.chat);
  QWEN2_TRY(const auto tokens, run(engine, std::move(request), tokenizer != nullptr));
  if (flags.tokens_out.empty()) return {};
  return write_file(flags.tokens_out, json::serialize(json::value_from(tokens)) + "\n");
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      app.add_subcommand("generate", "Answer one prompt, or chat on the terminal when none is given");
  flags->command = command;
  flags->model.add_to(*command);
  add_chat_flags(*command, flags->model);
  auto* prompt = command->add_option("--prompt", flags->prompt, "What to ask");
  command
      ->add_option("--prompt-tokens", flags->prompt_tokens, "JSON file with token ids, instead of --prompt")
      ->excludes(prompt);
  command->add_option("--system", flags->system, "System message (default: the model's)");
  command->add_flag("--raw", flags->raw, "No chat template around --prompt");
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Tokens of the answer at most");
  command->add_option("--temperature", flags->sampling.temperature, "0 is greedy (default: the model's)");
  command->add_option("--top-k", flags->sampling.top_k, "Sample from the K likeliest tokens");
  command->add_option("--top-p", flags->sampling.top_p,
                      "Sample from the likeliest tokens that hold P of the probability");
  command->add_option("--repetition-penalty", flags->sampling.repetition_penalty,
                      "Of tokens that have occurred");
  command->add_option("--seed", flags->sampling.seed, "Fixes the sampled tokens");
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on behind the end-of-sequence token");
  command->add_option("--tokens-out", flags->tokens_out, "Write the new token ids as JSON");
  command->add_option("--logits-out", flags->logits_out,
                      "Write the last prompt position's logits as raw float32");
  command->callback([flags, &action] { action = [flags] { return generate(*flags); }; });
}

}  // namespace qwen2::cli
