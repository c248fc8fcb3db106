#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {

void product_int4(const ProductArgs& args, int multiprocessors, cudaStream_t stream) {
  if (args.w.form == MatrixForm::kInt4General) {
    product_of<MatrixForm::kInt4General, false>(args, multiprocessors, stream);
  } else if (uses_split_int8(args.w)) {
    product_of<MatrixForm::kInt4, true>(args, multiprocessors, stream);
  } else {
    product_of<MatrixForm::kInt4, false>(args, multiprocessors, stream);
  }
}

}  // namespace qwen2::cuda
