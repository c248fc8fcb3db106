// What the subcommands share: flags that choose and open a model.
#pragma once

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/backend.h"
#include "base/error.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2::cli {

struct ModelFlags {
  std::string model;
  std::string tokenizer;      // folder; empty: the model's own
  std::string chat_template;  // file; empty: the tokeniser's own
  bool trust_special_tokens = false;
  std::string device = "auto";
  std::string memory_budget;
  std::string precision = "auto";
  std::string head_precision;
  int64_t group_size = 128;
  Limits limits;
  std::optional<int64_t> prefill_chunk;
  std::string isa = "auto";
  std::string kv = "fp16";
  std::string key_bias = "scores";
  std::string activations = "auto";

  std::vector<CLI::Option*> options;  // all that add_to() added

  void add_to(CLI::App& app);
};

// The flags that decide what is computed, for result files.
boost::json::object to_json(const ModelFlags& flags);

struct OpenModel {
  std::unique_ptr<Backend> backend;
  std::optional<Tokenizer> tokenizer;  // none for a folder without one
  [[nodiscard]] const Tokenizer* tokenizer_or_null() const { return tokenizer ? &*tokenizer : nullptr; }
  ChatTemplate chat;
  std::string generation_config;
};

// The backend's options with the precisions parsed.
Result<CpuOptions> cpu_options_of(const ModelFlags& flags);

// The limits with the memory budget's text parsed.
Result<Limits> limits_of(const ModelFlags& flags);

// The tokeniser that the flags name; an error when `required` and there is none.
Result<std::optional<Tokenizer>> open_tokenizer(const ModelFlags& flags, bool required);

// The chat template that the flags name, or of the same tokeniser.
Result<ChatTemplate> open_chat(const ModelFlags& flags, const Tokenizer* tokenizer);

// Adds --chat-template and --trust-special-tokens.
void add_chat_flags(CLI::App& app, ModelFlags& flags);

Result<OpenModel> open_model(const ModelFlags& flags, bool need_tokenizer);

// `relative` in the nearest folder above the program that has it, or above the current one; empty where none
// has.
std::filesystem::path shipped_path(const std::filesystem::path& relative);

// The folder whose tokeniser open_tokenizer() takes where the model is not GGUF; may be empty.
std::filesystem::path tokenizer_source(const ModelFlags& flags);
// What results call it: as the user gave it, or its place in the tree.
std::string tokenizer_name(const ModelFlags& flags);

// A token outside of the vocabulary is an error: a tokeniser may belong to another model.
Status check_tokens(std::span<const TokenId> tokens, const Qwen2Config& config);

// A name for the model: its folder, or what follows "synthetic:".
std::string model_name(const std::string& model);

// Each adds its subcommand; the callback's Status is what the program ends with.
using Action = std::function<Status()>;
void add_serve(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_info(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_evaluate(CLI::App& app, Action& action);
void add_quantize(CLI::App& app, Action& action);
void add_report(CLI::App& app, Action& action);
void add_bench_engine(CLI::App& app, Action& action);
void add_bench_serve(CLI::App& app, Action& action);
// `exit_code` is what the program ends with where the Status is no error.
void add_experiment(CLI::App& app, Action& action, int& exit_code);

// `root` with describe_environment() under "environment", written to `path`.
Status write_result(const std::string& path, boost::json::object root, const std::string& model,
                    std::optional<uint64_t> seed);

}  // namespace qwen2::cli
