// Reads one answer, streamed or whole, in any server's format, and notes when each token came.
//
// Formats: https://platform.openai.com/docs/api-reference, llama.cpp's tools/server/README.md, vLLM's OpenAI
// server, https://huggingface.github.io/text-generation-inference,
// https://github.com/ollama/ollama/blob/main/docs/api.md
#pragma once

#include <string>
#include <string_view>

#include "base/json_fields.h"
#include "loadgen/request_record.h"
#include "loadgen/server_kind.h"
#include "loadgen/sse.h"

namespace qwen2 {

class AnswerReader {
 public:
  AnswerReader(const Dialect& dialect, RequestRecord& record) : dialect_(dialect), record_(record) {}

  // Bytes of the body and when they were read.
  void push(std::string_view bytes, double now);
  // The body is complete: an answer that is not becomes "cut_stream".
  void finish();

 private:
  void read_event(std::string_view data, double now);
  void read_openai(const JsonFields& root, double now);
  void read_tgi(const JsonFields& root, double now);
  void read_ollama(const JsonFields& root, double now);
  void read_whole();
  void add_token(std::string_view text, double now);

  Dialect dialect_;
  RequestRecord& record_;
  SseParser sse_;
  std::string pending_;  // the line, or the whole body, that is not complete yet
  bool done_ = false;
};

}  // namespace qwen2
