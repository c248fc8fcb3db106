// What the CUDA backend puts on the card, and how large it is; plain C++, so that memory is planned without a
// card and without CUDA.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "kernels/cuda/common/layout.h"
#include "model/inventory.h"

namespace qwen2 {

// A matrix whose rows have different formats has several parts, each some of its stored rows.
struct CudaMatrixPart {
  int first_row = 0;  // stored
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

// Hands out aligned pieces of device memory; from a null base it only counts.
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

// How products of several rows with all parts want their activations: as rows where they differ, or where
// columns must be permuted first.
cuda::XOrder x_order(const CudaMatrix& matrix);

// Places every tensor. Reads nothing of the checkpoint but how its matrices are stored.
Result<CudaWeights> lay_out_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config,
                                         const Precision& precision, CudaArena& arena);

// Where row `row` of source `source` lies among the matrix's stored rows: rotation pairs, and gate and up,
// lie eight rows apart in a tile, so that one lane has both.
int64_t cuda_stored_row(const Qwen2Config& config, const MatrixEntry& entry, size_t source, int64_t row);

// Buffers of the forward pass. Rows go together up to cuda::kMaxRows; prompts in chunks.
struct CudaWorkspace {
  // What a step needs from the host, where fetch() brings it: Row [input_rows], SampleRow [kMaxRows], then
  // page tables and lists of seen tokens [input_words].
  std::byte* inputs = nullptr;
  int32_t* tokens = nullptr;           // [2][max_num_seqs]: sampled, of two steps in turn
  unsigned long long* best = nullptr;  // [kMaxRows]
  // Rows that decode.
  float* hidden[2] = {};              // [kMaxRows][hidden]
  float* partials = nullptr;          // [kDownSplit][kMaxRows][hidden]
  float* q = nullptr;                 // [kMaxRows][q]
  float* new_kv = nullptr;            // [kMaxRows][2 kv]
  float* products = nullptr;          // [kMaxRows][intermediate]
  uint32_t* row_max = nullptr;        // [layers][kMaxRows], and a counter for all layers in one kernel
  std::byte* layers_table = nullptr;  // [layers][kLayerEntryBytes]: what that kernel is told
  uint16_t* x = nullptr;              // [kMaxRows][widest]: fp16 input of a product
  uint16_t* attended = nullptr;       // [kMaxRows][widest]
  uint16_t* permuted = nullptr;       // [kMaxRows][widest]: x in the order that a matrix wants
  float* x_scales = nullptr;          // [widest / kDigitColumns][kMaxRows]: where x is digits
  float* permuted_scales = nullptr;   // the same
  float* x_factors = nullptr;         // [kMaxRows]
  float* part_sums = nullptr;         // [kMaxRows][heads][kMaxSplits][head_dim]
  float* part_scalars = nullptr;      // [kMaxRows][heads][kMaxSplits][2]
  uint32_t* arrived = nullptr;        // [kMaxRows][heads]
  float* logits = nullptr;            // [kMaxRows][vocab]
  float* rotations = nullptr;         // [positions][head_dim / 2][2]
  std::byte* key_bias = nullptr;      // [layers][kv_heads][kMaxBiasPairs] of index, first and second
  // Prompts; they share memory with each other's layers, and `weights` is empty for fp16 models.
  float* prompt_hidden = nullptr;      // [chunk][hidden]
  float* prompt_qkv = nullptr;         // [chunk][qkv]
  float* prompt_out = nullptr;         // [chunk][hidden]
  float* prompt_gate_up = nullptr;     // [chunk][2 intermediate]; before that, new keys and values of 8 bits
  float* prompt_q = nullptr;           // [chunk][q]
  uint16_t* prompt_x = nullptr;        // [chunk][widest]
  uint32_t* prompt_row_max = nullptr;  // [chunk]
  uint16_t* prompt_weights = nullptr;  // the largest quantised matrix, expanded
  std::byte* gemm = nullptr;           // cuBLASLt's

  int64_t input_rows = 0;
  int64_t input_words = 0;

  [[nodiscard]] int64_t samples_offset() const { return input_rows * kRowBytes; }
  [[nodiscard]] int64_t words_offset() const { return samples_offset() + cuda::kMaxRows * kSampleBytes; }
  [[nodiscard]] int64_t input_bytes() const { return words_offset() + input_words * 4; }
  static constexpr int64_t kRowBytes = 16;
  static constexpr int64_t kSampleBytes = 48;
};

constexpr int64_t kCudaGemmWorkspace = int64_t{32} << 20;
// Parts of the columns of the two projections into the residual stream: their rows alone are too few tiles
// for a large card.
constexpr int kDownSplit = 4;
constexpr int kOutputSplit = 4;

CudaWorkspace lay_out_cuda_workspace(const Qwen2Config& config, const Limits& limits,
                                     const CudaWeights& weights, int64_t kv_pages, CudaArena& arena);

// The widest fp16 row that a product of rows reads, in elements: columns padded to the chunks of any form.
int64_t cuda_row_stride(int64_t cols);

// What the process holds before anything is allocated, beside what the plan counts: the CUDA context, the
// kernels' code and the libraries.
struct CudaOverhead {
  uint64_t context = 0;
  uint64_t graphs = 0;
  uint64_t available = 0;  // of the card, for this process, where the user sets no budget
};

// An allowance for recorded graphs and code that is loaded on first use; see docs/design.md.
constexpr uint64_t kCudaGraphBytes = uint64_t{64} << 20;

// Bytes of weights that a decode step of batch 1 reads.
uint64_t cuda_decode_bytes(const CudaWeights& weights);

struct CudaPlanDraft {
  MemoryPlan plan;
  bool fits = false;
  std::string cure;  // where it does not
  uint64_t decode_bytes = 0;
  int64_t resident_requests = 0;  // of max_model_len each
};

// The plan without a card, whether it fits or not. `limits` may leave choices open; prompts go in larger
// chunks than on the CPU.
Result<CudaPlanDraft> draft_cuda_plan(const Checkpoint& checkpoint, const Qwen2Config& config,
                                      const Limits& limits, const CudaOptions& options,
                                      const CudaOverhead& overhead);

// The same, where not fitting is an error.
Result<MemoryPlan> plan_cuda(const Checkpoint& checkpoint, const Qwen2Config& config, const Limits& limits,
                             const CudaOptions& options, const CudaOverhead& overhead);

}  // namespace qwen2
