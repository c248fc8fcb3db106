// Launches with programmatic dependent launch where the kernel was compiled for it.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace qwen2::cuda {

// The architecture whose code of this kernel the GPU runs, as 75 or 90. Code that the driver compiled from
// PTX has the PTX's.
template <class Kernel>
int compiled_for(Kernel kernel) {
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return 0;
  return attributes.ptxVersion;
}

// How a multiprocessor's memory is divided into shared memory and first-level cache.
enum class Carveout {
  kShared,  // the most shared memory: blocks of two kernels can be resident together
  kCache,   // shared memory for one block, the rest is cache
};

// An attribute of the GPU in use.
inline int card(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// The most bytes of shared memory that one block can have.
inline int most_shared_memory() {
  return card(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// Raises a kernel's limit of shared memory to the GPU's.
template <class Kernel>
cudaError_t open_shared_memory(Kernel kernel, Carveout carveout, size_t shared) {
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, kernel);
  const int all = card(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const size_t needed = shared + attributes.sharedSizeBytes + 1024;
  const int percent = carveout == Carveout::kShared ? cudaSharedmemCarveoutMaxShared
                                                    : static_cast<int>((100 * needed + all - 1) / all);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most_shared_memory() - static_cast<int>(attributes.sharedSizeBytes));
}

// `kernel` is a template argument, so that each kernel's attributes are looked up once.
template <auto kernel, Carveout carveout = Carveout::kShared, class... Args>
void launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream, Args&&... args) {
  static const bool dependent = compiled_for(kernel) >= 90;
  // Where this fails, the launch does too, every time and not only the first.
  [[maybe_unused]] static const cudaError_t opened = open_shared_memory(kernel, carveout, shared);
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
