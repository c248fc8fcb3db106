// Loads the weights into the memory that layout.h has placed, matrix by matrix, through small page-locked
// buffers.
#pragma once

#include "backend/cuda/layout.h"
#include "kernels/cpu/kernels.h"

namespace qwen2 {

// A weight beyond the range of fp16 is an error that names its tensor.
Status load_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config, const cpu::Kernels& kernels,
                         CudaWeights& weights);

// Sets the code of column `col` in the zeroed row `codes` [row_bytes] of a matrix of `form`.
void set_cuda_code(cuda::MatrixForm form, uint8_t* codes, int64_t col, int code);

}  // namespace qwen2
