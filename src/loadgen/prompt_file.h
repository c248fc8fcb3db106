// Prompts that people wrote.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"

namespace qwen2 {

struct FilePrompt {
  std::string prompt;
  std::string answer;  // what followed it in the file; empty where there is none
};

// ShareGPT's form, a JSON array of {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}
// of which the first two turns are taken, or JSON Lines of such objects or of {"prompt": ..., "answer"?:
// ...}. Conversations that do not start with a human are skipped. The error names the file and the entry.
Result<std::vector<FilePrompt>> read_prompts(const std::filesystem::path& path);

}  // namespace qwen2
