// Which architecture's code of the kernels the GPU in use runs.
#pragma once

namespace qwen2::cuda {

// As 75 or 90. Code that the driver compiled from PTX has the architecture of the PTX. 0: the GPU has none.
int code_architecture();

// The oldest architecture with the code paths of `architecture`: 75 (Turing), 80 (asynchronous copies) or 90
// (programmatic dependent launch).
constexpr int code_generation(int architecture) {
  return architecture >= 90 ? 90 : architecture >= 80 ? 80 : 75;
}

}  // namespace qwen2::cuda
