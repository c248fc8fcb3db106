// A prompt's chunk on the GPU: dense products by cuBLASLt, the rest by our kernels.
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {

// Runs the layers, for a chunk whose inputs and embeddings are in the workspace. The residual stream of
// every row is in prompt_hidden afterwards.
Status CudaBackend::run_prompt(const Chunk& chunk) {
  const auto count = static_cast<int>(chunk.tokens.size());
  for (int layer = 0; layer < config_.layers; ++layer) {
    const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
    prompt_norm(w.input_norm, count, layer == 0 ? 0 : 1, w_.prompt_row_max);
    QWEN2_CHECK(prompt_attention(layer, chunk));
    prompt_norm(w.post_attention_norm, count, 1, nullptr);
    QWEN2_CHECK(prompt_mlp(layer, count));
  }
  prompt_norm(nullptr, count, 1, w_.prompt_row_max);
  return cuda_status(cudaGetLastError(), "a prompt");
}

// Adds the last product to the residual stream, and writes its norm to prompt_x unless `norm` is null.
void CudaBackend::prompt_norm(const float* norm, int rows, int splits, const uint32_t* row_max) const {
  cuda::AddNormArgs args;
  args.rows = rows;
  args.cols = static_cast<int>(config_.hidden_size);
  args.hidden = w_.prompt_hidden;
  args.partials = w_.prompt_out;
  args.splits = splits;
  args.row_max = splits > 0 ? row_max : nullptr;
  args.norm = norm;
  args.epsilon = config_.rms_norm_eps;
  if (norm != nullptr) args.out = {w_.prompt_x, cuda_row_stride(config_.hidden_size)};
  cuda::add_norm(args, stream_);
}

// y [rows][matrix rows] = the product. Quantised weights are expanded to fp16 first, which costs little at
// the sizes of prompts.
Status CudaBackend::prompt_product(const CudaMatrix& matrix, const uint16_t* x, int64_t x_stride,
                                   int64_t rows, float* y) {
  const CudaMatrixPart& last = matrix.back();
  DenseProduct product;
  product.x = x;
  product.m = rows;
  product.x_stride = x_stride;
  product.y_stride = last.first_row + last.matrix.rows;
  for (const CudaMatrixPart& part : matrix) {
    const cuda::DeviceMatrix& m = part.matrix;
    product.n = m.rows;
    product.k = m.cols;
    product.y = y + part.first_row;
    if (m.form == cuda::MatrixForm::kF16) {
      product.w = reinterpret_cast<const uint16_t*>(m.codes);
      product.w_stride = m.row_bytes / 2;
    } else {
      product.w = w_.prompt_weights;
      product.w_stride = cuda_row_stride(m.cols);
      cuda::expand(m, w_.prompt_weights, product.w_stride, stream_);
    }
    QWEN2_CHECK(dense_->multiply(product, stream_));
  }
  return {};
}

Status CudaBackend::prompt_attention(int layer, const Chunk& chunk) {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const auto count = static_cast<int>(chunk.tokens.size());
  const cuda::KvCache kv = cache(layer);
  QWEN2_CHECK(prompt_product(w.qkv, w_.prompt_x, cuda_row_stride(config_.hidden_size), count, w_.prompt_qkv));

  cuda::SplitQkvArgs split;
  split.rows = count;
  split.row_info = rows();
  split.heads = heads();
  split.cache = kv;
  split.qkv = w_.prompt_qkv;
  split.stride = round_up(config_.qkv_size(), cuda::kTileRows);
  split.q = w_.prompt_q;
  split.q_scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim));
  split.new_kv = w_.prompt_gate_up;
  cuda::split_qkv(split, stream_);
  if (options_.kv_bits == 8) cuda::store_kv_int8({count, rows(), heads(), kv, split.new_kv}, stream_);

  cuda::ChunkAttentionArgs attention;
  attention.tokens = count;
  attention.position = static_cast<int>(chunk.position);
  attention.positions = static_cast<int>(plan_.limits.max_model_len);
  attention.heads = heads();
  attention.cache = kv;
  attention.pages = words() + 1;  // after the page of padding rows: see write_inputs()
  attention.q = w_.prompt_q;
  attention.out = w_.prompt_x;
  attention.out_stride = cuda_row_stride(config_.q_size());
  cuda::attend_chunk(attention, stream_);
  return prompt_product(w.attention_output, w_.prompt_x, attention.out_stride, count, w_.prompt_out);
}

Status CudaBackend::prompt_mlp(int layer, int rows) {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  QWEN2_CHECK(
      prompt_product(w.gate_up, w_.prompt_x, cuda_row_stride(config_.hidden_size), rows, w_.prompt_gate_up));
  cuda::SwigluArgs args;
  args.rows = rows;
  args.cols = static_cast<int>(config_.intermediate_size);
  args.gate_up = w_.prompt_gate_up;
  args.gate_up_stride = 2 * config_.intermediate_size;
  args.x = w_.prompt_x;
  args.stride = cuda_row_stride(config_.intermediate_size);
  args.row_max = w_.prompt_row_max;
  cuda::swiglu_rows(args, stream_);
  return prompt_product(w.down, w_.prompt_x, args.stride, rows, w_.prompt_out);
}

// Computes the logits of rows [first, first + rows) of the last prompt, at most row_limit_, into rows from
// 0 on.
Status CudaBackend::prompt_head(int64_t first, int64_t rows) const {
  const auto bytes = static_cast<size_t>(rows * config_.hidden_size) * sizeof(float);
  QWEN2_CHECK(cuda_status(cudaMemcpyAsync(w_.hidden[0], w_.prompt_hidden + first * config_.hidden_size, bytes,
                                          cudaMemcpyDeviceToDevice, stream_),
                          "a prompt's last row"));
  int current = 0;
  multiply(weights_.head, head_product(row_bucket(rows), 0, current));
  return cuda_status(cudaGetLastError(), "a prompt's logits");
}

}  // namespace qwen2
