// What a Hugging Face folder says in JSON files, made from the metadata of a Qwen2 model in GGUF.
// Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-key-value-pairs
#pragma once

#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"

namespace qwen2 {

// config.json. Another architecture, RoPE scaling and a sliding window are errors that name the key; so are
// missing and mistyped keys. The embedding has a row for every id of the vocabulary.
Result<std::string> gguf_config_json(const GgufFile& file);

// generation_config.json with the ids that end an answer: GGUF has one or two of them, and Qwen2's chat
// models stop at both <|im_end|> and <|endoftext|>, so that those are added. Empty when there are none.
Result<std::string> gguf_generation_config_json(const GgufFile& file);

// tokenizer_config.json alone, without the work that a vocabulary is.
Result<std::string> gguf_tokenizer_config(const GgufFile& file);

// tokenizer.json of the Qwen2 kind, and tokenizer_config.json with the chat template. Another kind of
// tokeniser is an error that names the key; kNotFound when there is none.
Result<TokenizerTexts> gguf_tokenizer(const GgufFile& file);

}  // namespace qwen2
