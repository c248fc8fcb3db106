// What folders hold that are no model in safetensors: each is refused with what to do about it.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

// Git LFS leaves such a text in place of a file that was not fetched.
bool is_lfs_pointer(std::string_view bytes);
std::unexpected<Error> lfs_pointer_error(const std::filesystem::path& path);

// A folder without config.json: a LoRA adapter, or no model at all.
Status check_config_is_there(const std::filesystem::path& folder);
// A folder without .safetensors files: PyTorch's older files, or none.
std::unexpected<Error> no_weights_error(const std::filesystem::path& folder);

// For a person, where a full model lies beside a LoRA adapter, which is not applied; empty otherwise.
std::string adapter_note(const std::filesystem::path& folder);

// A tensor's name as Transformers saves a whole model: without prefixes of PEFT and torch.compile, and with
// "model." where the inner model was saved by itself.
std::string canonical_name(std::string_view name);

}  // namespace qwen2
