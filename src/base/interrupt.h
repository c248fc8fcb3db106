// Ctrl-C and SIGTERM as a question that long work asks from time to time.
#pragma once

#include <csignal>

namespace qwen2 {

// While one lives, the first SIGINT or SIGTERM is remembered instead of ending the program; a second ends it
// as usual. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard();

 private:
  struct sigaction before_int_{};
  struct sigaction before_term_{};
};

// A signal has come since the last InterruptGuard was made.
bool interrupted();

}  // namespace qwen2
