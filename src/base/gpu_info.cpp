#include "base/gpu_info.h"

#include <dlfcn.h>

#include <array>
#include <vector>

namespace qwen2 {
namespace {

// The few declarations of nvml.h that are needed, so that its header is not.
using NvmlDevice = void*;
struct NvmlProcess {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};
struct NvmlMemory {
  unsigned long long total, free, used;
};
constexpr int kNvmlClockSm = 1;
constexpr int kNvmlClockMemory = 2;

template <class Function>
bool find_symbol(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  return function != nullptr;
}

struct Nvml {
  int (*init)() = nullptr;
  int (*by_bus_id)(const char*, NvmlDevice*) = nullptr;
  int (*processes)(NvmlDevice, unsigned int*, NvmlProcess*) = nullptr;
  int (*name)(NvmlDevice, char*, unsigned int) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*driver)(char*, unsigned int) = nullptr;
  int (*clock)(NvmlDevice, int, unsigned int*) = nullptr;
  bool ready = false;

  Nvml() {
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == nullptr) return;
    ready = find_symbol(library, "nvmlInit_v2", init) &&
            find_symbol(library, "nvmlDeviceGetHandleByPciBusId_v2", by_bus_id) &&
            find_symbol(library, "nvmlDeviceGetComputeRunningProcesses_v3", processes) &&
            find_symbol(library, "nvmlDeviceGetName", name) &&
            find_symbol(library, "nvmlDeviceGetMemoryInfo", memory) &&
            find_symbol(library, "nvmlSystemGetDriverVersion", driver) &&
            find_symbol(library, "nvmlDeviceGetClockInfo", clock) && init() == 0;
  }
};

const Nvml& nvml() {
  static const Nvml library;
  return library;
}

std::optional<NvmlDevice> device_at(const std::string& bus_id) {
  NvmlDevice device = nullptr;
  if (!nvml().ready || nvml().by_bus_id(bus_id.c_str(), &device) != 0) return std::nullopt;
  return device;
}

std::optional<unsigned> clock_of(NvmlDevice device, int type) {
  unsigned int mhz = 0;
  if (nvml().clock(device, type, &mhz) != 0) return std::nullopt;
  return mhz;
}

std::optional<std::string> ask_cuda_for_bus_id() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) return std::nullopt;
  int (*init)(unsigned int) = nullptr;
  int (*device_of)(int*, int) = nullptr;
  int (*bus_id_of)(char*, int, int) = nullptr;
  int device = 0;
  std::array<char, 32> bus_id{};
  if (!find_symbol(library, "cuInit", init) || !find_symbol(library, "cuDeviceGet", device_of) ||
      !find_symbol(library, "cuDeviceGetPCIBusId", bus_id_of) || init(0) != 0 || device_of(&device, 0) != 0 ||
      bus_id_of(bus_id.data(), static_cast<int>(bus_id.size()), device) != 0)
    return std::nullopt;
  return bus_id.data();
}

}  // namespace

std::optional<std::string> first_gpu_bus_id() {
  static const std::optional<std::string> bus_id = ask_cuda_for_bus_id();
  return bus_id;
}

std::optional<GpuState> gpu_state(const std::string& bus_id) {
  const auto device = device_at(bus_id);
  std::array<char, 128> text{};
  NvmlMemory memory{};
  if (!device || nvml().name(*device, text.data(), text.size()) != 0 || nvml().memory(*device, &memory) != 0)
    return std::nullopt;
  GpuState state;
  state.name = text.data();
  state.memory_bytes = memory.total;
  if (nvml().driver(text.data(), text.size()) == 0) state.driver = text.data();
  state.sm_mhz = clock_of(*device, kNvmlClockSm);
  state.memory_mhz = clock_of(*device, kNvmlClockMemory);
  return state;
}

std::optional<uint64_t> gpu_memory_of(const std::string& bus_id, int pid) {
  const auto device = device_at(bus_id);
  std::vector<NvmlProcess> processes(256);
  auto count = static_cast<unsigned int>(processes.size());
  if (!device || nvml().processes(*device, &count, processes.data()) != 0) return std::nullopt;
  for (unsigned int i = 0; i < count; ++i) {
    if (processes[i].pid == static_cast<unsigned int>(pid)) return processes[i].used;
  }
  return std::nullopt;
}

std::optional<uint64_t> gpu_memory_in_use(const std::string& bus_id) {
  const auto device = device_at(bus_id);
  NvmlMemory memory{};
  if (!device || nvml().memory(*device, &memory) != 0) return std::nullopt;
  return memory.used;
}

}  // namespace qwen2
