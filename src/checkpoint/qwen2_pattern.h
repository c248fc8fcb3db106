// The pre-tokeniser's pattern of Qwen2's published tokenizer.json, for files that name it or leave it out.
#pragma once

#include <string_view>

namespace qwen2 {

inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

}  // namespace qwen2
