#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {

void product_f16(const ProductArgs& args, int multiprocessors, cudaStream_t stream);
void product_int8(const ProductArgs& args, int multiprocessors, cudaStream_t stream);
void product_int4(const ProductArgs& args, int multiprocessors, cudaStream_t stream);

namespace {

// Two blocks must fit a Turing multiprocessor's 64 KiB, so that one works while the other waits for memory.
constexpr size_t kStagedBytes = 28 * 1024;

}  // namespace

bool can_stage(const DeviceMatrix& w, bool normed) {
  return w.order == nullptr && staged_bytes(int64_t{w.chunks()} * chunk_columns(w.form)) <= kStagedBytes &&
         (!normed || w.cols <= kNormThreads * kNormQuads * 4);
}

void product(const ProductArgs& args, cudaStream_t stream) {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  switch (form_bits(args.w.form)) {
    case 16:
      return product_f16(args, multiprocessors, stream);
    case 8:
      return product_int8(args, multiprocessors, stream);
    default:
      return product_int4(args, multiprocessors, stream);
  }
}

}  // namespace qwen2::cuda
