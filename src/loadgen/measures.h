// What a set of requests measured. The definitions are in statistics.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>

#include "loadgen/http_client.h"
#include "loadgen/objective.h"
#include "loadgen/statistics.h"

namespace qwen2 {

// Seconds; nothing where the request has no such time.
std::optional<double> ttft_of(const RequestRecord& record);
std::optional<double> tpot_of(const RequestRecord& record);
std::optional<double> e2el_of(const RequestRecord& record);

// Latencies and tokens are of the requests that succeeded, `lag` of all.
struct Measures {
  Summary ttft, tpot, itl, e2el, queue, lag;
  int64_t completed = 0;
  int64_t failed = 0;
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  int64_t events = 0;  // that carried tokens
  int64_t good = 0;    // with an objective
  std::map<std::string, int64_t> failures;
};

Measures measure(std::span<const RequestRecord> records, const std::optional<Objective>& objective);

}  // namespace qwen2
