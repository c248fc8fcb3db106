// What the driver says of the card, through NVIDIA's management library, which is loaded when asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace qwen2 {

// Bytes of the card that this process holds; nothing where the library or its answer is missing. `pci_bus_id`
// is cudaDeviceGetPCIBusId()'s.
std::optional<uint64_t> nvml_process_memory(const std::string& pci_bus_id);

}  // namespace qwen2
