// The skinny product: up to 64 rows of activations times a matrix whose bytes are read once.
//
// A block takes tiles of 16 rows of W. The four warps of a team share the columns of a tile. Lane t of four
// loads 16 bytes of each chunk of its rows g and g + 8: its operands of the tensor core instructions. The
// next chunks are always in flight, across tiles and, with programmatic dependent launch, across kernels:
// weights do not depend on what the previous kernel computes. A tile's sums are reduced in an order that
// depends on the matrix alone, so a row's result is the same in every batch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/product/product_reduce.cuh"

namespace qwen2::cuda {

// Teams in a block: three if that still fills the GPU, otherwise one. One row fills it with more tiles than
// multiprocessors, several rows with blocks for 90 % of the multiprocessors. The number changes no sum.
inline int product_teams(const ProductArgs& a, int multiprocessors) {
  constexpr int kTeams = kMaxWarps / kTeamWarps;
  const int blocks = (a.w.tiles() + kTeams - 1) / kTeams * a.split_k;
  const bool fills = a.rows == 1 ? a.w.tiles() > multiprocessors : 10 * blocks >= 9 * multiprocessors;
  return fills ? kTeams : 1;
}

// The prefetch depth of a kernel that is launched early, until its inputs are there: chunks of each warp.
constexpr int kEarlyPrefetchDepth = 2;
// Slots of one row's rings. Deep rings leave just enough shared memory for blocks of the neighbouring
// kernels. Shallow rings are for split-K, and where deep ones do not fit. If a block has one tile, its ring
// holds all of a warp's chunks of 1536 columns, at least four.
constexpr int kDeep = 9;
constexpr int kDeepFourBits = 7;
constexpr int kShallow = 6;
constexpr int whole_depth(MatrixForm form) {
  return std::max(1536 / chunk_columns(form) / kTeamWarps, 4);
}
// Chunks in a register ring. One row: as many as fit the registers with one block a multiprocessor; in 4 bits
// three, all of a warp's chunks of 1536 columns.
template <MatrixForm form, int NT>
constexpr int kRegisterChunks =
    in_pairs(form) ? (NT == 0 ? 6 : 4) : (NT == 0 && form_bits(form) == 8 ? 6 : 3);

struct ProductShape {
  int chunks_per_split;
  int max_tiles;  // of each team
  int teams;
  int group_shift;
  int ring_offset;
};

// The types and places of a block's rings.
template <MatrixForm form, int NT, bool split_int8, int depth>
struct ProductRing {
  using Type = std::conditional_t<kAsync, Ring<split_int8, depth>,
                                  RegisterRing<form, split_int8, kRegisterChunks<form, NT>>>;
  using Loader =
      std::conditional_t<kAsync, ChunkLoader<Type, form, split_int8>, RoundLoader<Type, form, split_int8>>;
  using Range = TileRange<Type::kUnit>;
};

// When a kernel of one row triggers its dependents.
struct TriggerPlan {
  // Before its own loads: the next kernel (gate and up, after the output projection) has more weights to
  // load.
  bool first;
  // After its prefetch, before it waits.
  bool early;
  // When a ring's depth of its chunks is left to issue, which is better where bandwidth is the bound.
  // Triggered sooner, the dependent kernel would fill its rings while this one still loads, and the memory
  // would idle until the dependent's wait ends.
  bool late;
};
template <MatrixForm form, int NT, int output>
__device__ __forceinline__ TriggerPlan trigger_plan(const ProductArgs& a) {
  TriggerPlan plan{};
  plan.late = NT == 0 && form == MatrixForm::kF16 && a.launched_early;
  plan.first = NT == 0 && a.trigger_early && output == static_cast<int>(ProductOutput::kStore);
  plan.early = NT == 0 && a.trigger_early && !plan.first;
  return plan;
}

// Fills the ring. A kernel that is launched early limits its depth, because its requests would delay those of
// the kernels that it waits for.
template <int NT, class WarpRing, class WarpLoader>
__device__ __forceinline__ void prefetch(const ProductArgs& a, WarpRing& ring, WarpLoader& loader) {
  // Unrolled only for registers, which are indexed at compile time. Code that runs once is slow: it is
  // fetched from the second-level cache.
#pragma unroll(WarpRing::kSlots)
  for (int i = 0; i < WarpRing::kPrefetchDepth; ++i) {
    if (NT == 0 && a.launched_early && i >= kEarlyPrefetchDepth) wait_copies<kEarlyPrefetchDepth - 1>();
    loader.next(ring, i);
  }
}

// Shared memory of a kernel of one row, beside its rings.
struct StageMemory {
  float* buffer;  // sums, then activations
  float4* scratch;
};

// One row: waits for the previous kernel and stages the activations of the split's columns.
template <MatrixForm form, bool split_int8>
__device__ __forceinline__ Activations stage_row(const ProductArgs& a, const ColumnSplit& split,
                                                 const TriggerPlan& trigger, const StageMemory& memory,
                                                 RowState& state) {
  const DeviceMatrix& w = a.w;
  const int begin = split.index * split.chunks * chunk_columns(form);
  const int end_padded = min((split.index + 1) * split.chunks, w.chunks()) * chunk_columns(form);
  const StagedRow row = staged_row(reinterpret_cast<std::byte*>(memory.buffer + Reduce<0>::floats), begin,
                                   split.chunks * chunk_columns(form));
  const StagedRowWriter<form, split_int8> writer(row);
  // Zeros beyond the columns, in the last chunk.
  if constexpr (!split_int8) {
#pragma unroll 1
    for (int k = w.cols + threadIdx.x * 4; k < end_padded; k += blockDim.x * 4) writer.put(k, uint2{});
  }
  if (a.input.hidden != nullptr) {
    state.norm = {memory.scratch, __frcp_rn(static_cast<float>(w.cols)), a.input.epsilon};
    const NormedRow<form, split_int8> input(a.input, w.cols);
    wait_for_previous();
    input.stage(writer, state.norm.inverse, state.norm.epsilon, memory.scratch);
    // After the loads of the activations, which the dependent kernel's loads would delay.
    if (!trigger.late) trigger_dependents();
  } else {
    const PlainRow<form, split_int8> input(a.input, begin, min(end_padded, w.cols));
    wait_for_previous();
    if (!a.trigger_early && !trigger.late) trigger_dependents();
    state.factor = input.stage(writer, a.input.row_max);
  }
  const int g = threadIdx.x % kWarp / 4;
  return {row.x + (split_int8 ? g % 2 * kLowTermOffset : 0) + 16 * (threadIdx.x % 4), 0, row.scales};
}

// Several rows: waits for the previous kernel, which has made the activations.
template <int NT, bool split_int8>
__device__ __forceinline__ Activations find_rows(const ProductArgs& a, float* factors, unsigned* block_max) {
  trigger_dependents();
  wait_for_previous();
#pragma unroll 1
  for (int m = threadIdx.x; m < kMaxRows; m += blockDim.x) {
    factors[m] = row_factor(a.input, m, a.rows);
    block_max[m] = 0;
  }
  const int g = threadIdx.x % kWarp / 4;
  const int t = threadIdx.x % 4;
  // With fewer than eight rows, the other columns of the operand repeat rows or read memory behind them.
  // Their results are not stored.
  const int first = split_int8 ? g * 64 : (NT == 1 ? g & (a.rows - 1) : g) * 64;
  return {reinterpret_cast<const std::byte*>(a.input.x) + first + 16 * t, 16 * a.input.stride,
          a.input.scales + 2 * t};
}

// Merges the block's largest SwiGLU products, by row, into those of all blocks.
template <int NT>
__device__ __forceinline__ void store_row_max(const ProductArgs& a, float largest, unsigned* block_max) {
  if constexpr (NT == 0) {
    largest = warp_max(largest);
    if (threadIdx.x % kWarp == 0) atomicMax(block_max, __float_as_uint(largest));
  }
  __syncthreads();
#pragma unroll 1
  for (int m = threadIdx.x; m < a.rows; m += blockDim.x) atomicMax(a.row_max + m, block_max[m]);
}

template <MatrixForm form, int NT, bool split_int8, int output, int depth>
__global__ void __launch_bounds__(kMaxWarps* kWarp, NT == 1 || (NT == 0 && kAsync) ? 2 : 1)
    product_kernel(const __grid_constant__ ProductArgs a, const ProductShape shape) {
  extern __shared__ __align__(128) uint4 shared_memory[];
  __shared__ float factors[NT == 0 ? 1 : kMaxRows];
  __shared__ unsigned block_max[NT == 0 ? 1 : kMaxRows];
  __shared__ float4 scratch[kNormThreads / kWarp / 4];
  using RingOf = ProductRing<form, NT, split_int8, depth>;
  using WarpRing = typename RingOf::Type;
  auto* buffer = reinterpret_cast<float*>(shared_memory);
  // A kernel of one row with rings in shared memory gains nothing from warp_number().
  const int warp = NT > 0 || !kAsync ? warp_number() : threadIdx.x / kWarp;
  const int team = warp / kTeamWarps;
  const int warp_in_team = warp % kTeamWarps;
  const ColumnSplit split{static_cast<int>(blockIdx.y), shape.chunks_per_split};
  // Warps beyond the teams only help to stage.
  const typename RingOf::Range range(
      a.w,
      {static_cast<int>(blockIdx.x * shape.teams + team), static_cast<int>(gridDim.x * shape.teams),
       team < shape.teams ? shape.max_tiles : 0},
      split, warp_in_team);
  WarpRing ring(reinterpret_cast<const char*>(shared_memory) + shape.ring_offset +
                warp * ring_bytes(split_int8, depth));
  typename RingOf::Loader loader(a.w, range, shape.group_shift);
  const TriggerPlan trigger = trigger_plan<form, NT, output>(a);
  if (trigger.first) trigger_dependents();
  if (NT > 0 || team < shape.teams) prefetch<NT>(a, ring, loader);
  if (trigger.early) trigger_dependents();

  RowState state;
  if (output == static_cast<int>(ProductOutput::kQkv) && range.tiles > 0)
    state.qkv = find_qkv(a, range.first_tile, threadIdx.x % kWarp / 4, 0);
  Activations x;
  if constexpr (NT == 0) {
    if (threadIdx.x == 0) block_max[0] = 0;
    x = stage_row<form, split_int8>(a, split, trigger, {buffer, scratch}, state);
    state.buffer = buffer;
    state.warp_in_team = warp_in_team;
  } else {
    x = find_rows<NT, split_int8>(a, factors, block_max);
  }
  __syncthreads();

  const RowsState rows{team, warp_in_team, buffer, factors, block_max};
  const auto finish = [&](int tile, int iteration, const Sums<NT>& sums) {
    if constexpr (NT == 0) {
      finish_row<WarpRing, output, split_int8>(a, range, blockIdx.y, {tile, iteration}, sums, state);
    } else {
      finish_rows<WarpRing, NT, output>(a, blockIdx.y, {tile, iteration}, sums, rows);
    }
  };
  const auto on_issue = [&](int left) {
    if (trigger.late && left == depth && warp == 0) trigger_dependents();
  };
  multiply_tiles<form, NT, split_int8>(a.w, range, ring, loader, x, TileCallbacks{finish, on_issue});
  if (writes<output>(a, ProductOutput::kSwiglu) && a.row_max != nullptr)
    store_row_max<NT>(a, state.largest, block_max);
}

// log2 of a group's chunks, for matrices of uses_split_int8(). 31 for a single group: every chunk is in
// group 0.
inline int group_shift(const DeviceMatrix& w) {
  int shift = 0;
  if (w.groups == 1) return 31;
  while (chunk_columns(w.form) << shift < w.group) ++shift;
  return shift;
}

// Chunks of each of `split_k` splits of the columns. A split never ends inside an activation group or a
// pair of chunks.
inline int chunks_per_split(const DeviceMatrix& w, int split_k) {
  const int chunks = (w.chunks() + split_k - 1) / split_k;
  const int each = uses_split_int8(w) ? kActivationGroup / chunk_columns(w.form) : in_pairs(w.form) ? 2 : 1;
  return (chunks + each - 1) / each * each;
}

// Bytes of `columns` staged activations, two each, and of their scales. Rings follow at a 128-byte line.
constexpr size_t staged_bytes(int64_t columns) {
  const auto groups = static_cast<size_t>((columns + kActivationGroup - 1) / kActivationGroup);
  return (groups * (kActivationGroup * 2 + sizeof(float)) + 127) / 128 * 128;
}

// One attempt at a launch.
struct ProductTry {
  int teams;
  int multiprocessors;
  bool last_choice;  // launch even if the shared memory does not suffice: the launch then reports the error
};

// Launches, or returns false if the shared memory does not suffice for this depth and number of teams.
template <MatrixForm form, int NT, bool split_int8, int output, int depth>
bool run_product(const ProductArgs& a, const ProductTry& how, cudaStream_t stream) {
  constexpr auto kernel = product_kernel<form, NT, split_int8, output, depth>;
  ProductShape shape{};
  shape.teams = how.teams;
  shape.chunks_per_split = chunks_per_split(a.w, a.split_k);
  const int team_tiles = (a.w.tiles() + shape.teams - 1) / shape.teams;
  const dim3 blocks(std::min(team_tiles, how.multiprocessors), a.split_k);
  shape.max_tiles = (team_tiles + static_cast<int>(blocks.x) - 1) / static_cast<int>(blocks.x);
  if (split_int8) shape.group_shift = group_shift(a.w);
  // A norm needs kNormThreads. Otherwise blocks are small, which leaves room for the next kernel's.
  const unsigned team_threads = shape.teams * kTeamWarps * kWarp;
  const unsigned threads =
      a.input.hidden != nullptr ? std::max<unsigned>(team_threads, kNormThreads) : team_threads;
  // Shared memory: sums, staged activations, rings.
  const size_t ring_offset =
      sizeof(float) * Reduce<NT>::floats +
      (NT == 0 ? staged_bytes(int64_t{shape.chunks_per_split} * chunk_columns(form)) : 0);
  shape.ring_offset = static_cast<int>(ring_offset);
  static const bool async = compiled_for(kernel) >= 80;
  size_t shared = ring_offset +
                  (async ? static_cast<size_t>(shape.teams) * kTeamWarps * ring_bytes(split_int8, depth) : 0);
  static const int most = most_shared_memory();
  // Takes more than half of the shared memory, so that no multiprocessor gets two blocks.
  if (NT == 0 && async && a.split_k == 1 && shape.max_tiles > 1)
    shared = std::max<size_t>(shared, most / 2 + 1024);
  if (!how.last_choice && shared + 1024 > static_cast<size_t>(most)) return false;
  // Activations of several rows are read through the first-level cache; those of one row are in shared
  // memory.
  launch<kernel, NT == 0 ? Carveout::kShared : Carveout::kCache>(blocks, threads, shared, stream, a, shape);
  return true;
}

// One row: the deepest rings that fit.
template <MatrixForm form, bool split_int8>
void row_product(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  const auto run = [&]<ProductOutput output, int deep, int shallow>() {
    constexpr int o = static_cast<int>(output);
    const int teams = product_teams(a, multiprocessors);
    if (run_product<form, 0, split_int8, o, deep>(a, {teams, multiprocessors, false}, stream)) return;
    if (run_product<form, 0, split_int8, o, shallow>(a, {teams, multiprocessors, false}, stream)) return;
    run_product<form, 0, split_int8, o, shallow>(a, {1, multiprocessors, true}, stream);
  };
  constexpr int deep = form_bits(form) == 4 ? kDeepFourBits : kDeep;
  switch (a.output) {
    case ProductOutput::kQkv:
      return run.template
      operator()<ProductOutput::kQkv, whole_depth(form), std::min(whole_depth(form), kShallow)>();
    case ProductOutput::kSwiglu:
      return run.template operator()<ProductOutput::kSwiglu, deep, kShallow>();
    case ProductOutput::kStore:
      // A split of a 4-bit matrix has few chunks for each warp.
      constexpr int depth = form_bits(form) == 4 ? 4 : kShallow;
      if (a.split_k > 1) return run.template operator()<ProductOutput::kStore, depth, depth>();
      return run.template operator()<ProductOutput::kStore, deep, kShallow>();
  }
}

// Up to 8 * NT rows. On some GPUs the sums of many teams leave too little shared memory: then one team.
template <MatrixForm form, int NT, bool split_int8>
void rows_product(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  constexpr int depth = 6;
  static_assert(sizeof(float) * Reduce<NT>::floats + kTeamWarps * ring_bytes(true, depth) <= 63 * 1024);
  const int teams = product_teams(a, multiprocessors);
  if (run_product<form, NT, split_int8, kAnyOutput, depth>(a, {teams, multiprocessors, false}, stream))
    return;
  run_product<form, NT, split_int8, kAnyOutput, depth>(a, {1, multiprocessors, true}, stream);
}

template <MatrixForm form, bool split_int8>
void product_of(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  if (a.rows == 1 && a.input.stride == 0) return row_product<form, split_int8>(a, multiprocessors, stream);
  if (a.rows <= 8) return rows_product<form, 1, split_int8>(a, multiprocessors, stream);
  if (a.rows == 16) return rows_product<form, 2, split_int8>(a, multiprocessors, stream);
  if (a.rows == 32) return rows_product<form, 4, split_int8>(a, multiprocessors, stream);
  rows_product<form, 8, split_int8>(a, multiprocessors, stream);
}

}  // namespace qwen2::cuda
