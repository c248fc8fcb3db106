// Skinny products: up to kMaxRows rows of activations times a weight matrix that is read once.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/common/arguments.h"

namespace qwen2::cuda {

// What a product multiplies, in one of three forms. One row is usually staged: every block makes the
// activations itself in shared memory (can_stage()). Forms 2 and 3 always are; form 1 is when `stride` is 0:
// then x is one fp16 row without padding.
struct ProductInput {
  // Form 1: rows in the matrix's activation_layout(), zero-padded to its chunks.
  const uint16_t* x = nullptr;
  const float* scales = nullptr;   // of split int8 activations
  const float* factors = nullptr;  // [rows]: the norms' factors, which split int8 activations leave out
  int64_t stride = 0;
  ActivationLayout layout = ActivationLayout::kRows;
  // Form 2: rms_norm(hidden + sum of partials) * norm. One block writes the sum to `hidden_out`, a different
  // buffer.
  const float* hidden = nullptr;    // [cols]
  const float* partials = nullptr;  // [splits][cols]
  int splits = 0;                   // of the product that wrote the partial sums
  const float* norm = nullptr;
  float epsilon = 0;
  float* hidden_out = nullptr;
  // Form 3: floats, and the bits of their largest magnitude. Where fp16 would overflow they are divided by a
  // power of two, and the product is multiplied by it. Also with form 1's fp16
  // x, whose rows repack() has divided already.
  const float* values = nullptr;      // [cols]
  const uint32_t* row_max = nullptr;  // [rows]
};

enum class ProductOutput : int {
  kStore,   // y[split][row][n], see ProductArgs
  kQkv,     // adds the bias, rotates, scales and stores queries, writes K and V to the cache
  kSwiglu,  // silu(gate) * up and its largest magnitude; rows of gate and up alternate by eights
};

struct ProductArgs {
  DeviceMatrix w;
  int rows = 0;  // of activations: 1, 2, 4, 8, 16, 32 or 64
  ProductInput input;
  ProductOutput output = ProductOutput::kStore;
  int out_rows = 0;    // rows of W whose results are stored; the matrix may be padded beyond
  int first_row = 0;   // of W in the output, where it is a part of a larger matrix
  float* y = nullptr;  // kStore: [split_k][rows][y_stride]; kSwiglu: [rows][y_stride]
  int64_t y_stride = 0;
  int split_k = 1;  // kStore: splits of the columns; the reader adds their sums up
  // One row, with programmatic dependent launch. `trigger_early`: dependents are triggered before this kernel
  // waits, so that their weights, keys or values are loaded meanwhile. `launched_early`: this kernel starts
  // long before its inputs are there, so it limits its prefetch depth until they are; in fp16 it triggers its
  // dependents late, because they would take bandwidth that it needs itself.
  bool trigger_early = false;
  bool launched_early = false;
  uint32_t* row_max = nullptr;    // kSwiglu: zeroed by the caller; null where the reader needs no maximum
  const Row* row_info = nullptr;  // kQkv
  HeadShape heads;
  KvCache cache;
  float* q = nullptr;  // kQkv: [rows][q_heads * head_dim], times q_scale
  float q_scale = 1;
  float* new_kv = nullptr;  // kQkv with a cache of 8 bits: [rows][2 * kv_heads * head_dim], K rotated
};

void product(const ProductArgs& args, cudaStream_t stream);
// Whether each block can stage one row in shared memory. `normed`: it applies a norm (form 2).
bool can_stage(const DeviceMatrix& w, bool normed);

// out [w.rows][stride] = the matrix in fp16, columns in the order of the activations. For cuBLASLt.
void expand(const DeviceMatrix& w, uint16_t* out, int64_t stride, cudaStream_t stream);

}  // namespace qwen2::cuda
