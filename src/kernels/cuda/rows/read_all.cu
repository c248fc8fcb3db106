// A plain read of memory, to measure its bandwidth.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/rows/rows.h"

namespace qwen2::cuda {
namespace {

__global__ void __launch_bounds__(512) read_all_kernel(const uint4* data, int64_t count, uint32_t* out) {
  constexpr int kLoads = 8;
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 v[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) v[j] = load_once(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) sum += data[i].x;
  if (sum == 0x9e3779b9U)
    *out = 0;  // `out` holds zero already: a use of the sum, so that the compiler keeps the reads
}

}  // namespace

void read_all(const void* data, size_t bytes, uint32_t* out, cudaStream_t stream) {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  read_all_kernel<<<4 * multiprocessors, 512, 0, stream>>>(static_cast<const uint4*>(data),
                                                           static_cast<int64_t>(bytes / 16), out);
}

}  // namespace qwen2::cuda
