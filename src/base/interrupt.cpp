#include "base/interrupt.h"

namespace qwen2 {
namespace {

volatile std::sig_atomic_t signal_seen = 0;

void remember(int /*signal*/) {
  signal_seen = 1;
}

}  // namespace

InterruptGuard::InterruptGuard() {
  signal_seen = 0;
  struct sigaction action{};
  action.sa_handler = remember;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &before_int_);
  sigaction(SIGTERM, &action, &before_term_);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &before_int_, nullptr);
  sigaction(SIGTERM, &before_term_, nullptr);
}

bool interrupted() {
  return signal_seen != 0;
}

}  // namespace qwen2
