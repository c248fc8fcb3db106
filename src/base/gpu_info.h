// What the driver says of the card, through NVIDIA's management library, which is loaded when asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace qwen2 {

// Bytes of the card that this process holds; nothing where the library or its answer is missing. `pci_bus_id`
// is cudaDeviceGetPCIBusId()'s.
std::optional<uint64_t> nvml_process_memory(const std::string& pci_bus_id);

struct GpuState {
  std::string name;
  uint64_t memory_bytes = 0;
  std::string driver;
  std::optional<unsigned> sm_mhz, memory_mhz;  // the clocks at this moment
};

// The card that CUDA_VISIBLE_DEVICES puts first, or the first of all; nothing where the library or a card is
// missing.
std::optional<GpuState> nvml_first_gpu();

// Bytes that the process `pid` holds on all cards together; nothing where the driver does not list it (in a
// container the numbers of processes differ).
std::optional<uint64_t> nvml_memory_of(int pid);

// Bytes in use on all cards together, whoever holds them.
std::optional<uint64_t> nvml_memory_in_use();

}  // namespace qwen2
