// The servers that can be tested as they are, and the request format of each.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

enum class ServerKind { kQwen2, kOpenAi, kLlamaCpp, kVllm, kTgi, kOllama };

std::string_view name_of(ServerKind kind);
std::optional<ServerKind> server_kind_of(std::string_view name);

enum class ApiFlavour { kCompletions, kChat, kGenerate };

std::string_view name_of(ApiFlavour flavour);

// How a flavour is asked of one kind of server.
struct Dialect {
  ServerKind kind = ServerKind::kOpenAi;
  ApiFlavour flavour = ApiFlavour::kCompletions;
  bool stream = true;

  // TGI's /generate and Ollama's /api: not OpenAI's.
  [[nodiscard]] bool native() const {
    return kind == ServerKind::kOllama || (kind == ServerKind::kTgi && flavour != ApiFlavour::kChat);
  }
  [[nodiscard]] std::string_view path() const;
  // vLLM's word for it in result files.
  [[nodiscard]] std::string_view endpoint_type() const;
};

// Settings that the server cannot follow; the error names the flag.
Status check(const Dialect& dialect, bool ignore_eos);

struct Question {
  std::string model;
  std::string prompt;
  int64_t max_new_tokens = 0;
  double temperature = 0;
  bool ignore_eos = false;
  int64_t context = 0;  // tokens that the longest request of the test needs, prompt and answer
};

boost::json::object body_of(const Dialect& dialect, const Question& question);

}  // namespace qwen2
