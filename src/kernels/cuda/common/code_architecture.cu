#include "kernels/cuda/common/code_architecture.h"

#include "kernels/cuda/common/launch.cuh"

namespace qwen2::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

int code_architecture() {
  return compiled_for(empty_kernel);
}

}  // namespace qwen2::cuda
