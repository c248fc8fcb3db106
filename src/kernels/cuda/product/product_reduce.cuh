// A team's reduction: the sums of its warps are added up through shared memory, in an order that depends on
// the matrix alone, and stored.
#pragma once

#include "kernels/cuda/product/product_output.cuh"
#include "kernels/cuda/product/product_stage.cuh"
#include "kernels/cuda/product/product_steps.cuh"

namespace qwen2::cuda {

constexpr int kMaxWarps = 12;
constexpr int kReduceColumns = 32;

// The buffers of a reduction. It takes `columns` activation rows at a time. The distance between columns
// keeps lanes in different banks. With two buffers, one is read while the next tile's sums are written to
// the other.
template <int NT>
struct Reduce {
  static constexpr int columns = NT == 0 ? 1 : NT <= 2 ? 8 * NT : kReduceColumns;
  static constexpr int distance = NT == 0 ? kTileRows : kTileRows + 4;
  static constexpr int passes = NT <= 4 ? 1 : NT / 4;
  static constexpr int buffers = NT <= 2 ? 2 : 1;
  static constexpr int tiles = NT == 0 ? kTeamWarps : 1;  // that are reduced together
  static constexpr int floats = kMaxWarps * distance * columns * tiles * buffers;
};

__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kTeamWarps * kWarp) : "memory");
}

// A finished tile, and how many the team had finished before it.
struct FinishedTile {
  int tile, iteration;
};

// What a warp keeps for the tiles of one row.
struct RowState {
  float factor = 1;  // of the staged activations
  struct {
    const float4* squares;  // null: no norm
    float inverse, epsilon;
  } norm = {};
  float largest = 0;  // of this lane's results
  QkvPair qkv;        // of the first tile
  float* buffer = nullptr;
  int warp_in_team = 0;
};

// The factor of row m's products, of several rows.
__device__ __forceinline__ float row_factor(const ProductInput& in, int m, int rows) {
  if (m >= rows) return 1;
  if (in.factors != nullptr) return __ldcg(in.factors + m);
  return in.row_max != nullptr ? half_scale(__uint_as_float(__ldcg(in.row_max + m))) : 1.0F;
}

// Barriers of a team in finish_row() for this many tiles.
constexpr int team_barriers(int tiles) {
  return (tiles + kTeamWarps - 1) / kTeamWarps;
}

// One row: when a team has the sums of kTeamWarps tiles, or of its last ones, each warp reduces and stores
// one of them.
template <class WarpRing, int output, bool split_int8, class WarpRange, class Index>
__device__ __forceinline__ void finish_row(const ProductArgs& a, const WarpRange& range, Index split,
                                           const FinishedTile& at, const Sums<0>& sums, RowState& state) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp_in_team = state.warp_in_team;
  constexpr int of_warp = kTeamWarps * kTileRows;
  const int slot = at.iteration % kTeamWarps;
  float* own = state.buffer + (at.iteration / kTeamWarps % 2 * kMaxWarps + warp) * of_warp;
  if (lane % 4 == 0) {
    own[slot * kTileRows + WarpRing::tile_row(lane / 4)] = sums[0][0];
    own[slot * kTileRows + WarpRing::tile_row(lane / 4) + 8] = sums[0][2];
  }
  if (slot + 1 < kTeamWarps && at.iteration + 1 < range.tiles) return;
  // Computed before the barrier, while other warps are waited for.
  float factor = state.factor;
  if (split_int8 && state.norm.squares != nullptr)
    factor = norm_factor(state.norm.inverse, state.norm.epsilon, state.norm.squares);
  team_barrier(warp / kTeamWarps);
  if (warp_in_team > slot) return;
  const int tile = at.tile + (warp_in_team - slot) * range.tile_stride;
  static_assert(kTeamWarps == 4);  // four lanes, one for each warp's sum
  const float* all = own + (lane % 4 - warp_in_team) * of_warp + warp_in_team * kTileRows + lane / 4;
  float v0 = all[0];
  float v1 = all[8];
  v0 += __shfl_xor_sync(kFullMask, v0, 1);
  v1 += __shfl_xor_sync(kFullMask, v1, 1);
  v0 += __shfl_xor_sync(kFullMask, v0, 2);
  v1 += __shfl_xor_sync(kFullMask, v1, 2);
  if (lane % 4 != 0) return;
  if (writes<output>(a, ProductOutput::kQkv) && tile != range.first_tile)
    state.qkv = find_qkv(a, tile, lane / 4, 0);
  const float magnitude = store_pair<output>(a, split, {tile, lane / 4, 0}, __fmul_rn(v0, factor),
                                             __fmul_rn(v1, factor), state.qkv);
  state.largest = fmaxf(state.largest, magnitude);
}

// Adds up the four warps' sums of `each` neighbouring rows of a column.
template <int each>
__device__ __forceinline__ void add_warps(const float* from, int of_warp, float (&sum)[each]) {
  static_assert(kTeamWarps == 4);
  float v[kTeamWarps][each];
#pragma unroll
  for (int w = 0; w < kTeamWarps; ++w) {
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

// What a warp needs to reduce several rows.
struct RowsState {
  int team, warp_in_team;
  float* buffer;
  const float* factors;  // [kMaxRows]
  unsigned* block_max;   // [kMaxRows]
};

// Several rows: the team reduces and stores each tile, kReduceColumns rows at a time.
template <class WarpRing, int NT, int output, class Index>
__device__ __forceinline__ void finish_rows(const ProductArgs& a, Index split, const FinishedTile& at,
                                            const Sums<NT>& sums, const RowsState& state) {
  using R = Reduce<NT>;
  constexpr int of_warp = R::distance * R::columns;
  constexpr int each = R::columns == 32 ? 2 : 1;  // pairs of rows of a thread
  constexpr int threads = kTileRows / 2 * R::columns / each;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  float* own = state.buffer + (at.iteration % R::buffers * kMaxWarps + warp) * of_warp;
  // Another warp begins with each tile, because only some warps have work.
  const int thread = (state.warp_in_team + at.iteration) % kTeamWarps * kWarp + lane;
  const int first = thread % (8 / each) * each;
  // Neighbouring lanes take columns two apart, which are in different banks.
  const int place = thread / (8 / each);
  const int column = place % 4 * 2 + place / 4 % 2 + place / 8 * 8;
  const float* all = own - state.warp_in_team * of_warp + column * R::distance + first;
#pragma unroll
  for (int pass = 0; pass < R::passes; ++pass) {
#pragma unroll
    for (int n = 0; n < R::columns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        own[(n * 8 + lane % 4 * 2 + i % 2) * R::distance + WarpRing::tile_row(lane / 4) + i / 2 * 8] =
            sums[pass * (R::columns / 8) + n][i];
    }
    team_barrier(state.team);
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
        if (writes<output>(a, ProductOutput::kQkv)) qkv = find_qkv(a, at.tile, first + i, m);
        largest = fmaxf(largest, store_pair<output>(a, split, {at.tile, first + i, m},
                                                    __fmul_rn(low[i], state.factors[m]),
                                                    __fmul_rn(high[i], state.factors[m]), qkv));
      }
    }
    if (writes<output>(a, ProductOutput::kSwiglu) && a.row_max != nullptr) {
#pragma unroll
      for (int o = 8 / each / 2; o > 0; o /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, o));
      if (thread < threads && m < a.rows && first == 0)
        atomicMax(state.block_max + m, __float_as_uint(largest));
    }
    if (R::buffers == 1) team_barrier(state.team);
  }
}

}  // namespace qwen2::cuda
