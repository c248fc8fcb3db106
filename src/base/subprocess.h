// A child process whose standard output is read line by line, or goes to a file.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace qwen2 {

// Ends the child (SIGTERM, then SIGKILL after ten seconds) when destroyed.
class Subprocess {
 public:
  static Result<Subprocess> start(const std::vector<std::string>& arguments);
  // Standard output and error go to the file `log`, and read_line() has nothing to read. `environment` has
  // "NAME=value" in place of this process's own. The child leads a process group of its own, so that a
  // terminal's Ctrl-C reaches it only through signal(), and what it started ends with it.
  static Result<Subprocess> start_logged(const std::vector<std::string>& arguments,
                                         const std::vector<std::string>& environment,
                                         const std::filesystem::path& log);

  Subprocess(Subprocess&& other) noexcept;
  Subprocess& operator=(Subprocess&& other) noexcept;
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;
  ~Subprocess();

  // The next line without its newline; an error when the child's output ends or `seconds` pass.
  Result<std::string> read_line(double seconds);
  // The exit status once the child has ended, or 128 plus the number of the signal that ended it. Nothing when
  // `seconds` pass. kStatusUnknown where the system has no status: it has been waited for already, or
  // SIGCHLD is ignored.
  std::optional<int> wait(double seconds);
  static constexpr int kStatusUnknown = 255;
  void signal(int number) const;
  [[nodiscard]] int pid() const { return pid_; }

 private:
  Subprocess(int pid, int output, bool leads_group) : pid_(pid), output_(output), leads_group_(leads_group) {}
  int pid_ = -1;  // -1 when it has been waited for
  int output_ = -1;
  bool leads_group_ = false;
  std::string buffered_;
};

// As a shell would read it back.
std::string shell_command(std::span<const std::string> arguments);

}  // namespace qwen2
