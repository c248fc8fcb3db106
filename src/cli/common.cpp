#include <boost/json.hpp>
#include <filesystem>

#include "base/machine.h"
#include "base/memory.h"
#include "base/units.h"
#include "cli/cli.h"
#include "experiment/environment.h"

namespace qwen2::cli {

namespace fs = std::filesystem;
namespace json = boost::json;

fs::path shipped_path(const fs::path& relative) {
  std::error_code ignored;
  // A binary that was copied elsewhere still finds the tree that it is run in.
  for (const fs::path& start : {fs::path(executable_path()).parent_path(), fs::current_path(ignored)}) {
    for (fs::path folder = start; !folder.empty() && folder != folder.root_path();
         folder = folder.parent_path()) {
      if (fs::exists(folder / relative, ignored)) return folder / relative;
    }
  }
  return {};
}

namespace {

// Where scripts/setup puts the published Qwen2 tokeniser, for synthetic models.
constexpr const char* kShippedTokenizer = "models/qwen2-tokenizer";

// The flags ask for the tokeniser that a GGUF model carries.
bool uses_gguf_tokenizer(const ModelFlags& flags) {
  return flags.tokenizer.empty() && is_gguf_model(flags.model);
}

// The folder that the user named, or the model's own; empty where it has none.
fs::path given_tokenizer(const ModelFlags& flags) {
  return flags.tokenizer.empty() ? fs::path(tokenizer_folder(flags.model)) : fs::path(flags.tokenizer);
}

Result<std::optional<Tokenizer>> open_gguf_tokenizer(const std::string& model, bool required) {
  const auto texts = gguf_tokenizer(model);
  if (!texts && texts.error().kind == ErrorKind::kNotFound && !required) return std::nullopt;
  if (!texts) return std::unexpected(texts.error());
  auto tokenizer = Tokenizer::parse(texts->tokenizer_json);
  if (!tokenizer) return within(fmt::format("'{}'", model), tokenizer.error());
  return std::optional<Tokenizer>(*std::move(tokenizer));
}

}  // namespace

fs::path tokenizer_source(const ModelFlags& flags) {
  const fs::path folder = given_tokenizer(flags);
  return folder.empty() ? shipped_path(fs::path(kShippedTokenizer) / "tokenizer.json").parent_path() : folder;
}

std::string tokenizer_name(const ModelFlags& flags) {
  if (uses_gguf_tokenizer(flags)) return flags.model;
  const fs::path folder = given_tokenizer(flags);
  return folder.empty() ? kShippedTokenizer : folder.string();
}

void add_chat_flags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--chat-template", flags.chat_template,
                 "Jinja file to render chats with, not the model's own");
  app.add_flag("--trust-special-tokens", flags.trust_special_tokens,
               "Read special tokens in messages as such, not as text: a message can then end its turn");
}

void ModelFlags::add_to(CLI::App& app) {
  const size_t before = app.get_options().size();
  app.add_option("--model", model,
                 "Folder in Hugging Face layout, a GGUF file, or synthetic:qwen2-0.5b, -1.5b, -7b")
      ->required();
  app.add_option("--tokenizer", tokenizer, "Folder with tokenizer.json, when it is not the model's");
  app.add_option("--device", device, "cpu, cuda or auto")->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  app.add_option("--memory-budget", memory_budget,
                 "Bytes of the whole process, such as 6GiB (default: what is free)");
  app.add_option("--max-model-len", limits.max_model_len,
                 "Tokens of one request, prompt and answer (default: 4096 or the model's limit)");
  app.add_option("--max-num-seqs", limits.max_num_seqs, "Requests that run at once");
  app.add_option("--prefill-chunk", prefill_chunk,
                 "Prompt tokens of one forward pass (default: 256 on the CPU, 1024 on a GPU)");
  app.add_option("--max-batch-tokens", limits.max_batch_tokens,
                 "Tokens of one step (default: one chunk and every decode)");
  app.add_option(
      "--precision", precision,
      "Of the weights: auto (as the model has them), fp16 or bf16 (the 16 bits of the device), int8 or int4 "
      "(rounded when loaded)");
  app.add_option("--head-precision", head_precision,
                 "Of embedding and head (default: as --precision, but int8 with int4)");
  app.add_option(
      "--group-size", group_size,
      "Weights that share a scale: 16, 32, 64 or 128 (32 halves the loss of int4; a GPU then takes "
      "three times as long to decode one row)");
  app.add_option("--kv", kv, "Type of the KV cache: fp16 or int8")->check(CLI::IsMember({"fp16", "int8"}));
  app.add_option("--key-bias", key_bias,
                 "Where large key biases are added: scores (in float) or keys (in the cache)")
      ->check(CLI::IsMember({"scores", "keys"}));
  app.add_option("--activations", activations,
                 "Of products with quantised weights: auto (16 bits or float) or int8")
      ->check(CLI::IsMember({"auto", "int8"}));
  app.add_option("--isa", isa, "Cap on the instruction set: auto, baseline, avx2, avx512");
  for (CLI::Option* option : app.get_options()) options.push_back(option);
  options.erase(options.begin(), options.begin() + static_cast<std::ptrdiff_t>(before));
}

json::object to_json(const ModelFlags& flags) {
  return {{"model", flags.model},
          {"precision", flags.precision},
          {"head_precision", flags.head_precision},
          {"group_size", flags.group_size},
          {"kv", flags.kv},
          {"key_bias", flags.key_bias},
          {"activations", flags.activations},
          {"isa", flags.isa},
          {"device", flags.device},
          {"memory_budget", flags.memory_budget},
          {"max_model_len", flags.limits.max_model_len},
          {"max_num_seqs", flags.limits.max_num_seqs},
          {"prefill_chunk",
           flags.prefill_chunk ? boost::json::value(*flags.prefill_chunk) : boost::json::value(nullptr)},
          {"max_batch_tokens", flags.limits.max_batch_tokens}};
}

Result<CpuOptions> cpu_options_of(const ModelFlags& flags) {
  CpuOptions options;
  options.isa = flags.isa;
  options.int8_activations = flags.activations == "int8";
  options.kv_bits = flags.kv == "int8" ? 8 : 16;
  options.key_bias = flags.key_bias == "keys" ? KeyBiasPlace::kKeys : KeyBiasPlace::kScores;
  QWEN2_TRY(options.precision, Precision::parse(flags.precision, flags.head_precision, flags.group_size));
  return options;
}

Result<Limits> limits_of(const ModelFlags& flags) {
  Limits limits = flags.limits;
  limits.prefill_chunk = flags.prefill_chunk.value_or(0);
  if (flags.prefill_chunk == 0)
    return fail(ErrorKind::kInvalidArgument, "--prefill-chunk 0 is out of range: 16 to 8192");
  if (!flags.memory_budget.empty()) {
    auto bytes = parse_bytes(flags.memory_budget);
    if (!bytes) return within("--memory-budget", bytes.error());
    limits.memory_budget = *bytes;
  }
  return limits;
}

Result<std::optional<Tokenizer>> open_tokenizer(const ModelFlags& flags, bool required) {
  if (uses_gguf_tokenizer(flags)) return open_gguf_tokenizer(flags.model, required);
  const fs::path folder = tokenizer_source(flags);
  if (folder.empty() || !fs::exists(folder / "tokenizer.json")) {
    if (!required && flags.tokenizer.empty()) return std::nullopt;
    if (!flags.tokenizer.empty()) {
      return fail(ErrorKind::kNotFound, "--tokenizer '{}' has no tokenizer.json", flags.tokenizer);
    }
    return fail(ErrorKind::kNotFound, "no tokenizer.json for '{}': name its folder with --tokenizer",
                flags.model);
  }
  QWEN2_TRY(Tokenizer tokenizer, Tokenizer::load(folder));
  return std::optional<Tokenizer>(std::move(tokenizer));
}

namespace {

Result<ChatTemplate> own_chat(const ModelFlags& flags) {
  if (!uses_gguf_tokenizer(flags)) {
    const fs::path folder = given_tokenizer(flags);
    return folder.empty() ? ChatTemplate() : ChatTemplate::load(folder);
  }
  QWEN2_TRY(const std::string config, gguf_tokenizer_config(flags.model));
  auto chat = ChatTemplate::parse(config, "the file's metadata");
  if (!chat) return within(fmt::format("'{}'", flags.model), chat.error());
  return chat;
}

}  // namespace

Result<ChatTemplate> open_chat(const ModelFlags& flags, const Tokenizer* tokenizer) {
  QWEN2_TRY(ChatTemplate chat, own_chat(flags));
  if (!flags.chat_template.empty()) QWEN2_CHECK(chat.replace(flags.chat_template));
  if (flags.trust_special_tokens) chat.trust_messages();
  // Qwen2's template is for models that have its tokens.
  if (chat.is_fallback() && tokenizer != nullptr && !tokenizer->added_token("<|im_start|>")) chat.remove();
  return chat;
}

Result<OpenModel> open_model(const ModelFlags& flags, bool need_tokenizer) {
  OpenModel open;
  QWEN2_TRY(const auto checkpoint, open_checkpoint(flags.model));
  if (const std::string note = checkpoint->note(); !note.empty()) fmt::print(stderr, "note: {}\n", note);
  QWEN2_TRY(open.tokenizer, open_tokenizer(flags, need_tokenizer));
  QWEN2_TRY(open.chat, open_chat(flags, open.tokenizer_or_null()));
  open.generation_config = checkpoint->generation_config_json();
  QWEN2_TRY(const Limits limits, limits_of(flags));
  QWEN2_TRY(const CpuOptions options, cpu_options_of(flags));
  if (flags.device == "cuda" || (flags.device == "auto" && cuda_is_available())) {
    if (options.int8_activations) {
      return fail(ErrorKind::kUnsupported,
                  "--activations int8 is for --device cpu: a GPU multiplies in fp16");
    }
    const CudaOptions cuda{options.precision, options.kv_bits, options.key_bias};
    QWEN2_TRY(open.backend, create_cuda_backend(*checkpoint, limits, cuda));
    if (const auto advice = cuda_build_advice()) fmt::print(stderr, "note: {}\n", *advice);
  } else {
    QWEN2_TRY(open.backend, create_cpu_backend(*checkpoint, limits, options));
  }
  return open;
}

Status check_tokens(std::span<const TokenId> tokens, const Qwen2Config& config) {
  for (const TokenId token : tokens) {
    if (token >= 0 && token < config.vocab_size) continue;
    return fail(ErrorKind::kInvalidArgument, "token id {} is not in the vocabulary of {}", token,
                config.vocab_size);
  }
  return {};
}

std::string model_name(const std::string& model) {
  if (const size_t colon = model.find("synthetic:"); colon == 0) return model.substr(10);
  fs::path path = fs::path(model).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

Status write_result(const std::string& path, json::object root, const std::string& model,
                    std::optional<uint64_t> seed) {
  root["environment"] = describe_environment(model, seed);
  return write_file(path, json::serialize(root) + "\n");
}

}  // namespace qwen2::cli
