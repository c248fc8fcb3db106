#include "backend/nvml.h"

#include <dlfcn.h>
#include <unistd.h>

#include <vector>

namespace qwen2 {
namespace {

// The few declarations of nvml.h that are needed, so that its header is not.
using Device = void*;
struct ProcessInfo {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};

struct Nvml {
  int (*init)() = nullptr;
  int (*by_bus_id)(const char*, Device*) = nullptr;
  int (*processes)(Device, unsigned int*, ProcessInfo*) = nullptr;
  bool ready = false;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    ready = find(init, "nvmlInit_v2") && find(by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2") &&
            find(processes, "nvmlDeviceGetComputeRunningProcesses_v3") && init() == 0;
  }
};

}  // namespace

std::optional<uint64_t> nvml_process_memory(const std::string& pci_bus_id) {
  static const Nvml nvml;
  Device device = nullptr;
  if (!nvml.ready || nvml.by_bus_id(pci_bus_id.c_str(), &device) != 0) return std::nullopt;
  std::vector<ProcessInfo> processes(256);
  auto count = static_cast<unsigned int>(processes.size());
  if (nvml.processes(device, &count, processes.data()) != 0) return std::nullopt;
  for (unsigned int i = 0; i < count; ++i) {
    if (processes[i].pid == static_cast<unsigned int>(getpid())) return processes[i].used;
  }
  return std::nullopt;
}

}  // namespace qwen2
