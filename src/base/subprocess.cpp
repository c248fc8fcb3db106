#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>

#include "base/units.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): not declared everywhere

namespace qwen2 {

namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  pointers.reserve(texts.size() + 1);
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// This process's environment with `changes` ("NAME=value") put in.
std::vector<std::string> environment_with(const std::vector<std::string>& changes) {
  std::vector<std::string> all = changes;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('=') + 1);
    if (std::ranges::none_of(changes, [&](const std::string& c) { return c.starts_with(name); }))
      all.emplace_back(text);
  }
  return all;
}

int exit_status(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

Result<Subprocess> Subprocess::start(const std::vector<std::string>& arguments) {
  int pipe_ends[2] = {-1, -1};
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0)
    return fail(ErrorKind::kIo, "cannot create a pipe: {}", std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  pid_t pid = -1;
  const int code =
      ::posix_spawn(&pid, arguments[0].c_str(), &actions, nullptr, pointers_to(arguments).data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  if (code != 0) {
    ::close(pipe_ends[0]);
    return fail(ErrorKind::kIo, "cannot start '{}': {}", arguments[0], std::strerror(code));
  }
  return Subprocess(pid, pipe_ends[0], false);
}

Result<Subprocess> Subprocess::start_logged(const std::vector<std::string>& arguments,
                                            const std::vector<std::string>& environment,
                                            const std::filesystem::path& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  const std::vector<std::string> variables = environment_with(environment);
  pid_t pid = -1;
  const int code = ::posix_spawn(&pid, arguments[0].c_str(), &actions, &attributes,
                                 pointers_to(arguments).data(), pointers_to(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (code != 0) {
    return fail(ErrorKind::kIo, "cannot start '{}' with its output in '{}': {}", arguments[0], log.string(),
                std::strerror(code));
  }
  return Subprocess(pid, -1, true);
}

Subprocess::Subprocess(Subprocess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_(std::exchange(other.output_, -1)),
      leads_group_(other.leads_group_),
      buffered_(std::move(other.buffered_)) {}

Subprocess& Subprocess::operator=(Subprocess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(output_, other.output_);
  std::swap(leads_group_, other.leads_group_);
  std::swap(buffered_, other.buffered_);
  return *this;
}

Subprocess::~Subprocess() {
  if (output_ >= 0) ::close(output_);
  if (pid_ <= 0) return;
  signal(SIGTERM);
  while (!wait(10)) ::kill(leads_group_ ? -pid_ : pid_, SIGKILL);
}

void Subprocess::signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

std::optional<int> Subprocess::wait(double seconds) {
  if (pid_ <= 0) return kStatusUnknown;
  const double deadline = now_seconds() + seconds;
  int status = 0;
  while (true) {
    const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
    if (ended == pid_) break;
    if (ended < 0 && errno != EINTR) {
      pid_ = -1;
      return kStatusUnknown;
    }
    if (now_seconds() > deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (leads_group_) ::kill(-pid_, SIGKILL);  // what the child started and left behind
  pid_ = -1;
  return exit_status(status);
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

std::string shell_command(std::span<const std::string> arguments) {
  static constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,+@%";
  std::string command;
  for (const std::string& argument : arguments) {
    if (!command.empty()) command += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      command += argument;
      continue;
    }
    command += '\'';
    for (const char c : argument) command += c == '\'' ? "'\\''" : std::string(1, c);
    command += '\'';
  }
  return command;
}

}  // namespace qwen2
