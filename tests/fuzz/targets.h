// What the fuzzers feed: each takes any bytes and must return. The unit tests run the committed corpus
// through the same functions, so that a find stays found.
#pragma once

#include <string_view>

namespace qwen2::fuzz {

void safetensors(std::string_view bytes);  // a whole file
void gguf(std::string_view bytes);         // a whole file; its texts are parsed, its quantised rows copied
void config(std::string_view bytes);       // config.json
void tokenizer(std::string_view bytes);    // tokenizer.json; what parses is also used
// A Jinja template, and behind a zero byte its messages in JSON; what parses is rendered.
void chat_template(std::string_view bytes);
void request(std::string_view bytes);  // the body of a chat and of a completion

}  // namespace qwen2::fuzz
