#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>

#include "base/machine.h"
#include "base/units.h"
#include "cli/cli.h"
#include "kernels/cpu/kernels.h"

namespace qwen2::cli {
namespace {

// The text between the quotes of a line, with its line breaks escaped.
std::string on_one_line(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '\n' ? std::string("\\n") : std::string(1, c);
  return out;
}

std::string end_tokens(const Qwen2Config& config, const Tokenizer* tokenizer, const ChatTemplate& chat) {
  std::vector<TokenId> ids = config.eos_token_ids;
  if (tokenizer != nullptr) {
    for (const TokenId id : chat_end_tokens(*tokenizer, chat)) {
      if (std::ranges::find(ids, id) == ids.end()) ids.push_back(id);
    }
  }
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const TokenId id : ids) {
    texts.push_back(tokenizer == nullptr ? std::to_string(id)
                                         : fmt::format("{} {}", id, tokenizer->token_bytes(id)));
  }
  return texts.empty() ? "none" : fmt::format("{}", fmt::join(texts, ", "));
}

// What a chat with this model looks like.
Status print_chat(const ModelFlags& flags, const Qwen2Config& config) {
  QWEN2_TRY(const auto tokenizer, open_tokenizer(flags, false));
  const Tokenizer* known = tokenizer ? &*tokenizer : nullptr;
  QWEN2_TRY(const ChatTemplate chat, open_chat(flags, known));
  fmt::print("ends     {}\n", end_tokens(config, known, chat));
  fmt::print("chat     template: {}\n", chat.source());
  const ChatMessage hello{"user", "Hello!"};
  const auto prompt = chat.render(std::span(&hello, 1), true);
  fmt::print("         {}\n",
             prompt ? fmt::format("\"{}\"", on_one_line(prompt->text())) : prompt.error().message);
  return {};
}

Status info(const ModelFlags& flags) {
  QWEN2_TRY(const auto checkpoint, open_checkpoint(flags.model));
  QWEN2_TRY(const Qwen2Config c,
            parse_qwen2_config(checkpoint->config_json(), checkpoint->generation_config_json()));
  QWEN2_TRY(const Limits limits, limits_of(flags));
  const Machine machine = describe_machine();
  fmt::print(
      "model    {}: {} layers, hidden {}, {} query and {} KV heads of {}, FFN {}, vocabulary {}, {} head\n",
      model_name(flags.model), c.layers, c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.intermediate_size,
      c.vocab_size, c.tied_head ? "tied" : "own");
  fmt::print("context  {} tokens, RoPE theta {}\n", c.max_position_embeddings, c.rope_theta);
  QWEN2_CHECK(print_chat(flags, c));
  fmt::print("machine  {}, {} cores, {}, {} ({})\n", machine.cpu, machine.cores,
             format_bytes(machine.memory_bytes), cpu::isa_name(cpu::detect_isa()), machine.kernel);
  fmt::print("program  commit {}{}, {}\n", machine.commit, machine.dirty ? " with changes" : "",
             machine.compiler);
  QWEN2_TRY(const CpuOptions options, cpu_options_of(flags));
  QWEN2_TRY(const MemoryPlan plan, plan_cpu_backend(*checkpoint, c, limits, options));
  fmt::print("memory plan\n{}", plan.table());
  return {};
}

}  // namespace

void add_info(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ModelFlags>();
  CLI::App* command = app.add_subcommand("info", "Show a model, its memory plan and this machine");
  flags->add_to(*command);
  add_chat_flags(*command, *flags);
  command->callback([flags, &action] { action = [flags] { return info(*flags); }; });
}

}  // namespace qwen2::cli
