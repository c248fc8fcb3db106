// One row through all layers in one kernel, below sm_80.
//
// Every multiprocessor has one block, which takes its share of each product in turn; between two stages all
// blocks wait for each other. What a kernel of its own could not do before the one ahead of it ends is done
// while waiting: weights are asked for, addresses found. Attention is one head a block, between the products
// of some of the blocks. The parts are those of the single kernels, and so are the results, bit by bit.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention/head_attention.cuh"
#include "kernels/cuda/common/grid_barrier.cuh"
#include "kernels/cuda/product/product.cuh"

namespace qwen2::cuda {
namespace {

constexpr int kBlockThreads = kMaxWarps * kWarp;
constexpr int kTeams = kMaxWarps / kSplitWarps;
static_assert(kMaxWarps == kAttendingWarps && kBlockThreads == kNormThreads);

enum Stage : int { kQkv, kOutput, kGateUp, kDown, kStages };

// A product's part of the blocks: block b takes tiles b / split, and so on, of the columns' part b % split.
struct StageShape {
  int chunks_a_part;
  int blocks;
  int rounds;  // tiles of each team, at most
  int group_shift;
  int near_bytes;  // of a team's first tiles: what is brought near of gate and up
};

// A layer as the kernel reads it.
struct alignas(16) LayerEntry {
  ProductArgs products[kStages];
  StageShape shapes[kStages];
  RowAttentionArgs attention;
};
constexpr int kEntryWords = sizeof(LayerEntry) / sizeof(uint4);
static_assert(sizeof(LayerEntry) <= kLayerEntryBytes && kEntryWords <= kBlockThreads);

// Places of a warp's ring; how many of them are asked for before a stage's inputs are waited for, all at once
// and then one by one. What the memory has to do holds up what is waited for: the fewer bytes a stage has in
// all, the more that counts.
template <MatrixForm form>
struct Ahead {
  static constexpr int places = form_bits(form) == 16 ? 6 : 3;
  static constexpr int at_once = form_bits(form) == 16 ? 3 : form_bits(form) == 8 ? 2 : 1;
  static constexpr int gently = form_bits(form) == 4 ? 1 : 0;
};

// While some blocks attend, the others have gate and up's first weights brought into the second-level cache:
// so many bytes a team, but no more in all than a part of that cache; and not before the keys and values,
// which come from the same memory, had this time in nanoseconds.
constexpr int kNearBytes = 24 * 1024;
constexpr int kPartOfCache = 4;
constexpr unsigned kHeadStart = 1000;

// The warp that waits for other blocks, and the one that says that its own is done: not the same, as either
// takes its time.
constexpr int kWaitingThread = 0;
constexpr int kCountingThread = kBlockThreads - kWarp;
__device__ __forceinline__ bool waits() {
  return threadIdx.x / kWarp == kWaitingThread / kWarp;
}

// What is the same in all layers for this block.
struct Place {
  int part, first, stride, rounds;
};
__device__ __forceinline__ Place find_place(const LayerEntry& layer, int stage) {
  const int split = layer.products[stage].split;
  const int part = static_cast<int>(blockIdx.x) % split;
  const int blocks = layer.shapes[stage].blocks;
  return {part, static_cast<int>(blockIdx.x) / split, (blocks - part + split - 1) / split,
          static_cast<int>(blockIdx.x) < blocks ? layer.shapes[stage].rounds : 0};
}

__device__ __forceinline__ void bring_entry(const LayerEntry* from, LayerEntry& to) {
  if (threadIdx.x < kEntryWords)
    reinterpret_cast<uint4*>(&to)[threadIdx.x] = __ldg(reinterpret_cast<const uint4*>(from) + threadIdx.x);
}

// Blocks' counts, and what this block has to see before it goes on.
class Turns {
 public:
  __device__ __forceinline__ explicit Turns(uint32_t* count) : count_(count) {}
  // By all threads of the block.
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == kWaitingThread) wait_for_count(count_, target_);
    __syncthreads();
  }
  __device__ __forceinline__ void done() const {
    __syncthreads();
    if (threadIdx.x == kCountingThread) count_in(count_);
  }
  __device__ __forceinline__ void expect(int blocks) { target_ += blocks; }

 private:
  uint32_t* count_;
  uint32_t target_ = 0;
};

// What a block keeps in shared memory beside its attention or its activations.
struct Shared {
  LayerEntry layers[2];
  Place places[kStages];
  AttentionShared<kAttendingWarps, 1> attention;
  float4 scratch[kNormThreads / kWarp / 4];
  unsigned block_max;
};

// Heads go to blocks from the last one on.
__device__ __forceinline__ int first_head() {
  return static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);
}
__device__ __forceinline__ bool attends(const RowAttentionArgs& a) {
  return first_head() < a.heads.q_heads;
}

// The block's heads.
template <int dim>
__device__ __forceinline__ void attend(const RowAttentionArgs& a, uint4* memory, Shared& shared,
                                       Turns& turns) {
  const int blocks = static_cast<int>(gridDim.x);
  for (int head = first_head(); head < a.heads.q_heads; head += blocks) {
    attend_head<dim>(a, head, shared_address(memory), shared.attention, [turns] { turns.wait(); });
    __syncthreads();
  }
  if (attends(a)) turns.done();
  turns.expect(min(a.heads.q_heads, blocks));
}

// A block's share of one product.
template <MatrixForm form>
class StageProduct {
 public:
  static constexpr bool digits = kInDigits<form, false>;
  using WarpRing = RegisterRing<form, digits, Ahead<form>::places>;

  __device__ __forceinline__ StageProduct(const ProductArgs& a, const StageShape& shape, const Place& place)
      : a_(a),
        shape_(shape),
        part_(place.part),
        walk_(a.w, place.first + team() * place.stride, place.stride * kTeams, place.rounds, place.part,
              shape.chunks_a_part, in_team()),
        ring_(nullptr),
        fetch_(a.w, walk_, shape.group_shift) {}

  // Before the wait.
  __device__ __forceinline__ void ask_early() {
    ring_.forget();
#pragma unroll
    for (int i = 0; i < A::at_once; ++i) fetch_.next(ring_, i);
    if (waits()) return;
#pragma unroll
    for (int i = A::at_once; i < A::at_once + A::gently; ++i) {
      ring_.await(i - A::at_once);
      fetch_.next(ring_, i);
    }
  }
  // After it.
  __device__ __forceinline__ void ask_for_rest() {
#pragma unroll
    for (int i = A::at_once; i < WarpRing::kAhead; ++i) {
      if (i >= A::at_once + A::gently || waits()) fetch_.next(ring_, i);
    }
  }

  // Makes the activations in `memory`, waiting for what they are made of.
  __device__ __forceinline__ void stage(std::byte* memory, Shared& shared, const Turns& turns) {
    if (a_.output == ProductOutput::kQkv && walk_.tiles > 0)
      state_.qkv = find_qkv(a_, walk_.first_tile, threadIdx.x % kWarp / 4, 0);
    const int begin = part_ * shape_.chunks_a_part * chunk_columns(form);
    const int end_padded = min((part_ + 1) * shape_.chunks_a_part, a_.w.chunks()) * chunk_columns(form);
    const StagedRow row = staged_row(memory, begin, shape_.chunks_a_part * chunk_columns(form));
    const RowPlaces<form, false> places(row);
    if (threadIdx.x == 0) shared.block_max = 0;
    if constexpr (!digits) {  // beyond the columns, in the last chunk
#pragma unroll 1
      for (int k = a_.w.cols + threadIdx.x * 4; k < end_padded; k += kBlockThreads * 4)
        places.put(k, uint2{});
    }
    if (a_.input.hidden != nullptr) {
      state_.norm = {shared.scratch, __frcp_rn(static_cast<float>(a_.w.cols)), a_.input.epsilon};
      const NormedRow<form, false> input(a_.input, a_.w.cols);
      turns.wait();
      input.stage(places, state_.norm.inverse, state_.norm.epsilon, shared.scratch);
    } else {
      const PlainRow<form, false, 2> input(a_.input, begin, min(end_padded, a_.w.cols));
      turns.wait();
      state_.factor = input.stage(places, a_.input.row_max);
    }
    const int lane = threadIdx.x % kWarp;
    x_ = {row.x + (digits ? lane / 4 % 2 * kLowDigit : 0) + 16 * (lane % 4), 0, row.scales};
  }

  // With `buffer` for sums. Every team meets as often as the one with the most tiles, of `rounds`: nothing
  // depends on it, but racecheck takes the block's next barrier for none where teams differ.
  __device__ __forceinline__ void multiply(float* buffer, int rounds) {
    const auto finish = [&](int tile, int turn, const Sums<0>& sums) {
      finish_row<WarpRing, kAnyOutput, digits>(a_, walk_, part_, tile, turn, in_team(), sums, buffer, state_);
    };
    multiply_tiles<form, 0, false>(a_.w, walk_, ring_, fetch_, x_, finish, [](int) {});
#pragma unroll 1
    for (int meetings = row_meetings(walk_.tiles); meetings < row_meetings(rounds); ++meetings)
      team_barrier(team());
  }
  __device__ __forceinline__ void leave_largest(Shared& shared) {
    if (a_.output != ProductOutput::kSwiglu || a_.row_max == nullptr) return;
    state_.largest = warp_max(state_.largest);
    if (threadIdx.x % kWarp == 0) atomicMax(&shared.block_max, __float_as_uint(state_.largest));
    __syncthreads();
    if (threadIdx.x == kCountingThread) atomicMax(a_.row_max, shared.block_max);
  }

 private:
  using A = Ahead<form>;
  static __device__ __forceinline__ int team() { return warp_number() / kSplitWarps; }
  static __device__ __forceinline__ int in_team() { return warp_number() % kSplitWarps; }
  const ProductArgs& a_;
  const StageShape& shape_;
  int part_;
  Walk<WarpRing::kUnit> walk_;
  WarpRing ring_;
  FetchRounds<WarpRing, form, digits> fetch_;
  RowState state_{.qkv = {}};  // all of it: a loop would keep registers for what is not set
  Activations x_;
};

// Brings a team's first tiles of a product into the second-level cache, but for the warp that waits.
__device__ __forceinline__ void bring_near(const DeviceMatrix& w, const StageShape& shape,
                                           const Place& place) {
  if (waits()) return;
  constexpr int kLine = 128;
  constexpr int kStep = kSplitWarps * kWarp * kLine;
  const int of_tile = kTileRows * static_cast<int>(w.row_bytes);
  int tile = place.first + static_cast<int>(threadIdx.x) / (kSplitWarps * kWarp) * place.stride;
  int at = static_cast<int>(threadIdx.x) % (kSplitWarps * kWarp) * kLine;  // in the tile
  __nanosleep(kHeadStart);
#pragma unroll 1
  for (int done = at; done < shape.near_bytes; done += kStep, at += kStep) {
    for (; at >= of_tile; at -= of_tile) tile += place.stride * kTeams;
    if (tile >= w.tiles()) return;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(w.codes + int64_t(tile) * of_tile + at));
  }
}

// A stage of the block after the attention, if there is one. Not inlined, nor is attention: neither has
// registers to spare for what the other one needs.
template <MatrixForm form>
__device__ __noinline__ void run_product(const LayerEntry& own, int stage, const LayerEntry* next,
                                         LayerEntry& to, std::byte* memory, Shared& shared,
                                         const Turns turns) {
  StageProduct<form> product(own.products[stage], own.shapes[stage], shared.places[stage]);
  product.ask_early();
  if (stage == kOutput && !attends(own.attention))
    bring_near(own.products[kGateUp].w, own.shapes[kGateUp], shared.places[kGateUp]);
  product.stage(memory + sizeof(float) * Reduce<0>::floats, shared, turns);
  product.ask_for_rest();
  if (next != nullptr) bring_entry(next, to);
  __syncthreads();
  product.multiply(reinterpret_cast<float*>(memory), shared.places[stage].rounds);
  product.leave_largest(shared);
  turns.done();
}

template <MatrixForm form, int dim>
__global__ void __launch_bounds__(kBlockThreads, 1)
    layers_kernel(const LayerEntry* __restrict__ table, int count, uint32_t* arrived) {
  if constexpr (!kAsync) {  // elsewhere nobody launches it
    extern __shared__ __align__(kTileAlignment) uint4 shared_memory[];
    // Bytes: shared memory cannot have what a constructor would set.
    __shared__ __align__(16) std::byte shared_bytes[sizeof(Shared)];
    Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
    bring_entry(table, shared.layers[0]);
    __syncthreads();
    if (threadIdx.x < kStages) shared.places[threadIdx.x] = find_place(shared.layers[0], threadIdx.x);
    __syncthreads();
    Turns turns(arrived);
#pragma unroll 1
    for (int layer = 0; layer < count; ++layer) {
      const LayerEntry& own = shared.layers[layer % 2];
#pragma unroll 1
      for (int stage = 0; stage < kStages; ++stage) {
        if (stage == kOutput) attend<dim>(own.attention, shared_memory, shared, turns);
        const bool brings = stage == kGateUp && layer + 1 < count;
        run_product<form>(own, stage, brings ? table + layer + 1 : nullptr, shared.layers[(layer + 1) % 2],
                          reinterpret_cast<std::byte*>(shared_memory), shared, turns);
        turns.expect(static_cast<int>(gridDim.x));
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
  attribute.id = cudaLaunchAttributeCooperative;  // all blocks are on the card at once, or it fails
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
  shape.chunks_a_part = chunks_a_part(a.w, a.split);
  // Blocks that attend next have no queries, keys and values to make where the others have teams enough.
  const bool apart = a.output == ProductOutput::kQkv && (blocks - attending) * kTeams >= a.w.tiles();
  shape.blocks = blocks - (apart ? attending : 0);
  const int teams = std::max(shape.blocks / a.split, 1) * kTeams;
  shape.rounds = (a.w.tiles() + teams - 1) / teams;
  if (is_coarse(a.w)) shape.group_shift = group_shift(a.w);
  static const int cache = card(cudaDevAttrL2CacheSize);
  shape.near_bytes = std::min(kNearBytes, cache / kPartOfCache / (blocks * kTeams));
  return shape;
}

LayerEntry entry_of(const LayerArgs& layer, int blocks) {
  LayerEntry entry{{layer.qkv, layer.output, layer.gate_up, layer.down}, {}, layer.attention};
  const int attending = std::min(layer.attention.heads.q_heads, blocks);
  for (int s = 0; s < kStages; ++s) entry.shapes[s] = stage_shape(entry.products[s], blocks, attending);
  return entry;
}

// Whether the kernel is made for these products: all of one form, of one row that blocks stage themselves.
bool suits(const ProductArgs& a, MatrixForm form) {
  return a.w.form == form && (form == MatrixForm::kF16 || is_coarse(a.w)) && a.rows == 1 &&
         a.input.stride == 0 && can_stage(a.w, a.input.hidden != nullptr);
}

}  // namespace

int layers_blocks() {
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  return multiprocessors;
}

bool card_runs_layers() {
  static const bool runs = compiled_for(layers_kernel<MatrixForm::kF16, 128>) < 80 &&
                           card(cudaDevAttrCooperativeLaunch) != 0 && layers_blocks() >= kMaxParts;
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
      const int64_t columns = int64_t{chunks_a_part(a->w, a->split)} * chunk_columns(a->w.form);
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
