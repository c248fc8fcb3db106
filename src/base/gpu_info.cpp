#include "base/gpu_info.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
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
struct Memory {
  unsigned long long total, free, used;
};
constexpr int kClockSm = 1;
constexpr int kClockMemory = 2;

struct Nvml {
  int (*init)() = nullptr;
  int (*count)(unsigned int*) = nullptr;
  int (*by_index)(unsigned int, Device*) = nullptr;
  int (*by_bus_id)(const char*, Device*) = nullptr;
  int (*by_uuid)(const char*, Device*) = nullptr;
  int (*processes)(Device, unsigned int*, ProcessInfo*) = nullptr;
  int (*name)(Device, char*, unsigned int) = nullptr;
  int (*memory)(Device, Memory*) = nullptr;
  int (*driver)(char*, unsigned int) = nullptr;
  int (*clock)(Device, int, unsigned int*) = nullptr;
  bool ready = false;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == nullptr) return;
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      return function != nullptr;
    };
    ready = find(init, "nvmlInit_v2") && find(count, "nvmlDeviceGetCount_v2") &&
            find(by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2") &&
            find(by_index, "nvmlDeviceGetHandleByIndex_v2") && find(by_uuid, "nvmlDeviceGetHandleByUUID") &&
            find(processes, "nvmlDeviceGetComputeRunningProcesses_v3") && find(name, "nvmlDeviceGetName") &&
            find(memory, "nvmlDeviceGetMemoryInfo") && find(driver, "nvmlSystemGetDriverVersion") &&
            find(clock, "nvmlDeviceGetClockInfo") && init() == 0;
  }
};

const Nvml& nvml() {
  static const Nvml library;
  return library;
}

std::optional<unsigned> clock_of(Device device, int type) {
  unsigned int mhz = 0;
  if (nvml().clock(device, type, &mhz) != 0) return std::nullopt;
  return mhz;
}

// By index or UUID, as CUDA_VISIBLE_DEVICES has them.
std::optional<Device> first_visible() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  const std::string list = visible == nullptr ? "0" : visible;
  const std::string first = list.substr(0, list.find(','));
  Device device = nullptr;
  if (first.starts_with("GPU-") || first.starts_with("MIG-")) {
    if (nvml().by_uuid(first.c_str(), &device) == 0) return device;
  } else if (!first.empty() && first.find_first_not_of("0123456789") == std::string::npos) {
    const auto index = static_cast<unsigned int>(std::strtoul(first.c_str(), nullptr, 10));
    if (nvml().by_index(index, &device) == 0) return device;
  }
  return std::nullopt;
}

std::vector<Device> all_devices() {
  unsigned int count = 0;
  std::vector<Device> devices;
  if (!nvml().ready || nvml().count(&count) != 0) return devices;
  for (unsigned int i = 0; i < count; ++i) {
    Device device = nullptr;
    if (nvml().by_index(i, &device) == 0) devices.push_back(device);
  }
  return devices;
}

std::optional<uint64_t> memory_on(Device device, int pid) {
  std::vector<ProcessInfo> processes(256);
  auto count = static_cast<unsigned int>(processes.size());
  if (nvml().processes(device, &count, processes.data()) != 0) return std::nullopt;
  for (unsigned int i = 0; i < count; ++i) {
    if (processes[i].pid == static_cast<unsigned int>(pid)) return processes[i].used;
  }
  return std::nullopt;
}

}  // namespace

std::optional<uint64_t> nvml_process_memory(const std::string& pci_bus_id) {
  Device device = nullptr;
  if (!nvml().ready || nvml().by_bus_id(pci_bus_id.c_str(), &device) != 0) return std::nullopt;
  return memory_on(device, getpid());
}

std::optional<uint64_t> nvml_memory_of(int pid) {
  std::optional<uint64_t> sum;
  for (Device device : all_devices()) {
    if (const auto bytes = memory_on(device, pid)) sum = sum.value_or(0) + *bytes;
  }
  return sum;
}

std::optional<uint64_t> nvml_memory_in_use() {
  std::optional<uint64_t> sum;
  for (Device device : all_devices()) {
    Memory info{};
    if (nvml().memory(device, &info) == 0) sum = sum.value_or(0) + info.used;
  }
  return sum;
}

std::optional<GpuState> nvml_first_gpu() {
  if (!nvml().ready) return std::nullopt;
  const std::optional<Device> device = first_visible();
  std::array<char, 128> text{};
  Memory memory{};
  if (!device || nvml().name(*device, text.data(), text.size()) != 0 || nvml().memory(*device, &memory) != 0)
    return std::nullopt;
  GpuState state{
      .name = text.data(), .memory_bytes = memory.total, .driver = {}, .sm_mhz = {}, .memory_mhz = {}};
  if (nvml().driver(text.data(), text.size()) == 0) state.driver = text.data();
  state.sm_mhz = clock_of(*device, kClockSm);
  state.memory_mhz = clock_of(*device, kClockMemory);
  return state;
}

}  // namespace qwen2
