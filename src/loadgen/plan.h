// Every request of a test, made before the clock starts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "loadgen/options.h"
#include "loadgen/request_record.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {

struct PlannedRequest {
  double offset = 0;  // seconds after the start; open loop and traces
  std::string body;
  int64_t prompt_tokens = 0;  // as this program's tokeniser counts
  bool exact = true;          // a server that counts otherwise has another prompt than was meant
  int64_t max_new_tokens = 0;
};

struct Plan {
  std::vector<PlannedRequest> warmup;
  std::vector<PlannedRequest> requests;
  int64_t trace_rows_skipped = 0;
};

Result<Plan> make_plan(const LoadTestOptions& options, const Dialect& dialect, const std::string& model,
                       const Tokenizer& tokenizer, const ChatTemplate& chat);

// Sets "wrong_length" where the server's counts are not the planned ones, and the planned prompt length where
// the server does not count. An answer's length is only certain with `ignore_eos`.
void check_lengths(const PlannedRequest& planned, bool ignore_eos, RequestRecord& record);

}  // namespace qwen2
