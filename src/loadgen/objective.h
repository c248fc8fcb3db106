// What a request must meet to be a good one, and how many must.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "loadgen/http_client.h"

namespace qwen2 {

struct Objective {
  std::optional<double> ttft, tpot, e2el;  // seconds at most
  double percent = 99;                     // of all requests, failed ones too, that must be good

  // "ttft=2s,tpot=100ms,e2el=10s,p=99": times in s or ms, at least one of them. The error names --slo.
  static Result<Objective> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
};

// It did not fail and meets every limit; one that has no TTFT or TPOT (an answer in one piece, of one token)
// meets that limit.
bool is_good(const RequestRecord& record, const Objective& objective);

}  // namespace qwen2
