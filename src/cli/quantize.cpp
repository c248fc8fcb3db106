#include "quantize/quantize.h"

#include <unistd.h>

#include <cstdio>

#include "base/memory.h"
#include "base/units.h"
#include "cli/cli.h"
#include "quantize/calibration.h"
#include "quantize/gguf_writer.h"

namespace qwen2::cli {
namespace {

namespace fs = std::filesystem;

struct QuantizeFlags {
  ModelFlags model;  // of which --model and --tokenizer are offered
  std::string output;
  std::string method = "gptq";
  std::string format;
  std::string calibration = "builtin";
  quantize::QuantizeOptions options;
  quantize::CalibrationLimits limits;
  CLI::Option* group_size = nullptr;  // whether it was given
};

// The format has one size of group.
Status choose_gguf(QuantizeFlags& flags) {
  if (flags.options.method != quantize::Method::kRtn) {
    return fail(ErrorKind::kUnsupported, "--format gguf is written with --method rtn only, not {}",
                flags.method);
  }
  if (flags.group_size->count() > 0 && flags.options.group != quantize::kGgufGroup) {
    return fail(ErrorKind::kInvalidArgument,
                "--group-size is {}; the blocks of --format gguf have {} weights", flags.options.group,
                quantize::kGgufGroup);
  }
  flags.options.group = quantize::kGgufGroup;
  return {};
}

Status read_method(QuantizeFlags& flags) {
  using quantize::Method;
  flags.options.method = flags.method == "rtn"   ? Method::kRtn
                         : flags.method == "awq" ? Method::kAwq
                                                 : Method::kGptq;
  const std::string own = flags.method == "awq" ? "awq" : "gptq";
  if (flags.format == "gguf") return choose_gguf(flags);
  if (!flags.format.empty() && flags.format != own) {
    return fail(ErrorKind::kInvalidArgument, "--format is {}; --method {} writes {}", flags.format,
                flags.method, own);
  }
  if (flags.limits.sequences < 1 || flags.limits.length < 1) {
    return fail(ErrorKind::kInvalidArgument,
                "--calibration-sequences is {} and --calibration-length {}; at least 1 was expected",
                flags.limits.sequences, flags.limits.length);
  }
  return {};
}

// What the model's folder has beside the weights and the two files that the quantiser writes itself.
Result<std::vector<quantize::ExtraFile>> extra_files(const ModelFlags& model) {
  std::vector<quantize::ExtraFile> files;
  if (model.tokenizer.empty() && is_gguf_model(model.model)) {
    const auto texts = gguf_tokenizer(model.model);
    if (!texts && texts.error().kind != ErrorKind::kNotFound) return std::unexpected(texts.error());
    if (texts) {
      files.push_back({"tokenizer.json", texts->tokenizer_json});
      files.push_back({"tokenizer_config.json", texts->tokenizer_config_json});
    }
    return files;
  }
  const fs::path folder = tokenizer_source(model);
  if (folder.empty()) return files;
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "LICENSE", "LICENSE.wordnet", "NOTICE"}) {
    if (!fs::is_regular_file(folder / name)) continue;
    QWEN2_TRY(std::string contents, read_text_file(folder / name));
    files.push_back({name, std::move(contents)});
  }
  return files;
}

Result<std::vector<std::vector<TokenId>>> calibration_of(const QuantizeFlags& flags) {
  if (flags.options.method == quantize::Method::kRtn) return {};
  fs::path path = flags.calibration;
  if (path == "builtin") path = shipped_path("models/calibration/chats.jsonl");
  if (path.empty()) {
    return fail(ErrorKind::kNotFound,
                "no models/calibration/chats.jsonl beside the program: name a text with --calibration");
  }
  QWEN2_TRY(const auto tokenizer, open_tokenizer(flags.model, true));
  QWEN2_TRY(const ChatTemplate chat, open_chat(flags.model, &*tokenizer));
  return quantize::read_calibration(path, *tokenizer, chat, flags.limits);
}

// A bar where a person watches, a line a layer in a log.
void show_progress(int64_t done, int64_t layers, double seconds) {
  if (::isatty(STDERR_FILENO) == 0) {
    fmt::print(stderr, "layer {}/{} after {:.1f} s\n", done, layers, seconds);
    return;
  }
  constexpr int64_t kWidth = 40;
  const auto full = static_cast<size_t>(kWidth * done / layers);
  fmt::print(stderr, "\r[{}{}] layer {}/{}, {:.0f} s{}", std::string(full, '#'),
             std::string(static_cast<size_t>(kWidth) - full, ' '), done, layers, seconds,
             done == layers ? "\n" : "");
  std::fflush(stderr);
}

void print_result(const fs::path& file, double start) {
  std::error_code code;
  fmt::print("{}: {} in {:.1f} s\n", file.string(), format_bytes(fs::file_size(file, code)),
             now_seconds() - start);
}

// What a .gguf file says of the tokeniser, from the files beside the model.
quantize::GgufJob gguf_job(const Checkpoint& checkpoint, const QuantizeFlags& flags,
                           const std::vector<quantize::ExtraFile>& files) {
  quantize::GgufJob job{checkpoint, flags.options.bits, {}, flags.output, {}};
  for (const quantize::ExtraFile& file : files) {
    if (file.name == "tokenizer.json") job.tokenizer.tokenizer_json = file.contents;
    if (file.name == "tokenizer_config.json") job.tokenizer.tokenizer_config_json = file.contents;
    if (file.name == "chat_template.jinja") job.tokenizer.chat_template = file.contents;
  }
  return job;
}

Status quantize_command(QuantizeFlags& flags) {
  QWEN2_CHECK(read_method(flags));
  QWEN2_TRY(const auto checkpoint, open_checkpoint(flags.model.model));
  QWEN2_TRY(const Qwen2Config config,
            parse_qwen2_config(checkpoint->config_json(), checkpoint->generation_config_json()));
  // Before the calibration text is read: flags that cannot work should not wait for it.
  QWEN2_CHECK(quantize::check_quantizable(*checkpoint, config, flags.options));
  const double start = now_seconds();
  const auto progress = [start](int64_t done, int64_t layers) {
    show_progress(done, layers, now_seconds() - start);
  };
  if (flags.format == "gguf") {
    QWEN2_TRY(const auto files, extra_files(flags.model));
    quantize::GgufJob job = gguf_job(*checkpoint, flags, files);
    job.progress = progress;
    QWEN2_CHECK(quantize::write_gguf(job));
    print_result(flags.output, start);
    return {};
  }
  quantize::QuantizeJob job{*checkpoint, flags.options, {}, flags.output, {}, {}};
  QWEN2_TRY(job.calibration, calibration_of(flags));
  QWEN2_TRY(job.files, extra_files(flags.model));
  size_t tokens = 0;
  for (const auto& sequence : job.calibration) tokens += sequence.size();
  if (tokens > 0) {
    fmt::print(stderr, "calibration: {} sequences, {} tokens\n", job.calibration.size(), tokens);
  }
  fmt::print(stderr, "memory: about {}, and the mapped checkpoint\n",
             format_bytes(quantize::peak_bytes(config, flags.options, job.calibration)));
  job.progress = progress;
  QWEN2_CHECK(quantize::quantize_model(job));
  print_result(fs::path(flags.output) / "model.safetensors", start);
  return {};
}

}  // namespace

void add_quantize(CLI::App& app, Action& action) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command =
      app.add_subcommand("quantize", "Write a model in 4 or 8 bits (GPTQ's or AWQ's layout, or GGUF)");
  command
      ->add_option("--model", flags->model.model,
                   "Folder in Hugging Face layout, a GGUF file, or synthetic:NAME; in 16 or 32 bits")
      ->required();
  command->add_option("--tokenizer", flags->model.tokenizer,
                      "Folder with tokenizer.json, when it is not the model's");
  command
      ->add_option("--output", flags->output,
                   "New folder for the quantised model; a new file with --format gguf")
      ->required();
  command->add_option("--method", flags->method, "gptq, awq, or rtn (round to nearest, no calibration)")
      ->check(CLI::IsMember({"rtn", "awq", "gptq"}));
  command
      ->add_option(
          "--format", flags->format,
          "Layout (default: awq for --method awq, otherwise gptq); gguf: Q8_0 or Q4_0, with --method rtn")
      ->check(CLI::IsMember({"gptq", "awq", "gguf"}));
  command->add_option("--bits", flags->options.bits, "4 or 8");
  flags->group_size = command->add_option("--group-size", flags->options.group,
                                          "Weights that share a scale: 16, 32, 64 or 128");
  command->add_flag("--act-order", flags->options.act_order,
                    "gptq: inputs with the largest activations first (\"desc_act\")");
  command->add_option("--damping", flags->options.damping,
                      "gptq: share of the Hessian's mean diagonal that is added to it");
  command->add_option("--calibration", flags->calibration,
                      "Text, or .jsonl with a conversation a line; builtin: dictionary chats");
  command->add_option("--calibration-sequences", flags->limits.sequences, "Sequences at most");
  command->add_option("--calibration-length", flags->limits.length, "Tokens of a sequence at most");
  command->callback([flags, &action] { action = [flags] { return quantize_command(*flags); }; });
}

}  // namespace qwen2::cli
