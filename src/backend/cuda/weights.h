// Fills the weights that cuda_layout.h placed, matrix by matrix, through small page-locked buffers.
#pragma once

#include "backend/cuda/layout.h"
#include "kernels/cpu/kernels.h"

namespace qwen2 {

// A weight beyond fp16 is an error that names its tensor.
Status load_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config, const cpu::Kernels& kernels,
                         CudaWeights& weights);

// Row `row` of a matrix of `form` with zeroed `codes` [row_bytes]; for tests and uploads.
void set_cuda_code(cuda::MatrixForm form, uint8_t* codes, int64_t col, int code);

}  // namespace qwen2
