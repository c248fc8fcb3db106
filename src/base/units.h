// Byte counts as people write them, and the monotonic clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;

// "6GiB", "512MiB", "1.5GB", "4096": binary and decimal suffixes, or plain bytes.
Result<uint64_t> parse_bytes(std::string_view text);

// "2.87 GiB", "30.0 MiB", "512 B".
std::string format_bytes(uint64_t bytes);

// Seconds on the monotonic clock; only differences mean anything.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace qwen2
