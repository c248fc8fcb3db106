// A child process whose standard output is read line by line.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace qwen2 {

// Ends the child (SIGTERM, then SIGKILL after ten seconds) when destroyed.
class Subprocess {
 public:
  static Result<Subprocess> start(const std::vector<std::string>& arguments);

  Subprocess(Subprocess&& other) noexcept;
  Subprocess& operator=(Subprocess&& other) noexcept;
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;
  ~Subprocess();

  // The next line without its newline; an error when the child's output ends or `seconds` pass.
  Result<std::string> read_line(double seconds);
  [[nodiscard]] int pid() const { return pid_; }

 private:
  Subprocess(int pid, int output) : pid_(pid), output_(output) {}
  int pid_ = -1;
  int output_ = -1;
  std::string buffered_;
};

}  // namespace qwen2
