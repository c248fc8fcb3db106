// What this machine is, for result files and memory limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qwen2 {

struct Machine {
  std::string cpu;     // model name
  std::string kernel;  // operating system and release
  std::string host;
  int cores = 0;  // that this process may use
  uint64_t memory_bytes = 0;
  std::string compiler;
  std::string flags;   // the compiler's, those of the kernels' instruction sets aside
  std::string cuda;    // the toolkit that this program was built with; empty: none
  std::string commit;  // of this program's sources
  bool dirty = false;  // they had changes that were not committed
  std::string version;
};

Machine describe_machine();

// Memory that can still be taken without swapping, the control group's limit included.
uint64_t available_memory_bytes();

uint64_t resident_memory_bytes();
// Of another process; 0 where there is none.
uint64_t resident_memory_bytes(int pid);
uint64_t peak_resident_memory_bytes();

// Where this executable lies; empty when the system does not say.
std::string executable_path();

// The arguments that this process was started with, the program's name first.
std::vector<std::string> command_line();

}  // namespace qwen2
