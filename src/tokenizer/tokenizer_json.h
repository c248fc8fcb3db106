// Reads the files of a tokeniser: tokenizer.json, or vocab.json with merges.txt as before it.
// Formats: https://huggingface.co/docs/tokenizers, https://github.com/openai/gpt-2
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/bpe.h"

namespace qwen2 {

struct AddedToken {
  std::string text;
  TokenId id;
  bool special;
  bool normalized;  // looked for in text after NFC
};

struct TokenizerParts {
  bool nfc = false;
  std::string pattern;
  std::vector<std::pair<std::string, TokenId>> tokens;      // raw bytes
  std::vector<std::pair<std::string, std::string>> merges;  // raw bytes, the most important first
  std::vector<AddedToken> added;
  std::vector<TokenId> before, after;  // what a text by itself is put between
};

// What the file asks for beyond the Qwen2 kind is an error that names it.
Result<TokenizerParts> parse_tokenizer_json(std::string_view text);

// `added_tokens` come from tokenizer_config.json ("added_tokens_decoder") or added_tokens.json; empty texts where
// a file is not there.
Result<TokenizerParts> parse_vocabulary_files(std::string_view vocab_json, std::string_view merges_txt,
                                              std::string_view tokenizer_config_json,
                                              std::string_view added_tokens_json);

}  // namespace qwen2
