// The skinny product: up to 64 rows of activations times a matrix whose bytes are read once.
//
// A block takes tiles of 16 rows of W; its warps split the columns, and lane t of four reads 16 bytes of each
// chunk of its rows g and g + 8, in the order in which the tensor cores take them. The next chunks are always
// on their way, across tiles and, with dependent launch, across kernels: weights do not depend on what the
// previous kernel computes. A tile's sums are added up through shared memory in a fixed order, which depends
// on the matrix alone: a row's result is the same in every batch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/product/product_output.cuh"
#include "kernels/cuda/product/product_stage.cuh"
#include "kernels/cuda/product/product_steps.cuh"

namespace qwen2::cuda {

constexpr int kMaxWarps = 12;
constexpr int kReduceColumns = 32;

// Tiles that a block works on at once, which changes no sum. One row is in flight as a whole: then as many
// blocks as there are tiles. Otherwise large blocks, as long as they fill the card.
inline int product_teams(const ProductArgs& a, int multiprocessors) {
  constexpr int kTeams = kMaxWarps / kSplitWarps;
  const int blocks = (a.w.tiles() + kTeams - 1) / kTeams * a.split;
  const bool fills = a.rows == 1 ? a.w.tiles() > multiprocessors : 10 * blocks >= 9 * multiprocessors;
  return fills ? kTeams : 1;
}

// How a team adds up the sums of its warps: so many columns (rows of activations) at once, column by column
// at a distance that keeps lanes out of each other's banks, in buffers of which one is read while the next
// tile's is written.
template <int NT>
struct Reduce {
  static constexpr int columns = NT == 0 ? 1 : NT <= 2 ? 8 * NT : kReduceColumns;
  static constexpr int distance = NT == 0 ? kTileRows : kTileRows + 4;
  static constexpr int passes = NT <= 4 ? 1 : NT / 4;
  static constexpr int buffers = NT <= 2 ? 2 : 1;
  static constexpr int tiles = NT == 0 ? kSplitWarps : 1;  // that are added up together
  static constexpr int floats = kMaxWarps * distance * columns * tiles * buffers;
};

__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kSplitWarps * kWarp) : "memory");
}

// What the tiles of one row share beside their sums.
struct RowState {
  float factor = 1;  // of the staged activations
  struct {
    const float4* squares;  // null: nothing is normed
    float inverse, epsilon;
  } norm = {};
  float largest = 0;  // of this lane's results
  QkvPair qkv;        // of the first tile
};

// What a row's products are multiplied by, of several.
__device__ __forceinline__ float row_factor(const ProductInput& in, int m, int rows) {
  if (m >= rows) return 1;
  if (in.factors != nullptr) return __ldcg(in.factors + m);
  return in.row_max != nullptr ? half_scale(__uint_as_float(__ldcg(in.row_max + m))) : 1.0F;
}

// How often a team's warps meet in finish_row() for so many tiles.
constexpr int row_meetings(int tiles) {
  return (tiles + kSplitWarps - 1) / kSplitWarps;
}

// One row's tiles: when a team has the sums of kSplitWarps of them, or of its last ones, each warp adds up
// those of one tile and stores them. `turn` counts a team's tiles.
template <class WarpRing, int output, bool digits, class WarpWalk, class Index>
__device__ __forceinline__ void finish_row(const ProductArgs& a, const WarpWalk& walk, Index part, int tile,
                                           int turn, int in_team, const Sums<0>& sums, float* buffer,
                                           RowState& state) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  constexpr int of_warp = kSplitWarps * kTileRows;
  const int slot = turn % kSplitWarps;
  float* own = buffer + (turn / kSplitWarps % 2 * kMaxWarps + warp) * of_warp;
  if (lane % 4 == 0) {
    own[slot * kTileRows + WarpRing::tile_row(lane / 4)] = sums[0][0];
    own[slot * kTileRows + WarpRing::tile_row(lane / 4) + 8] = sums[0][2];
  }
  if (slot + 1 < kSplitWarps && turn + 1 < walk.tiles) return;
  // While other warps are waited for.
  float factor = state.factor;
  if (digits && state.norm.squares != nullptr)
    factor = norm_factor(state.norm.inverse, state.norm.epsilon, state.norm.squares);
  team_barrier(warp / kSplitWarps);
  if (in_team > slot) return;
  tile += (in_team - slot) * walk.tile_stride;
  static_assert(kSplitWarps == 4);  // a lane of four for each warp's sum
  const float* all = own + (lane % 4 - in_team) * of_warp + in_team * kTileRows + lane / 4;
  float v0 = all[0];
  float v1 = all[8];
  v0 += __shfl_xor_sync(kFullMask, v0, 1);
  v1 += __shfl_xor_sync(kFullMask, v1, 1);
  v0 += __shfl_xor_sync(kFullMask, v0, 2);
  v1 += __shfl_xor_sync(kFullMask, v1, 2);
  if (lane % 4 != 0) return;
  if (writes<output>(a, ProductOutput::kQkv) && tile != walk.first_tile)
    state.qkv = find_qkv(a, tile, lane / 4, 0);
  const float magnitude =
      store_pair<output>(a, part, tile, lane / 4, 0, __fmul_rn(v0, factor), __fmul_rn(v1, factor), state.qkv);
  state.largest = fmaxf(state.largest, magnitude);
}

// Adds up the four warps' sums of `each` neighbouring rows of a column.
template <int each>
__device__ __forceinline__ void add_warps(const float* from, int of_warp, float (&sum)[each]) {
  static_assert(kSplitWarps == 4);
  float v[kSplitWarps][each];
#pragma unroll
  for (int w = 0; w < kSplitWarps; ++w) {
    if constexpr (each == 2) {
      const float2 two = *reinterpret_cast<const float2*>(from + w * of_warp);
      v[w][0] = two.x;
      v[w][1] = two.y;
    } else {
      v[w][0] = from[w * of_warp];
    }
  }
#pragma unroll
  for (int i = 0; i < each; ++i) sum[i] = (v[0][i] + v[1][i]) + (v[2][i] + v[3][i]);
}

// The same of several rows.
template <class WarpRing, int NT, int output, class Index>
__device__ __forceinline__ void finish_rows(const ProductArgs& a, Index part, int tile, int turn, int team,
                                            int in_team, const Sums<NT>& sums, float* buffer,
                                            const float* factors, unsigned* block_max) {
  using R = Reduce<NT>;
  constexpr int of_warp = R::distance * R::columns;
  constexpr int each = R::columns == 32 ? 2 : 1;  // pairs of rows of a thread
  constexpr int threads = kTileRows / 2 * R::columns / each;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  float* own = buffer + (turn % R::buffers * kMaxWarps + warp) * of_warp;
  const int thread = (in_team + turn) % kSplitWarps * kWarp + lane;  // every warp has its turn
  const int first = thread % (8 / each) * each;
  // Columns that lie two apart are in different banks.
  const int place = thread / (8 / each);
  const int column = place % 4 * 2 + place / 4 % 2 + place / 8 * 8;
  const float* all = own - in_team * of_warp + column * R::distance + first;
#pragma unroll
  for (int pass = 0; pass < R::passes; ++pass) {
#pragma unroll
    for (int n = 0; n < R::columns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        own[(n * 8 + lane % 4 * 2 + i % 2) * R::distance + WarpRing::tile_row(lane / 4) + i / 2 * 8] =
            sums[pass * (R::columns / 8) + n][i];
    }
    team_barrier(team);
    const int m = pass * R::columns + column;
    float largest = 0;
    if (thread < threads && m < a.rows) {
      float low[each];
      float high[each];
      add_warps<each>(all, of_warp, low);
      add_warps<each>(all + 8, of_warp, high);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        QkvPair qkv;
        if (writes<output>(a, ProductOutput::kQkv)) qkv = find_qkv(a, tile, first + i, m);
        largest =
            fmaxf(largest, store_pair<output>(a, part, tile, first + i, m, __fmul_rn(low[i], factors[m]),
                                              __fmul_rn(high[i], factors[m]), qkv));
      }
    }
    if (writes<output>(a, ProductOutput::kSwiglu) && a.row_max != nullptr) {
#pragma unroll
      for (int o = 8 / each / 2; o > 0; o /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, o));
      if (thread < threads && m < a.rows && first == 0) atomicMax(block_max + m, __float_as_uint(largest));
    }
    if (R::buffers == 1) team_barrier(team);
  }
}

// Chunks on the way to a warp that fetches gently.
constexpr int kGently = 2;
// Stages of the rings of one row: as many as leave room for the kernels before and after, few for a part of
// the columns, and all that a warp wants of a tile of 1536 columns, four at least, where a block has one
// tile.
constexpr int kDeep = 9;
constexpr int kDeepFourBits = 7;
constexpr int kShallow = 6;
constexpr int whole_depth(MatrixForm form) {
  return std::max(1536 / chunk_columns(form) / kSplitWarps, 4);
}

struct ProductShape {
  int chunks_a_part;
  int rounds;  // tiles of each team, at most
  int teams;
  int group_shift;
  int ring_offset;
};

// Chunks in registers instead: for one row as many as one block of a multiprocessor can have, of 4 bits what
// a warp wants of a tile of 1536 columns.
template <MatrixForm form, int NT>
constexpr int kRegisterChunks =
    in_pairs(form) ? (NT == 0 ? 6 : 4) : (NT == 0 && form_bits(form) == 8 ? 6 : 3);

template <MatrixForm form, int NT, bool fine, int output, int depth>
__global__ void __launch_bounds__(kMaxWarps* kWarp, NT == 1 || (NT == 0 && kAsync) ? 2 : 1)
    product_kernel(const __grid_constant__ ProductArgs a, const ProductShape shape) {
  extern __shared__ __align__(128) uint4 shared_memory[];
  __shared__ float factors[NT == 0 ? 1 : kMaxRows];
  __shared__ unsigned block_max[NT == 0 ? 1 : kMaxRows];
  __shared__ float4 scratch[kNormThreads / kWarp / 4];
  auto* buffer = reinterpret_cast<float*>(shared_memory);
  constexpr bool digits = kInDigits<form, fine>;
  const DeviceMatrix& w = a.w;
  // Of one row there is little else to do than to wait for the memory: it gains nothing where chunks are
  // copied.
  const int warp = NT > 0 || !kAsync ? warp_number() : threadIdx.x / kWarp;
  const int g = threadIdx.x % kWarp / 4;
  const int t = threadIdx.x % 4;
  const int team = warp / kSplitWarps;
  const int in_team = warp % kSplitWarps;
  const int part = static_cast<int>(blockIdx.y);
  // Warps beyond the teams help to norm.
  using WarpRing =
      std::conditional_t<kAsync, Ring<digits, depth>, RegisterRing<form, digits, kRegisterChunks<form, NT>>>;
  using WarpFetch =
      std::conditional_t<kAsync, Fetch<WarpRing, form, digits>, FetchRounds<WarpRing, form, digits>>;
  const Walk<WarpRing::kUnit> walk(w, blockIdx.x * shape.teams + team, gridDim.x * shape.teams,
                                   team < shape.teams ? shape.rounds : 0, part, shape.chunks_a_part, in_team);

  WarpRing ring(reinterpret_cast<const char*>(shared_memory) + shape.ring_offset +
                warp * ring_bytes(digits, depth));
  WarpFetch fetch(w, walk, shape.group_shift);
  const bool working = NT > 0 || team < shape.teams;
  // Where the memory is the bound, the next kernel is let in when no more is left to ask for than a ring
  // holds: if it had all that fits its own by the time that this one ends, the memory would rest until it
  // begins.
  const bool lets_in_late = NT == 0 && form == MatrixForm::kF16 && a.starts_early;
  // What follows a product that stores its sums has so many weights that they are asked for before its own.
  const bool lets_in_first =
      NT == 0 && a.next_starts_early && output == static_cast<int>(ProductOutput::kStore);
  if (lets_in_first) let_next_start();
  if (working) {
    // Code that runs once is dear: it has to come from the second-level cache. Registers need names, though.
#pragma unroll(WarpRing::kPlaces)
    for (int i = 0; i < WarpRing::kAhead; ++i) {
      // A queue of requests would hold up what the kernels before this one wait for.
      if (NT == 0 && a.starts_early && i >= kGently) wait_copies<kGently - 1>();
      fetch.next(ring, i);
    }
  }
  if (NT == 0 && a.next_starts_early && !lets_in_first) let_next_start();

  RowState state;
  Activations x;
  if (output == static_cast<int>(ProductOutput::kQkv) && walk.tiles > 0)
    state.qkv = find_qkv(a, walk.first_tile, g, 0);
  if constexpr (NT == 0) {
    const int begin = part * shape.chunks_a_part * chunk_columns(form);
    const int end_padded = min((part + 1) * shape.chunks_a_part, w.chunks()) * chunk_columns(form);
    const StagedRow row = staged_row(reinterpret_cast<std::byte*>(buffer + Reduce<NT>::floats), begin,
                                     shape.chunks_a_part * chunk_columns(form));
    const RowPlaces<form, fine> places(row);
    if (threadIdx.x == 0) block_max[0] = 0;
    // Beyond the columns, in the last chunk.
    if constexpr (!digits) {
#pragma unroll 1
      for (int k = w.cols + threadIdx.x * 4; k < end_padded; k += blockDim.x * 4) places.put(k, uint2{});
    }
    if (a.input.hidden != nullptr) {
      state.norm = {scratch, __frcp_rn(static_cast<float>(w.cols)), a.input.epsilon};
      const NormedRow<form, fine> input(a.input, w.cols);
      wait_for_previous();
      input.stage(places, state.norm.inverse, state.norm.epsilon, scratch);
      // Not before: what the next kernel fetches would stand in the way of the activations.
      if (!lets_in_late) let_next_start();
    } else {
      const PlainRow<form, fine> input(a.input, begin, min(end_padded, w.cols));
      wait_for_previous();
      if (!a.next_starts_early && !lets_in_late) let_next_start();
      state.factor = input.stage(places, a.input.row_max);
    }
    x = {row.x + (digits ? g % 2 * kLowDigit : 0) + 16 * t, 0, row.scales};
  } else {
    let_next_start();
    wait_for_previous();
#pragma unroll 1
    for (int m = threadIdx.x; m < kMaxRows; m += blockDim.x) {
      factors[m] = row_factor(a.input, m, a.rows);
      block_max[m] = 0;
    }
    // Fewer than eight rows are read again, or what lies beyond them, of which nothing is stored.
    const int first = digits ? g * 64 : (NT == 1 ? g & (a.rows - 1) : g) * 64;
    x = {reinterpret_cast<const std::byte*>(a.input.x) + first + 16 * t, 16 * a.input.stride,
         a.input.scales + 2 * t};
  }
  __syncthreads();

  const auto finish = [&](int tile, int turn, const Sums<NT>& sums) {
    if constexpr (NT == 0) {
      finish_row<WarpRing, output, digits>(a, walk, blockIdx.y, tile, turn, in_team, sums, buffer, state);
    } else {
      finish_rows<WarpRing, NT, output>(a, blockIdx.y, tile, turn, team, in_team, sums, buffer, factors,
                                        block_max);
    }
  };
  const auto asked_for = [&](int left) {
    if (lets_in_late && left == depth && warp == 0) let_next_start();
  };
  multiply_tiles<form, NT, fine>(w, walk, ring, fetch, x, finish, asked_for);
  if (writes<output>(a, ProductOutput::kSwiglu) && a.row_max != nullptr) {
    if constexpr (NT == 0) {
      state.largest = warp_max(state.largest);
      if (threadIdx.x % kWarp == 0) atomicMax(block_max, __float_as_uint(state.largest));
    }
    __syncthreads();
#pragma unroll 1
    for (int m = threadIdx.x; m < a.rows; m += blockDim.x) atomicMax(a.row_max + m, block_max[m]);
  }
}

// From chunks to groups, of a coarse matrix; one group has any length.
inline int group_shift(const DeviceMatrix& w) {
  int shift = 0;
  if (w.groups == 1) return 31;
  while (chunk_columns(w.form) << shift < w.group) ++shift;
  return shift;
}

// Chunks of each of `split` parts of the columns. No part ends within kDigitColumns or a pair of chunks.
inline int chunks_a_part(const DeviceMatrix& w, int split) {
  const int chunks = (w.chunks() + split - 1) / split;
  const int each = is_coarse(w) ? kDigitColumns / chunk_columns(w.form) : in_pairs(w.form) ? 2 : 1;
  return (chunks + each - 1) / each * each;
}

// Activations of so many columns, two bytes each, and scales of digits.
constexpr size_t staged_bytes(int64_t columns) {
  const auto groups = static_cast<size_t>((columns + kDigitColumns - 1) / kDigitColumns);
  return (groups * (kDigitColumns * 2 + sizeof(float)) + 127) / 128 * 128;  // the ring's lines begin after it
}

// False where a block's memory is too small for `depth` with so many teams, unless there is no other choice:
// then the launch fails, and says so.
template <MatrixForm form, int NT, bool fine, int output, int depth>
bool run_product(const ProductArgs& a, int teams, int multiprocessors, bool last_choice,
                 cudaStream_t stream) {
  constexpr auto kernel = product_kernel<form, NT, fine, output, depth>;
  constexpr bool digits = kInDigits<form, fine>;
  ProductShape shape{};
  shape.teams = teams;
  shape.chunks_a_part = chunks_a_part(a.w, a.split);
  const int places = (a.w.tiles() + shape.teams - 1) / shape.teams;
  const dim3 blocks(std::min(places, multiprocessors), a.split);
  shape.rounds = (places + static_cast<int>(blocks.x) - 1) / static_cast<int>(blocks.x);
  if (digits) shape.group_shift = group_shift(a.w);
  // A norm takes kNormThreads; small blocks otherwise leave room for the next kernel's.
  const unsigned team_threads = shape.teams * kSplitWarps * kWarp;
  const unsigned threads =
      a.input.hidden != nullptr ? std::max<unsigned>(team_threads, kNormThreads) : team_threads;
  // Sums of tiles, staged activations, chunks on their way.
  const size_t ring_offset = sizeof(float) * Reduce<NT>::floats +
                             (NT == 0 ? staged_bytes(int64_t{shape.chunks_a_part} * chunk_columns(form)) : 0);
  shape.ring_offset = static_cast<int>(ring_offset);
  static const bool async = compiled_for(kernel) >= 80;
  size_t shared =
      ring_offset + (async ? static_cast<size_t>(shape.teams) * kSplitWarps * ring_bytes(digits, depth) : 0);
  static const int most = most_shared_memory();
  // With a block for every multiprocessor, no two of them may share one.
  if (NT == 0 && async && a.split == 1 && shape.rounds > 1)
    shared = std::max<size_t>(shared, most / 2 + 1024);
  if (!last_choice && shared + 1024 > static_cast<size_t>(most)) return false;
  // Several rows are read from the first-level cache again and again; one row from shared memory.
  launch<kernel, NT == 0 ? Carveout::kShared : Carveout::kCache>(blocks, threads, shared, stream, a, shape);
  return true;
}

// One row: the chunks on the way fill a multiprocessor's memory as far as the kernels before and after leave
// room, and where the output has a block for every multiprocessor, no second one of it fits.
template <MatrixForm form, bool fine>
void row_product(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  const auto run = [&]<ProductOutput output, int deep, int shallow>() {
    constexpr int o = static_cast<int>(output);
    const int teams = product_teams(a, multiprocessors);
    if (run_product<form, 0, fine, o, deep>(a, teams, multiprocessors, false, stream)) return;
    if (run_product<form, 0, fine, o, shallow>(a, teams, multiprocessors, false, stream)) return;
    run_product<form, 0, fine, o, shallow>(a, 1, multiprocessors, true, stream);
  };
  constexpr int deep = form_bits(form) == 4 ? kDeepFourBits : kDeep;
  switch (a.output) {
    case ProductOutput::kQkv:
      return run.template
      operator()<ProductOutput::kQkv, whole_depth(form), std::min(whole_depth(form), kShallow)>();
    case ProductOutput::kSwiglu:
      return run.template operator()<ProductOutput::kSwiglu, deep, kShallow>();
    case ProductOutput::kStore:
      // A part of a 4-bit matrix has few chunks for a warp.
      constexpr int depth = form_bits(form) == 4 ? 4 : kShallow;
      if (a.split > 1) return run.template operator()<ProductOutput::kStore, depth, depth>();
      return run.template operator()<ProductOutput::kStore, deep, kShallow>();
  }
}

// Up to 8 * NT rows, whose sums leave a block of many teams too little memory on some cards.
template <MatrixForm form, int NT, bool fine>
void rows_product(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  constexpr int depth = 6;
  static_assert(sizeof(float) * Reduce<NT>::floats + kSplitWarps * ring_bytes(true, depth) <= 63 * 1024);
  const int teams = product_teams(a, multiprocessors);
  if (run_product<form, NT, fine, kAnyOutput, depth>(a, teams, multiprocessors, false, stream)) return;
  run_product<form, NT, fine, kAnyOutput, depth>(a, 1, multiprocessors, true, stream);
}

template <MatrixForm form, bool fine>
void product_of(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  if (a.rows == 1 && a.input.stride == 0) return row_product<form, fine>(a, multiprocessors, stream);
  if (a.rows <= 8) return rows_product<form, 1, fine>(a, multiprocessors, stream);
  if (a.rows == 16) return rows_product<form, 2, fine>(a, multiprocessors, stream);
  if (a.rows == 32) return rows_product<form, 4, fine>(a, multiprocessors, stream);
  rows_product<form, 8, fine>(a, multiprocessors, stream);
}

}  // namespace qwen2::cuda
