#include "base/machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "commit.h"

namespace qwen2 {
namespace {

// The number behind `key` in a "Key:   123 kB" file of /proc, in bytes.
uint64_t proc_kilobytes(const char* file, std::string_view key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  }
  return 0;
}

std::optional<uint64_t> number_in(const char* file) {
  std::ifstream in(file);
  uint64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;  // absent, or "max"
}

}  // namespace

Machine describe_machine() {
  Machine machine;
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      machine.cpu = line.substr(colon + 2);
      break;
    }
  }
  utsname system{};
  if (uname(&system) == 0) {
    machine.kernel = std::string(system.sysname) + " " + system.release;
    machine.host = system.nodename;
  }
  cpu_set_t set;
  machine.cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  machine.memory_bytes = proc_kilobytes("/proc/meminfo", "MemTotal:");
  machine.compiler = "g++ " __VERSION__;
  machine.flags = QWEN2_COMPILER_FLAGS;
  machine.cuda = QWEN2_CUDA_VERSION;
  machine.commit = QWEN2_COMMIT;
  machine.dirty = QWEN2_DIRTY;
  machine.version = QWEN2_VERSION;
  return machine;
}

uint64_t available_memory_bytes() {
  uint64_t available = proc_kilobytes("/proc/meminfo", "MemAvailable:");
  const auto limit = number_in("/sys/fs/cgroup/memory.max");
  const auto used = number_in("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(available, *limit - std::min(*limit, *used));
  return available;
}

uint64_t resident_memory_bytes() {
  return proc_kilobytes("/proc/self/status", "VmRSS:");
}

uint64_t resident_memory_bytes(int pid) {
  return proc_kilobytes(("/proc/" + std::to_string(pid) + "/status").c_str(), "VmRSS:");
}

uint64_t peak_resident_memory_bytes() {
  return proc_kilobytes("/proc/self/status", "VmHWM:");
}

std::string executable_path() {
  std::error_code code;
  return std::filesystem::read_symlink("/proc/self/exe", code).string();
}

std::vector<std::string> command_line() {
  std::ifstream in("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(in, argument, '\0');) arguments.push_back(std::move(argument));
  return arguments;
}

}  // namespace qwen2
