// Recorded arrivals with the lengths of their prompts and answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/error.h"

namespace qwen2 {

struct TraceEntry {
  double arrival = 0;  // seconds after the first
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
};

struct Trace {
  std::vector<TraceEntry> entries;  // ascending arrivals
  int64_t skipped = 0;  // rows without a prompt or without an answer, as failed requests are logged
};

// CSV with a header line, or JSON Lines. Columns, whatever their case:
//   arrival, input_tokens, output_tokens            seconds
//   TIMESTAMP, ContextTokens, GeneratedTokens       Azure's LLM inference traces; dates or seconds
//   Timestamp, Request tokens, Response tokens      BurstGPT; seconds
// The error names the file and the line.
Result<Trace> read_trace(const std::filesystem::path& path);

// "2023-11-16 18:17:03.9799600" or with a T, without zone or with Z or +00:00, as seconds since 1970. Other
// zones are refused: nothing here depends on more than differences, but days with a clock change would.
Result<double> parse_date(std::string_view text);

}  // namespace qwen2
