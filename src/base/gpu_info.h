// What NVIDIA's management library (NVML) says of a GPU. The library is loaded when it is first needed; where it,
// a driver or an answer is missing, functions return nothing.
//
// GPUs are named by PCI bus id. NVML's indices are not CUDA's: CUDA sorts by speed and obeys
// CUDA_VISIBLE_DEVICES.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace qwen2 {

// The PCI bus id of CUDA's device 0, from CUDA's driver, without creating a context.
std::optional<std::string> first_gpu_bus_id();

struct GpuState {
  std::string name;
  uint64_t memory_bytes = 0;
  std::string driver;
  std::optional<unsigned> sm_mhz, memory_mhz;  // the clocks at this moment
};
std::optional<GpuState> gpu_state(const std::string& bus_id);

// Bytes of the GPU that the process `pid` holds. Nothing where the driver does not list it: in a container,
// process ids differ.
std::optional<uint64_t> gpu_memory_of(const std::string& bus_id, int pid);

// Bytes of the GPU that are in use by all processes.
std::optional<uint64_t> gpu_memory_in_use(const std::string& bus_id);

}  // namespace qwen2
