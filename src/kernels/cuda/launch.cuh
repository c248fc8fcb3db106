// Launches with programmatic dependent launch where the kernel was compiled for it.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace qwen2::cuda {

// Whether this kernel's code waits for its predecessor itself (sm_90 and later).
template <class Kernel>
bool waits_itself(Kernel kernel) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return false;
  return attributes.ptxVersion >= 90;
}

// One answer for each kernel: `kernel` is a template argument so that the lookups happen once.
template <auto kernel, class... Args>
void launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream, Args&&... args) {
  static const bool dependent = waits_itself(kernel);
  if (shared > 48 * 1024) {
    static const cudaError_t raised =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024);
    if (raised != cudaSuccess) return;  // the error stays for cudaGetLastError()
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
}

}  // namespace qwen2::cuda
