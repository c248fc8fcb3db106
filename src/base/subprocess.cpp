#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <thread>
#include <utility>

#include "base/units.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not declared everywhere

namespace qwen2 {

Result<Subprocess> Subprocess::start(const std::vector<std::string>& arguments) {
  int pipe_ends[2] = {-1, -1};
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0)
    return fail(ErrorKind::kIo, "cannot create a pipe: {}", std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int code = ::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  if (code != 0) {
    ::close(pipe_ends[0]);
    return fail(ErrorKind::kIo, "cannot start '{}': {}", arguments[0], std::strerror(code));
  }
  return Subprocess(pid, pipe_ends[0]);
}

Subprocess::Subprocess(Subprocess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_(std::exchange(other.output_, -1)),
      buffered_(std::move(other.buffered_)) {}

Subprocess& Subprocess::operator=(Subprocess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(output_, other.output_);
  std::swap(buffered_, other.buffered_);
  return *this;
}

Subprocess::~Subprocess() {
  if (output_ >= 0) ::close(output_);
  if (pid_ <= 0) return;
  ::kill(pid_, SIGTERM);
  const double deadline = now_seconds() + 10;
  while (::waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (now_seconds() > deadline) ::kill(pid_, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

Result<std::string> Subprocess::read_line(double seconds) {
  const double deadline = now_seconds() + seconds;
  while (true) {
    if (const size_t end = buffered_.find('\n'); end != std::string::npos) {
      std::string line = buffered_.substr(0, end);
      buffered_.erase(0, end + 1);
      return line;
    }
    pollfd descriptor{output_, POLLIN, 0};
    const int left = static_cast<int>((deadline - now_seconds()) * 1000);
    if (left <= 0)
      return fail(ErrorKind::kUnavailable, "the child process said nothing for {} seconds", seconds);
    if (::poll(&descriptor, 1, left) <= 0) continue;
    char chunk[4096];
    const ssize_t count = ::read(output_, chunk, sizeof chunk);
    if (count <= 0) return fail(ErrorKind::kUnavailable, "the child process ended");
    buffered_.append(chunk, static_cast<size_t>(count));
  }
}

}  // namespace qwen2
