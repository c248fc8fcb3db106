// One row through all layers in one kernel, below sm_80.
//
// Each multiprocessor has one block, which takes some tiles of every product. Between two stages all blocks
// wait at a grid barrier. While a block waits, it loads weights and computes addresses for the next stage.
// Attention runs between QKV and output, one query head a block, on the last blocks of the grid; with fewer
// blocks than heads, blocks take several. Splits and reductions are those of the single kernels, so the
// results are the same, bit by bit.
#include "kernels/cuda/layers/layers.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention/head_attention.cuh"
#include "kernels/cuda/common/grid_barrier.cuh"
#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {
namespace {

constexpr int kBlockThreads = kMaxWarps * kWarp;
constexpr int kTeams = kMaxWarps / kTeamWarps;
static_assert(kMaxWarps == kAttendingWarps && kBlockThreads == kNormThreads);

enum Stage : int { kQkv, kOutput, kGateUp, kDown, kStages };

// How a product is distributed. Block b computes split b % split_k of the columns. Among that split's
// blocks it is number b / split_k, which selects its tiles.
struct StageShape {
  int chunks_per_split;
  int blocks;
  int max_tiles;  // of each team
  int group_shift;
  int l2_prefetch_bytes;  // of each team's first tiles, see prefetch_to_l2()
};

// A layer as the kernel reads it.
struct alignas(16) LayerEntry {
  ProductArgs products[kStages];
  StageShape shapes[kStages];
  RowAttentionArgs attention;
};
constexpr int kEntryWords = sizeof(LayerEntry) / sizeof(uint4);
static_assert(sizeof(LayerEntry) <= kLayerEntryBytes && kEntryWords <= kBlockThreads);

// The slots of a warp's ring, and its prefetch depth before a stage's inputs are there: some chunks at
// once, then some one by one. Loads in flight delay the loads that the barrier waits for, and more so in a
// stage that has fewer bytes in all.
template <MatrixForm form>
struct StagePrefetch {
  static constexpr int slots = form_bits(form) == 16 ? 6 : 3;
  static constexpr int at_once = form_bits(form) == 16 ? 3 : form_bits(form) == 8 ? 2 : 1;
  static constexpr int one_by_one = form_bits(form) == 4 ? 1 : 0;
};

// While some blocks attend, the others prefetch gate and up's first weights to L2: this many bytes a team,
// but at most a quarter of the cache in all. They start after a delay in nanoseconds, because keys and
// values are loaded from the same memory.
constexpr int kL2PrefetchBytes = 24 * 1024;
constexpr int kL2PrefetchDivisor = 4;
constexpr unsigned kPrefetchDelayNs = 1000;

// The thread that polls for other blocks and the thread that announces its own block. They are in different
// warps, because both take time.
constexpr int kPollingThread = 0;
constexpr int kArrivingThread = kBlockThreads - kWarp;
using StageBarrier = GridBarrier<kPollingThread, kArrivingThread>;
[[maybe_unused]] __device__ __forceinline__ bool is_polling_warp() {
  return threadIdx.x / kWarp == kPollingThread / kWarp;
}

// The tiles of a block in a stage, which are the same in all layers.
struct BlockTiles {
  int split, first, stride, max_tiles;
};
[[maybe_unused]] __device__ __forceinline__ BlockTiles find_tiles(const LayerEntry& layer, int stage) {
  const int split_k = layer.products[stage].split_k;
  const int split = static_cast<int>(blockIdx.x) % split_k;
  const int blocks = layer.shapes[stage].blocks;
  return {split, static_cast<int>(blockIdx.x) / split_k, (blocks - split + split_k - 1) / split_k,
          static_cast<int>(blockIdx.x) < blocks ? layer.shapes[stage].max_tiles : 0};
}

[[maybe_unused]] __device__ __forceinline__ void load_entry(const LayerEntry* from, LayerEntry& to) {
  if (threadIdx.x < kEntryWords)
    reinterpret_cast<uint4*>(&to)[threadIdx.x] = __ldg(reinterpret_cast<const uint4*>(from) + threadIdx.x);
}

// Static shared memory of a block. Activations and the memory of attention are dynamic.
struct Shared {
  LayerEntry layers[2];
  BlockTiles tiles[kStages];
  AttentionShared<kAttendingWarps, 1> attention;
  float4 scratch[kNormThreads / kWarp / 4];
  unsigned block_max;
};

// Heads are assigned to blocks from the last one on.
__device__ __forceinline__ int first_head() {
  return static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
}
[[maybe_unused]] __device__ __forceinline__ bool attends(const RowAttentionArgs& a) {
  return first_head() < a.heads.q_heads;
}

// Attention of the block's heads.
template <int dim>
__device__ __forceinline__ void attend(const RowAttentionArgs& a, uint4* memory, Shared& shared,
                                       StageBarrier& barrier) {
  const int blocks = static_cast<int>(gridDim.x);
  for (int head = first_head(); head < a.heads.q_heads; head += blocks) {
    attend_head<dim>(a, head, shared_address(memory), shared.attention, [barrier] { barrier.wait(); });
    __syncthreads();
  }
  if (attends(a)) barrier.block_arrives();
  barrier.expect(min(a.heads.q_heads, blocks));
}

// A block's tiles of one product.
template <MatrixForm form>
class StageProduct {
 public:
  static constexpr bool split_int8 = form != MatrixForm::kF16;
  using WarpRing = RegisterRing<form, split_int8, StagePrefetch<form>::slots>;

  __device__ __forceinline__ StageProduct(const ProductArgs& a, const StageShape& shape,
                                          const BlockTiles& tiles)
      : a_(a),
        shape_(shape),
        split_(tiles.split),
        range_(a.w, {tiles.first + team() * tiles.stride, tiles.stride * kTeams, tiles.max_tiles},
               {tiles.split, shape.chunks_per_split}, warp_in_team()),
        ring_(nullptr),
        loader_(a.w, range_, shape.group_shift) {}

  // Issues the first chunks, before the wait.
  __device__ __forceinline__ void issue_early() {
    ring_.clear();
#pragma unroll
    for (int i = 0; i < P::at_once; ++i) loader_.next(ring_, i);
    if (is_polling_warp()) return;
#pragma unroll
    for (int i = P::at_once; i < P::at_once + P::one_by_one; ++i) {
      ring_.wait(i - P::at_once);
      loader_.next(ring_, i);
    }
  }
  // Issues the rest of the ring, after it.
  __device__ __forceinline__ void issue_rest() {
#pragma unroll
    for (int i = P::at_once; i < WarpRing::kPrefetchDepth; ++i) {
      if (i >= P::at_once + P::one_by_one || is_polling_warp()) loader_.next(ring_, i);
    }
  }

  // Waits for the stage's inputs and stages the activations in `memory`.
  __device__ __forceinline__ void stage(std::byte* memory, Shared& shared, const StageBarrier& barrier) {
    if (a_.output == ProductOutput::kQkv && range_.tiles > 0)
      state_.qkv = find_qkv(a_, range_.first_tile, threadIdx.x % kWarp / 4, 0);
    const int begin = split_ * shape_.chunks_per_split * chunk_columns(form);
    const int end_padded = min((split_ + 1) * shape_.chunks_per_split, a_.w.chunks()) * chunk_columns(form);
    const StagedRow row = staged_row(memory, begin, shape_.chunks_per_split * chunk_columns(form));
    const StagedRowWriter<form, split_int8> writer(row);
    if (threadIdx.x == 0) shared.block_max = 0;
    if constexpr (!split_int8) {  // zeros beyond the columns, in the last chunk
#pragma unroll 1
      for (int k = a_.w.cols + threadIdx.x * 4; k < end_padded; k += kBlockThreads * 4)
        writer.put(k, uint2{});
    }
    if (a_.input.hidden != nullptr) {
      state_.norm = {shared.scratch, __frcp_rn(static_cast<float>(a_.w.cols)), a_.input.epsilon};
      const NormedRow<form, split_int8> input(a_.input, a_.w.cols);
      barrier.wait();
      input.stage(writer, state_.norm.inverse, state_.norm.epsilon, shared.scratch);
    } else {
      const PlainRow<form, split_int8, 2> input(a_.input, begin, min(end_padded, a_.w.cols));
      barrier.wait();
      state_.factor = input.stage(writer, a_.input.row_max);
    }
    const int lane = threadIdx.x % kWarp;
    x_ = {row.x + (split_int8 ? lane / 4 % 2 * kLowTermOffset : 0) + 16 * (lane % 4), 0, row.scales};
  }

  // Multiplies, with `buffer` for sums. Every team passes as many barriers as the team with the most tiles.
  // Nothing depends on that, but racecheck ignores the next block barrier where teams differ.
  __device__ __forceinline__ void multiply(float* buffer, int max_tiles) {
    state_.buffer = buffer;
    state_.warp_in_team = warp_in_team();
    const auto finish = [&](int tile, int iteration, const Sums<0>& sums) {
      finish_row<WarpRing, kAnyOutput, split_int8>(a_, range_, split_, {tile, iteration}, sums, state_);
    };
    const auto on_issue = [](int) {};
    multiply_tiles<form, 0, split_int8>(a_.w, range_, ring_, loader_, x_, TileCallbacks{finish, on_issue});
#pragma unroll 1
    for (int barriers = team_barriers(range_.tiles); barriers < team_barriers(max_tiles); ++barriers)
      team_barrier(team());
  }
  __device__ __forceinline__ void store_largest(Shared& shared) {
    if (a_.output != ProductOutput::kSwiglu || a_.row_max == nullptr) return;
    state_.largest = warp_max(state_.largest);
    if (threadIdx.x % kWarp == 0) atomicMax(&shared.block_max, __float_as_uint(state_.largest));
    __syncthreads();
    if (threadIdx.x == kArrivingThread) atomicMax(a_.row_max, shared.block_max);
  }

 private:
  using P = StagePrefetch<form>;
  static __device__ __forceinline__ int team() { return warp_number() / kTeamWarps; }
  static __device__ __forceinline__ int warp_in_team() { return warp_number() % kTeamWarps; }
  const ProductArgs& a_;
  const StageShape& shape_;
  int split_;
  TileRange<WarpRing::kUnit> range_;
  WarpRing ring_;
  RoundLoader<WarpRing, form, split_int8> loader_;
  // Fully initialised: otherwise the loop over stages keeps registers for what is not set.
  RowState state_{.qkv = {}};
  Activations x_;
};

// Prefetches a team's first tiles of a product to L2, by all warps but the polling one.
[[maybe_unused]] __device__ __forceinline__ void prefetch_to_l2(const DeviceMatrix& w,
                                                                const StageShape& shape,
                                                                const BlockTiles& tiles) {
  if (is_polling_warp()) return;
  constexpr int kLine = 128;
  constexpr int kStep = kTeamWarps * kWarp * kLine;
  const int tile_bytes = kTileRows * static_cast<int>(w.row_bytes);
  int tile = tiles.first + static_cast<int>(threadIdx.x) / (kTeamWarps * kWarp) * tiles.stride;
  int at = static_cast<int>(threadIdx.x) % (kTeamWarps * kWarp) * kLine;  // in the tile
  __nanosleep(kPrefetchDelayNs);
#pragma unroll 1
  for (int done = at; done < shape.l2_prefetch_bytes; done += kStep, at += kStep) {
    for (; at >= tile_bytes; at -= tile_bytes) tile += tiles.stride * kTeams;
    if (tile >= w.tiles()) return;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(w.codes + int64_t(tile) * tile_bytes + at));
  }
}

// The next layer's entry, which one of the stages loads; null: this stage does not.
struct NextEntry {
  const LayerEntry* from;
  LayerEntry* to;
};

// One product of a layer. Not inlined, nor is attention: in one function they need more registers than
// there are.
template <MatrixForm form>
__device__ __noinline__ void run_stage(const LayerEntry& own, int stage, const NextEntry next,
                                       std::byte* memory, Shared& shared, const StageBarrier barrier) {
  StageProduct<form> product(own.products[stage], own.shapes[stage], shared.tiles[stage]);
  product.issue_early();
  if (stage == kOutput && !attends(own.attention))
    prefetch_to_l2(own.products[kGateUp].w, own.shapes[kGateUp], shared.tiles[kGateUp]);
  product.stage(memory + sizeof(float) * Reduce<0>::floats, shared, barrier);
  product.issue_rest();
  if (next.from != nullptr) load_entry(next.from, *next.to);
  __syncthreads();
  product.multiply(reinterpret_cast<float*>(memory), shared.tiles[stage].max_tiles);
  product.store_largest(shared);
  barrier.block_arrives();
}

template <MatrixForm form, int dim>
__global__ void __launch_bounds__(kBlockThreads, 1)
    layers_kernel(const LayerEntry* __restrict__ table, int count, uint32_t* arrived) {
  if constexpr (!kAsync) {  // never launched elsewhere
    extern __shared__ __align__(kTileAlignment) uint4 shared_memory[];
    // Declared as bytes, because shared memory must not have constructors.
    __shared__ __align__(16) std::byte shared_bytes[sizeof(Shared)];
    Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
    load_entry(table, shared.layers[0]);
    __syncthreads();
    if (threadIdx.x < kStages) shared.tiles[threadIdx.x] = find_tiles(shared.layers[0], threadIdx.x);
    __syncthreads();
    StageBarrier barrier(arrived);
#pragma unroll 1
    for (int layer = 0; layer < count; ++layer) {
      const LayerEntry& own = shared.layers[layer % 2];
#pragma unroll 1
      for (int stage = 0; stage < kStages; ++stage) {
        if (stage == kOutput) attend<dim>(own.attention, shared_memory, shared, barrier);
        const bool loads_next = stage == kGateUp && layer + 1 < count;
        run_stage<form>(own, stage,
                        {loads_next ? table + layer + 1 : nullptr, &shared.layers[(layer + 1) % 2]},
                        reinterpret_cast<std::byte*>(shared_memory), shared, barrier);
        barrier.expect(static_cast<int>(gridDim.x));
      }
    }
  }
}

template <MatrixForm form, int dim>
void launch_layers(const LayersArgs& a, cudaStream_t stream) {
  constexpr auto kernel = layers_kernel<form, dim>;
  const size_t products = sizeof(float) * Reduce<0>::floats + a.staged_bytes;
  const size_t shared = std::max<size_t>(products, kHeadAttentionBytes<dim>);
  [[maybe_unused]] static const cudaError_t opened = open_shared_memory(kernel, Carveout::kShared, shared);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;  // fails unless all blocks can be resident
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = a.blocks;
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, static_cast<const LayerEntry*>(a.table), a.layers, a.arrived);
}

StageShape stage_shape(const ProductArgs& a, int blocks, int attending) {
  StageShape shape{};
  shape.chunks_per_split = chunks_per_split(a.w, a.split_k);
  // Where the other blocks have enough teams, blocks that attend next take no tiles of the QKV product.
  const bool apart = a.output == ProductOutput::kQkv && (blocks - attending) * kTeams >= a.w.tiles();
  shape.blocks = blocks - (apart ? attending : 0);
  const int teams = std::max(shape.blocks / a.split_k, 1) * kTeams;
  shape.max_tiles = (a.w.tiles() + teams - 1) / teams;
  if (uses_split_int8(a.w)) shape.group_shift = group_shift(a.w);
  static const int cache = card(cudaDevAttrL2CacheSize);
  shape.l2_prefetch_bytes = std::min(kL2PrefetchBytes, cache / kL2PrefetchDivisor / (blocks * kTeams));
  return shape;
}

LayerEntry entry_of(const LayerArgs& layer, int blocks) {
  LayerEntry entry{{layer.qkv, layer.output, layer.gate_up, layer.down}, {}, layer.attention};
  const int attending = std::min(layer.attention.heads.q_heads, blocks);
  for (int s = 0; s < kStages; ++s) entry.shapes[s] = stage_shape(entry.products[s], blocks, attending);
  return entry;
}

// Whether the kernel supports a product: of this form, and one row that blocks stage themselves.
bool suits(const ProductArgs& a, MatrixForm form) {
  return a.w.form == form && (form == MatrixForm::kF16 || uses_split_int8(a.w)) && a.rows == 1 &&
         a.input.stride == 0 && can_stage(a.w, a.input.hidden != nullptr);
}

}  // namespace

int layers_blocks() {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  return multiprocessors;
}

bool card_runs_layers() {
  static const bool runs = compiled_for(layers_kernel<MatrixForm::kF16, 128>) < 80 &&
                           card(cudaDevAttrCooperativeLaunch) != 0 && layers_blocks() >= kMaxSplitK;
  return runs;
}

bool can_run_layers(std::span<const LayerArgs> layers) {
  if (!card_runs_layers() || layers.empty()) return false;
  const MatrixForm form = layers.front().qkv.w.form;
  return std::all_of(layers.begin(), layers.end(), [&](const LayerArgs& layer) {
    return layer.attention.cache.kv_bits == 16 && suits(layer.qkv, form) && suits(layer.output, form) &&
           suits(layer.gate_up, form) && suits(layer.down, form);
  });
}

std::vector<std::byte> layers_table(std::span<const LayerArgs> layers, int blocks) {
  std::vector<std::byte> table(layers.size() * sizeof(LayerEntry));
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerEntry entry = entry_of(layers[i], blocks);
    std::memcpy(table.data() + i * sizeof(LayerEntry), &entry, sizeof(LayerEntry));
  }
  return table;
}

LayersArgs layers_args(std::span<const LayerArgs> layers, int blocks, const void* table, uint32_t* arrived) {
  LayersArgs args;
  args.blocks = blocks;
  args.layers = static_cast<int>(layers.size());
  args.form = layers.front().qkv.w.form;
  args.head_dim = layers.front().attention.heads.head_dim;
  args.table = table;
  args.arrived = arrived;
  for (const LayerArgs& layer : layers) {
    for (const ProductArgs* a : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      const int64_t columns = int64_t{chunks_per_split(a->w, a->split_k)} * chunk_columns(a->w.form);
      args.staged_bytes = std::max(args.staged_bytes, staged_bytes(columns));
    }
  }
  return args;
}

void run_layers(const LayersArgs& args, cudaStream_t stream) {
  const auto of_form = [&]<MatrixForm form>() {
    if (args.head_dim == 128) return launch_layers<form, 128>(args, stream);
    launch_layers<form, 64>(args, stream);
  };
  switch (form_bits(args.form)) {
    case 16:
      return of_form.template operator()<MatrixForm::kF16>();
    case 8:
      return of_form.template operator()<MatrixForm::kInt8>();
    default:
      return of_form.template operator()<MatrixForm::kInt4>();
  }
}

}  // namespace qwen2::cuda
