// The CUDA kernels: plain-data arguments, no engine types. Every function enqueues on `stream` and returns; a
// failed launch is what cudaGetLastError() says. Pointers are device pointers. fp16 values are uint16_t here,
// so that the host's compiler reads this header.
//
// reference.h holds a slow, obvious version of each on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

// One token of a step.
struct Row {
  int32_t token;  // below zero: -1 - the place of the token among EmbedArgs::sampled
  int32_t position;
  int32_t page_offset;  // of its sequence's page table in `pages`
  int32_t older;        // keys of its sequence that were in the cache before this step
};

struct HeadShape {
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // 64 or 128

  [[nodiscard]] constexpr int group() const { return q_heads / kv_heads; }
};

// The part of the key bias that is kept out of the cache: see backend/key_bias.h.
struct KeyBiasView {
  int pairs = 0;                   // the largest of the KV heads'; 0: none
  const int32_t* index = nullptr;  // [kv_heads][kMaxBiasPairs]; absent pairs have values of zero
  const float* first = nullptr;    // the same shape
  const float* second = nullptr;
};

// Where one layer keeps K and V.
struct KvCache {
  std::byte* data = nullptr;  // page 0 of the layer
  int kv_bits = 16;
  const uint32_t* pages = nullptr;   // page tables of the step's sequences, one behind the other
  const float* rotations = nullptr;  // [positions][head_dim / 2][2]: cosine, sine
  const float* bias = nullptr;       // [q + 2 kv]: of query, key and value
  KeyBiasView key_bias;
};

// --- Skinny products -------------------------------------------------------------------------------------

// Partial sums that one reader adds up.
constexpr int kMaxParts = 4;

// What a product multiplies, in one of three forms. The last two are made by every block for itself, and are
// for one row (see can_stage()).
struct ProductInput {
  // In the matrix's order of columns, zero-padded to its chunks, see x_order(). One row may have a stride of
  // zero: then it is staged, is fp16 and needs no padding.
  const uint16_t* x = nullptr;
  const float* scales = nullptr;   // of digits
  const float* factors = nullptr;  // [rows], that a norm left out of digits
  int64_t stride = 0;
  XOrder order = XOrder::kRows;
  // Or: rms_norm(hidden + sum of partials) * norm. One block writes the sum to `hidden_out` (another buffer).
  const float* hidden = nullptr;    // [cols]
  const float* partials = nullptr;  // [parts][cols]
  int parts = 0;
  const float* norm = nullptr;
  float epsilon = 0;
  float* hidden_out = nullptr;
  // Or: floats, with the largest magnitude, as bits. They are scaled down by a power of two where fp16 would
  // overflow, and the product up again. With fp16 `x`: its rows were scaled so (see arrange()).
  const float* values = nullptr;      // [cols]
  const uint32_t* row_max = nullptr;  // [rows]
};

enum class ProductOutput : int {
  kStore,   // y[part][row][n], see ProductArgs
  kQkv,     // adds the bias, rotates, scales and stores queries, writes K and V to the cache
  kSwiglu,  // silu(gate) * up and its largest magnitude; rows of gate and up lie in alternating eights
};

struct ProductArgs {
  DeviceMatrix w;
  int rows = 0;  // of activations: 1, 2, 4, 8, 16, 32 or 64
  ProductInput input;
  ProductOutput output = ProductOutput::kStore;
  int out_rows = 0;    // of W: what is stored; the matrix may be padded beyond
  int first_row = 0;   // of W in the output, when it is a part of a larger matrix
  float* y = nullptr;  // kStore: [parts][rows][y_stride]; kSwiglu: [rows][y_stride]
  int64_t y_stride = 0;
  int split = 1;  // kStore: parts of the columns, summed by the reader
  // Of one row, with dependent launch: the next kernel is let in while this one still waits, so that its
  // weights, keys or values come meanwhile; and this kernel was let in so early that it has time to fetch
  // gently (and, in fp16, lets the next one in late: it would take bandwidth that this one needs).
  bool next_starts_early = false;
  bool starts_early = false;
  uint32_t* row_max = nullptr;  // kSwiglu: zeroed by the caller; null: nobody asks, as digits hold any float
  const Row* row_info = nullptr;  // kQkv
  HeadShape heads;
  KvCache cache;
  float* q = nullptr;  // kQkv: [rows][q_heads * head_dim], times q_scale
  float q_scale = 1;
  float* new_kv = nullptr;  // kQkv with a cache of 8 bits: [rows][2 * kv_heads * head_dim], K rotated
};

void product(const ProductArgs& args, cudaStream_t stream);
// Whether one row can be staged in shared memory by each block.
bool can_stage(const DeviceMatrix& w, bool normed);

// --- Attention -------------------------------------------------------------------------------------------

// softmax(q K^T) V of single rows over the cache, their own token included. One read of K and V serves the
// query heads that share them. Scores and sums are float.
struct RowAttentionArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* q = nullptr;  // [rows][q_heads * head_dim], rotated and scaled
  int max_splits = 1;        // at least every row's split_count(position + 1)
  // With dependent launch, the next kernel is let in before keys and values are asked for instead of behind.
  bool next_starts_first = false;
  uint16_t* out = nullptr;  // fp16, rows out_stride long
  int64_t out_stride = 0;
  XOrder order = XOrder::kRows;   // of out
  float* part_sums = nullptr;     // [rows][q_heads][kMaxSplits][head_dim]
  float* part_scalars = nullptr;  // [rows][q_heads][kMaxSplits][2]: maximum, denominator
  uint32_t* arrived = nullptr;    // [rows][q_heads], zero, and zero again afterwards
};
void attend_rows(const RowAttentionArgs& args, cudaStream_t stream);

// Rounds new keys and values to a cache of 8 bits.
struct StoreKvArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* new_kv = nullptr;  // [rows][2 * kv_heads * head_dim]
};
void store_kv_int8(const StoreKvArgs& args, cudaStream_t stream);

// Softmax(q K^T) V of a prompt's chunk: consecutive tokens of one sequence, whose keys and values lie in the
// cache.
struct ChunkAttentionArgs {
  int tokens = 0;
  int position = 0;   // of the first
  int positions = 0;  // rows of the rotation table
  HeadShape heads;
  KvCache cache;
  const uint32_t* pages = nullptr;  // the sequence's page table
  const float* q = nullptr;         // [tokens][q_heads * head_dim], rotated and scaled
  uint16_t* out = nullptr;          // fp16 [tokens][out_stride]
  int64_t out_stride = 0;
};
void attend_chunk(const ChunkAttentionArgs& args, cudaStream_t stream);

// --- One row through all layers --------------------------------------------------------------------------

// What product() and attend_rows() would be given for one row of at most kShortKeys keys.
struct LayerArgs {
  ProductArgs qkv, output, gate_up, down;
  RowAttentionArgs attention;
};

// All layers in one kernel, with the results of the single kernels. Made for chips below sm_80, which have no
// copies that go on by themselves and no dependent launch.
struct LayersArgs {
  const void* table = nullptr;  // layers_table(), on the card: kLayerEntryBytes a layer at most
  int layers = 0;
  int blocks = 0;                      // that the table was made for: layers_blocks(), or fewer
  MatrixForm form = MatrixForm::kF16;  // of every matrix
  int head_dim = 0;
  size_t staged_bytes = 0;      // of the widest activations
  uint32_t* arrived = nullptr;  // [1], zeroed by the caller before every run
};
// Whether the card's kernels are those of such a chip; and whether this one is made for these layers.
bool card_runs_layers();
bool can_run_layers(std::span<const LayerArgs> layers);
// One on each of the card's multiprocessors. Any number from kMaxParts on gives the same results.
int layers_blocks();
std::vector<std::byte> layers_table(std::span<const LayerArgs> layers, int blocks);
LayersArgs layers_args(std::span<const LayerArgs> layers, int blocks, const void* table, uint32_t* arrived);
void run_layers(const LayersArgs& args, cudaStream_t stream);

// --- Prompts ---------------------------------------------------------------------------------------------

// Adds biases, rotates queries and keys, scales queries, and writes keys and values to the cache; with a
// cache of 8 bits to `new_kv`, for store_kv_int8().
struct SplitQkvArgs {
  int rows = 0;
  const Row* row_info = nullptr;
  HeadShape heads;
  KvCache cache;
  const float* qkv = nullptr;  // [rows][stride], in the order of the stored rows of the matrix
  int64_t stride = 0;
  float* q = nullptr;  // [rows][q_heads * head_dim]
  float q_scale = 1;
  float* new_kv = nullptr;  // [rows][2 * kv_heads * head_dim]
};
void split_qkv(const SplitQkvArgs& args, cudaStream_t stream);

// x = silu(gate) * up / scale as fp16; row_max gets the largest magnitude, which says the scale.
struct SwigluArgs {
  int rows = 0;
  int cols = 0;
  const float* gate_up = nullptr;  // [rows][gate_up_stride]: alternating eights of gate and up
  int64_t gate_up_stride = 0;
  uint16_t* x = nullptr;  // [rows][stride], zero-padded
  int64_t stride = 0;
  uint32_t* row_max = nullptr;  // [rows]
};
void swiglu_rows(const SwigluArgs& args, cudaStream_t stream);

// out [w.rows][stride] = the matrix as fp16, columns in the activations' order.
void expand(const DeviceMatrix& w, uint16_t* out, int64_t stride, cudaStream_t stream);

// --- Inputs ----------------------------------------------------------------------------------------------

// hidden[row] = the embedding of its token. Zeroes `clear` [clear_count] as well.
struct EmbedArgs {
  DeviceMatrix embedding;
  int rows = 0;
  int32_t first_tokens[kMaxRows] = {};  // of the first rows, as in Row: here sooner than what has to be read
  const Row* row_info = nullptr;        // for those after them; may lie in page-locked memory of the host
  const int32_t* sampled = nullptr;     // of earlier steps
  float* hidden = nullptr;              // [rows][cols]
  uint32_t* clear = nullptr;
  int clear_count = 0;
};

// Copies from page-locked memory of the host, by the card's own reads, and embeds rows meanwhile.
struct FetchArgs {
  struct Piece {
    int64_t offset = 0;  // in both, in bytes; multiples of 16
    int64_t bytes = 0;   // rounded up to a multiple of 16
  };
  static constexpr int kPieces = 3;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  Piece pieces[kPieces];
  EmbedArgs embed;
};
void fetch(const FetchArgs& args, cudaStream_t stream);
// A fetch() before all else of a graph, which has one first node: as no kernel of it is let in before the
// inputs are there, all of them may read inputs before they wait. And other arguments for it, in what was
// made of the graph.
cudaError_t prepend_fetch(cudaGraph_t graph, const FetchArgs& args, cudaGraphNode_t& fetch);
cudaError_t set_fetch(cudaGraphExec_t exec, cudaGraphNode_t fetch, const FetchArgs& args);

// --- Rows ------------------------------------------------------------------------------------------------

// Where activations of several rows go, zero-padded: see XOrder.
struct RowsOut {
  uint16_t* x = nullptr;
  int64_t stride = 0;
  XOrder order = XOrder::kRows;
  float* scales = nullptr;  // of digits
};

// hidden += the sum of the partials; out = rms_norm(hidden) * norm.
struct AddNormArgs {
  int rows = 0;
  int cols = 0;
  float* hidden = nullptr;          // [rows][cols]
  const float* partials = nullptr;  // [parts][rows][cols]
  int parts = 0;
  const uint32_t* row_max = nullptr;  // the partials are multiplied by the scale that it asks for; null: 1
  const float* norm = nullptr;
  float epsilon = 0;
  RowsOut out;               // without x: none
  float* factors = nullptr;  // [rows]: what digits must be multiplied by
};
void add_norm(const AddNormArgs& args, cudaStream_t stream);

// out = floats, or fp16 rows out.stride long, in another order.
struct ArrangeArgs {
  int rows = 0;
  int cols = 0;                       // a multiple of 4
  const float* values = nullptr;      // [rows][cols]
  const uint16_t* halves = nullptr;   // [rows][out.stride]
  const uint32_t* row_max = nullptr;  // the values are divided by the scale that it asks for; null: 1
  const int32_t* order = nullptr;     // out[i] = in[order[i]] of each row; null: i
  RowsOut out;
};
void arrange(const ArrangeArgs& args, cudaStream_t stream);

// Reads `bytes` (a multiple of 16) from `data` and writes a word that depends on all of them: the plain read
// that decoding is held against.
void read_all(const void* data, size_t bytes, uint32_t* out, cudaStream_t stream);

// --- Sampling --------------------------------------------------------------------------------------------

struct SampleRow {
  int32_t logits_row;
  int32_t place;  // of the token
  float temperature;
  float top_p;
  int32_t top_k;
  float penalty;
  int32_t seen_offset, seen_count;
  int32_t pending;  // the place of one more token that was seen, among the sampled ones; -1: none
  int32_t in_step;  // not zero: greedy, without penalty, and taken by the step itself, see SampleArgs
  double uniform;
};

struct SampleArgs {
  int count = 0;
  const SampleRow* rows = nullptr;
  float* logits = nullptr;  // [.][stride]; penalties are applied in place
  int64_t stride = 0;       // a multiple of 4, at least vocab
  int vocab = 0;
  const int32_t* seen = nullptr;
  int32_t* tokens = nullptr;           // sampled, by place; earlier steps' too
  int32_t* host_tokens = nullptr;      // the same in page-locked memory of the host; null: none
  bool in_step = false;                // takes the rows that say so, all others otherwise; greedy only
  unsigned long long* best = nullptr;  // [count], zero, and zero again afterwards
  uint32_t* arrived = nullptr;         // the same
};

// Which of its kernels are needed.
struct SampleKinds {
  bool penalised = false;
  bool greedy = false;
  bool drawn = false;
};
void sample(const SampleArgs& args, const SampleKinds& kinds, cudaStream_t stream);

}  // namespace qwen2::cuda
