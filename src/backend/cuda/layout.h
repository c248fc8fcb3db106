// What the CUDA backend keeps in device memory, and its size. Plain C++: memory is planned without a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "kernels/cuda/common/layout.h"
#include "model/inventory.h"

namespace qwen2 {

// A matrix whose rows have several formats is several parts, each a range of its stored rows.
struct CudaMatrixPart {
  int first_row = 0;  // stored row of the whole matrix
  cuda::DeviceMatrix matrix;
};
using CudaMatrix = std::vector<CudaMatrixPart>;

struct CudaLayer {
  float* input_norm = nullptr;
  CudaMatrix qkv;
  float* qkv_bias = nullptr;
  CudaMatrix attention_output;
  float* post_attention_norm = nullptr;
  CudaMatrix gate_up;
  CudaMatrix down;
};

struct CudaWeights {
  CudaMatrix embedding;
  std::vector<CudaLayer> layers;
  float* final_norm = nullptr;
  CudaMatrix head;  // the embedding when tied
};

// Allocates aligned pieces of a block of device memory. With a null base it only counts bytes.
class CudaArena {
 public:
  explicit CudaArena(std::byte* base) : next_(reinterpret_cast<uintptr_t>(base)), begin_(next_) {}
  template <class T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(next_);  // NOLINT(performance-no-int-to-ptr)
    next_ += (static_cast<uintptr_t>(count) * sizeof(T) + 255) / 256 * 256;
    return place;
  }
  [[nodiscard]] uint64_t used() const { return next_ - begin_; }

 private:
  uintptr_t next_;
  uintptr_t begin_;
};

// The layout of activations for products of several rows: rows where the parts need different ones, or where
// columns must be permuted first.
cuda::ActivationLayout activation_layout(const CudaMatrix& matrix);

// Places every tensor. Of the checkpoint it reads only the format of each matrix.
Result<CudaWeights> lay_out_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config,
                                         const Precision& precision, CudaArena& arena);

// The stored row of row `row` of source `source`. Rotation pairs, and gate and up, are eight rows apart in
// a tile, so that one lane has both.
int64_t cuda_stored_row(const Qwen2Config& config, const MatrixEntry& entry, size_t source, int64_t row);

// Buffers of the forward pass: of up to cuda::kMaxRows decoding rows, and of one chunk of a prompt.
struct CudaWorkspace {
  // A step's inputs, which fetch() copies from the host: Row [input_rows], SampleRow [kMaxRows], then page
  // tables and lists of seen tokens [input_words].
  std::byte* inputs = nullptr;
  int32_t* tokens = nullptr;           // [2][max_num_seqs]: sampled tokens, of two steps in turn
  unsigned long long* best = nullptr;  // [kMaxRows]
  // Rows that decode.
  float* hidden[2] = {};              // [kMaxRows][hidden]
  float* partials = nullptr;          // [kDownSplit][kMaxRows][hidden]
  float* q = nullptr;                 // [kMaxRows][q]
  float* new_kv = nullptr;            // [kMaxRows][2 kv]
  float* products = nullptr;          // [kMaxRows][intermediate]
  uint32_t* row_max = nullptr;        // [layers][kMaxRows], and a counter for all layers in one kernel
  std::byte* layers_table = nullptr;  // [layers][kLayerEntryBytes]: its arguments
  uint16_t* x = nullptr;              // [kMaxRows][widest]: fp16 input of a product
  uint16_t* attended = nullptr;       // [kMaxRows][widest]
  uint16_t* permuted = nullptr;       // [kMaxRows][widest]: x repacked for a matrix
  float* x_scales = nullptr;          // [widest / kActivationGroup][kMaxRows]: of split int8 x
  float* permuted_scales = nullptr;   // the same
  float* x_factors = nullptr;         // [kMaxRows]
  float* split_sums = nullptr;        // [kMaxRows][heads][kMaxSplits][head_dim]
  float* split_scalars = nullptr;     // [kMaxRows][heads][kMaxSplits][2]
  uint32_t* arrived = nullptr;        // [kMaxRows][heads]
  float* logits = nullptr;            // [kMaxRows][vocab]
  float* rotations = nullptr;         // [positions][head_dim / 2][2]
  std::byte* key_bias = nullptr;      // [layers][kv_heads][kMaxBiasPairs] of index, first and second
  // A chunk of a prompt. All layers use the same buffers.
  float* prompt_hidden = nullptr;      // [chunk][hidden]
  float* prompt_qkv = nullptr;         // [chunk][qkv]
  float* prompt_out = nullptr;         // [chunk][hidden]
  float* prompt_gate_up = nullptr;     // [chunk][2 intermediate]; before that, new keys and values of 8 bits
  float* prompt_q = nullptr;           // [chunk][q]
  uint16_t* prompt_x = nullptr;        // [chunk][widest]
  uint32_t* prompt_row_max = nullptr;  // [chunk]
  uint16_t* prompt_weights = nullptr;  // the largest quantised matrix, expanded to fp16; fp16 models: empty
  std::byte* gemm = nullptr;           // the workspace of cuBLASLt

  int64_t input_rows = 0;
  int64_t input_words = 0;

  [[nodiscard]] int64_t samples_offset() const { return input_rows * kRowBytes; }
  [[nodiscard]] int64_t words_offset() const { return samples_offset() + cuda::kMaxRows * kSampleBytes; }
  [[nodiscard]] int64_t input_bytes() const { return words_offset() + input_words * 4; }
  static constexpr int64_t kRowBytes = 16;
  static constexpr int64_t kSampleBytes = 48;
};

constexpr int64_t kCudaGemmWorkspace = int64_t{32} << 20;
// split-K of the two projections into the residual stream: their rows alone are too few tiles for a large
// GPU.
constexpr int kDownSplit = 4;
constexpr int kOutputSplit = 4;

CudaWorkspace lay_out_cuda_workspace(const Qwen2Config& config, const Limits& limits,
                                     const CudaWeights& weights, int64_t kv_pages, CudaArena& arena);

// The stride of a row of fp16 activations, in elements: columns padded to the chunks of any form.
int64_t cuda_row_stride(int64_t cols);

// Device memory beside what the plan counts.
struct CudaOverhead {
  uint64_t context = 0;    // the CUDA context, the kernels' code and libraries
  uint64_t graphs = 0;     // see kCudaGraphBytes
  uint64_t available = 0;  // for this process, where the user sets no budget
};

// An allowance for recorded graphs and code that is loaded on first use; see docs/gpu.md.
constexpr uint64_t kCudaGraphBytes = uint64_t{64} << 20;

// Bytes of weights that a decode step of batch 1 reads.
uint64_t cuda_decode_bytes(const CudaWeights& weights);

struct CudaPlanDraft {
  MemoryPlan plan;
  bool fits = false;
  std::string cure;  // if it does not fit
  uint64_t decode_bytes = 0;
  int64_t resident_requests = 0;  // of max_model_len each
};

// The plan without a GPU, whether it fits or not. Unset `limits` get the defaults of a GPU.
Result<CudaPlanDraft> draft_cuda_plan(const Checkpoint& checkpoint, const Qwen2Config& config,
                                      const Limits& limits, const CudaOptions& options,
                                      const CudaOverhead& overhead);

// The same; a plan that does not fit is an error.
Result<MemoryPlan> plan_cuda(const Checkpoint& checkpoint, const Qwen2Config& config, const Limits& limits,
                             const CudaOptions& options, const CudaOverhead& overhead);

}  // namespace qwen2
