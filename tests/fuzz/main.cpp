// libFuzzer's entry; QWEN2_FUZZ_TARGET names the function of targets.h.
#include <cstddef>
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  qwen2::fuzz::QWEN2_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
