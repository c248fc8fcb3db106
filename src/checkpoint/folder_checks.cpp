#include "checkpoint/folder_checks.h"

#include <array>

#include "base/json_fields.h"
#include "base/memory.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLfsPointer = "version https://git-lfs";

// The model that an adapter belongs to; empty where the file does not say.
std::string adapter_base(const fs::path& folder) {
  const auto text = read_text_file(folder / "adapter_config.json", size_t{1} << 20);
  const auto fields = text ? JsonFields::parse(*text, "adapter_config.json") : std::unexpected(text.error());
  return fields ? fields->find<std::string>("base_model_name_or_path").value_or("") : "";
}

std::string of_base(const fs::path& folder) {
  const std::string base = adapter_base(folder);
  return base.empty() ? std::string() : fmt::format(" of '{:.200}'", base);
}

bool has_pytorch_weights(const fs::path& folder) {
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt")) return true;
    if (name.ends_with(".bin.index.json")) return true;
  }
  return false;
}

}  // namespace

bool is_lfs_pointer(std::string_view bytes) {
  return bytes.starts_with(kLfsPointer);
}

std::unexpected<Error> lfs_pointer_error(const fs::path& path) {
  return fail(
      ErrorKind::kFormat,
      "'{}' is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull` in its repository",
      path.string());
}

Status check_config_is_there(const fs::path& folder) {
  std::error_code ignored;
  if (fs::exists(folder / "config.json", ignored)) return {};
  if (fs::exists(folder / "adapter_config.json", ignored)) {
    return fail(ErrorKind::kUnsupported,
                "'{}' is a LoRA adapter{}, not a model: merge it first (PEFT: merge_and_unload(), then "
                "save_pretrained())",
                folder.string(), of_base(folder));
  }
  return fail(ErrorKind::kNotFound, "'{}' has no config.json: a folder in Hugging Face layout was expected",
              folder.string());
}

std::unexpected<Error> no_weights_error(const fs::path& folder) {
  if (has_pytorch_weights(folder)) {
    return fail(ErrorKind::kUnsupported,
                "'{}' has its weights in PyTorch's files, which can hold programs: save them as safetensors "
                "(Transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW))",
                folder.string());
  }
  return fail(
      ErrorKind::kNotFound,
      "'{}' has neither model.safetensors nor model.safetensors.index.json nor another .safetensors file",
      folder.string());
}

std::string adapter_note(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::exists(folder / "adapter_config.json", ignored)) return {};
  return fmt::format("'{}' holds a LoRA adapter{} beside the model: it is not applied", folder.string(),
                     of_base(folder));
}

std::string canonical_name(std::string_view name) {
  static constexpr std::array<std::string_view, 3> kPrefixes = {"_orig_mod.", "base_model.model.",
                                                                "base_model."};
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (const std::string_view prefix : kPrefixes) {
      if (!name.starts_with(prefix)) continue;
      name.remove_prefix(prefix.size());
      stripped = true;
    }
  }
  const bool inner =
      name.starts_with("layers.") || name.starts_with("embed_tokens.") || name.starts_with("norm.");
  return inner ? fmt::format("model.{}", name) : std::string(name);
}

}  // namespace qwen2
