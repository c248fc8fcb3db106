// Dense fp16 products by cuBLASLt, which is loaded when a GPU is opened: a program built with CUDA runs
// without it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "base/error.h"

namespace qwen2 {

// y[m][n] = sum_k w[n][k] x[m][k]; fp16 in, float sums and results. Strides in elements.
struct DenseProduct {
  const uint16_t* w = nullptr;
  int64_t n = 0;
  int64_t k = 0;
  int64_t w_stride = 0;
  const uint16_t* x = nullptr;
  int64_t m = 0;
  int64_t x_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

class CublasLt {
 public:
  // `workspace` is device memory.
  static Result<std::unique_ptr<CublasLt>> open(void* workspace, size_t workspace_bytes);
  virtual ~CublasLt() = default;
  CublasLt() = default;
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;
  // Equal shapes use the same algorithm, so a row's result depends on the shape alone.
  virtual Status multiply(const DenseProduct& product, cudaStream_t stream) = 0;
};

}  // namespace qwen2
