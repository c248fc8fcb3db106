// What a request asks the engine for, and what it gets back.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "sampling/sampler.h"

namespace qwen2 {

struct GenerationRequest {
  std::vector<TokenId> prompt;
  int64_t max_new_tokens = 16;
  SamplingParams sampling;
  std::vector<std::string> stop;
  std::vector<TokenId> end_tokens;  // that end it, beside the model's own
  bool ignore_eos = false;
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

constexpr std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

// Seconds: from submission to admission, to the first token, to the last token.
struct Timings {
  double queue = 0;
  double prefill = 0;
  double decode = 0;
};

// One for each token, in order; the last one carries `finish`. A request that ends without a further token
// (cancelled, failed) ends with an event whose `token` is -1.
struct TokenEvent {
  TokenId token = -1;
  std::string text;  // what this token completes; empty inside a character or a possible stop string
  std::optional<FinishReason> finish;
  int64_t completion_tokens = 0;          // so far
  Timings timings;                        // complete on the last event
  Error error{ErrorKind::kInternal, {}};  // with FinishReason::kError
};

// Called on the engine's thread: must not block.
using EventCallback = std::function<void(const TokenEvent&)>;

}  // namespace qwen2
