#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {

void product_f16(const ProductArgs& args, int multiprocessors, cudaStream_t stream) {
  product_of<MatrixForm::kF16, false>(args, multiprocessors, stream);
}

}  // namespace qwen2::cuda
