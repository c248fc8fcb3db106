// Attention of one split of a row's keys by a block of kThreads<depth>.
//
// A block takes query heads of one KV head. Each warp takes every kWarps-th tile of 16 keys, with a running
// softmax. On the tensor cores, query heads are rows of the left operand: eight rows with the heads rounded
// to fp16 and eight with the rounding errors, so that queries and weights keep 22 bits. The warps' results
// are merged at the end in a fixed order: a head's result depends on the keys alone. Sums of products are
// written with explicit operations, because the compiler could fuse them in two ways.
#pragma once

#include "kernels/cuda/attention/warp_tiles.cuh"

namespace qwen2::cuda {

constexpr int kHeads = 8;  // query heads of one block, at most

// What the warps of a block share beside their tiles.
template <int warps, int heads = kHeads>
struct AttentionShared {
  float q_bias[kHeads][kMaxBiasPairs][2];  // zero where there is no head
  float2 softmax[warps][heads];            // maximum, denominator
};

// Bytes of shared memory of a warp: its tiles of keys and values, and later its sums.
template <int dim, int bits, int depth>
constexpr int warp_bytes(int heads) {
  const int tiles = (depth > 0 ? 2 * depth : 1) * KvTile<dim, bits>::kBytes;
  const int sums = heads * (dim + 8) * static_cast<int>(sizeof(float));
  return ((tiles > sums ? tiles : sums) + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
}
// Bytes of the block's queries as left operand.
template <int dim>
constexpr int kQueryBytes = dim / 16 * kWarp * 16;

// With 8-bit values, softmax weights are multiplied by the values' scales before rounding to fp16. This
// factor keeps the products away from fp16's smallest numbers. Scales are at most 65504 / 127, so 64 is the
// largest power of two that cannot overflow.
template <int bits>
constexpr float kWeightScale = bits == 8 ? 64 : 1;

// Two floats rounded to fp16 (`high`), and the rounding errors (`low`).
__device__ __forceinline__ void split_half(float x, float y, uint32_t& high, uint32_t& low) {
  const __half2 kept = __floats2half2_rn(saturate_half(x), saturate_half(y));
  const float2 back = __half22float2(kept);
  high = as_bits(kept);
  low = as_bits(__floats2half2_rn(saturate_half(x - back.x), saturate_half(y - back.y)));
}

// Loads the block's queries and stores them as the left operand of the scores in shared memory [dim /
// 16][32], one step of 16 dimensions by each warp.
template <int dim, int bits>
class Queries {
 public:
  // Computes the address, before the wait.
  __device__ __forceinline__ Queries(const float* q, int heads) {
    const int step = threadIdx.x / kWarp;
    const int head = threadIdx.x % kWarp / 4;
    if (step < dim / 16 && head < heads)
      from_ = q + head * dim + KvTile<dim, bits>::query_dim(step, threadIdx.x % 4, 0);
    compiler_barrier(from_);
  }
  // Issues the loads, after the wait and before other loads.
  __device__ __forceinline__ void load() {
    if (from_ == nullptr) return;
    constexpr int kHigh = KvTile<dim, bits>::query_dim(0, 0, 1);
    pairs_[0] = __ldcg(reinterpret_cast<const float2*>(from_));
    pairs_[1] = __ldcg(reinterpret_cast<const float2*>(from_ + kHigh));
  }
  __device__ __forceinline__ void store(uint32_t queries) const {
    if (threadIdx.x >= dim / 16 * kWarp) return;
    uint4 out;
    split_half(pairs_[0].x, pairs_[0].y, out.x, out.y);
    split_half(pairs_[1].x, pairs_[1].y, out.z, out.w);
    store_16(queries + threadIdx.x * 16, out);
  }

 private:
  const float* from_ = nullptr;
  float2 pairs_[2] = {};
};

// The products of the queries with the key biases that are kept out of the cache, by rotation pair. They are
// rotated by the key's position when scores are made: see add_bias().
template <int dim>
__device__ void stage_bias(const RowAttentionArgs& a, const KvSplit& kv,
                           float (&q_bias)[kHeads][kMaxBiasPairs][2]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + kv.kv_head * kMaxBiasPairs;
  for (int i = threadIdx.x; i < kHeads * bias.pairs; i += blockDim.x) {
    const int head = i / bias.pairs;
    const int pair = i % bias.pairs;
    float2 product = {};
    if (head < kv.heads) {
      const float b0 = bias.first[kv.kv_head * kMaxBiasPairs + pair];
      const float b1 = bias.second[kv.kv_head * kMaxBiasPairs + pair];
      const float q0 = __ldcg(kv.q + head * dim + index[pair]);
      const float q1 = __ldcg(kv.q + head * dim + index[pair] + dim / 2);
      product = {__fmaf_rn(q0, b0, __fmul_rn(q1, b1)), __fmaf_rn(q1, b0, -__fmul_rn(q0, b1))};
    }
    q_bias[head][pair][0] = product.x;
    q_bias[head][pair][1] = product.y;
  }
}

// Adds the key biases' part of the scores of head `head` with keys 8 n + 2 t + i of a tile.
template <int dim>
__device__ __forceinline__ void add_bias(const RowAttentionArgs& a, const KvSplit& kv, int tile_key,
                                         const float (&q_bias)[kHeads][kMaxBiasPairs][2], int head,
                                         float (&scores)[2][2]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + kv.kv_head * kMaxBiasPairs;
  const auto* rotations = reinterpret_cast<const float2*>(a.cache.rotations);
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int pair = 0; pair < bias.pairs; ++pair) {
    const float b0 = q_bias[head][pair][0];
    const float b1 = q_bias[head][pair][1];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = min(tile_key + j / 2 * 8 + lane % 4 * 2 + j % 2, kv.keys - 1) + kv.first_key;
      const float2 r = __ldg(rotations + int64_t(key) * (dim / 2) + index[pair]);
      scores[j / 2][j % 2] = __fmaf_rn(b0, r.x, __fmaf_rn(b1, r.y, scores[j / 2][j % 2]));
    }
  }
}

// A lane's running softmax, of head lane / 4.
template <int eights>
struct RunningSums {
  float maximum = -INFINITY;
  float denominator = 0;  // of this lane's keys
  float sums[eights][4] = {};
};
template <int dim>
using Running = RunningSums<dim / 8>;

// The scores of lane / 4's head with keys 8 n + 2 t + i of a tile, at [n][i].
template <int dim, int bits>
__device__ __forceinline__ void score_tile(uint32_t k, uint32_t queries, float (&scores)[2][2]) {
  using Tile = KvTile<dim, bits>;
  const int lane = threadIdx.x % kWarp;
  float products[2][2][4] = {};  // of even and of odd steps
  Tile::score(k, queries, products);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int key = j / 2 * 8 + lane % 4 * 2 + j % 2;
    scores[j / 2][j % 2] = ((products[0][j / 2][j % 2] + products[0][j / 2][2 + j % 2]) +
                            (products[1][j / 2][j % 2] + products[1][j / 2][2 + j % 2])) *
                           Tile::scale(k, key);
  }
}

// Updates the maximum with the tile's first `keys` scores and rescales the sums. The other scores become
// minus infinity.
template <int eights>
__device__ __forceinline__ void raise_maximum(int keys, float (&scores)[2][2], RunningSums<eights>& running) {
  const int lane = threadIdx.x % kWarp;
  float maximum = running.maximum;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int key = j / 2 * 8 + lane % 4 * 2 + j % 2;
    if (key >= keys) scores[j / 2][j % 2] = -INFINITY;
    maximum = fmaxf(maximum, scores[j / 2][j % 2]);
  }
  maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 1));
  maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 2));
  // Most tiles of a long row do not change the maximum.
  if (running.maximum != -INFINITY && __any_sync(kFullMask, running.maximum != maximum)) {
    const float shrink = __expf(running.maximum - maximum);
    running.denominator = __fmul_rn(running.denominator, shrink);
#pragma unroll
    for (auto& sum : running.sums) {
#pragma unroll
      for (float& value : sum) value *= shrink;
    }
  }
  running.maximum = maximum;
}

// The softmax weights of keys 8 n + 2 t and the next: rounded to fp16 at 2 n, the rounding errors at 2 n + 1.
// `v` is the tile's address, for the scales of 8-bit values.
template <int dim, int bits, int eights>
__device__ __forceinline__ void make_weights(uint32_t v, int keys, const float (&scores)[2][2],
                                             RunningSums<eights>& running, uint32_t (&weights)[4]) {
  using Tile = KvTile<dim, bits>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weight[i] = __expf(scores[n][i] - running.maximum);
      running.denominator += weight[i];
      const int key = n * 8 + lane % 4 * 2 + i;
      if (bits == 8)
        weight[i] = key < keys ? __fmul_rn(weight[i], kWeightScale<bits> * Tile::scale(v, key)) : 0.0F;
    }
    split_half(weight[0], weight[1], weights[2 * n], weights[2 * n + 1]);
  }
}

// What a block works with.
template <int dim, int bits, int depth>
struct SplitAttention {
  const RowAttentionArgs& a;
  const KvSplit& kv;
  Tiles<dim, bits, depth>& tiles;
  AttentionShared<kWarps<depth>>& shared;
};

// Adds tile number `tile` of the split.
template <int dim, int bits, int depth>
__device__ __forceinline__ void add_tile(const SplitAttention<dim, bits, depth>& own, uint32_t queries,
                                         int tile, Running<dim>& running) {
  const RowAttentionArgs& a = own.a;
  const KvSplit& kv = own.kv;
  Tiles<dim, bits, depth>& tiles = own.tiles;
  const int keys = tiles.count(tile);
  float scores[2][2];
  score_tile<dim, bits>(tiles.wait(tile, 0), queries, scores);
  tiles.release(tile, 0);
  if (a.cache.key_bias.pairs > 0)
    add_bias<dim>(a, kv, tile * kTileKeys, own.shared.q_bias, threadIdx.x % kWarp / 4, scores);
  raise_maximum(keys, scores, running);
  const uint32_t v = tiles.wait(tile, 1);
  uint32_t weights[4];
  make_weights<dim, bits>(v, keys, scores, running, weights);
  KvTile<dim, bits>::add(v, weights, running.sums);
  tiles.release(tile, 1);
}

// Stores the warp's sums and softmax of the first `heads` heads in shared memory.
template <int dim, int bits>
__device__ __forceinline__ void store_sums(int heads, const Running<dim>& running, float2* softmax,
                                           uint32_t sums) {
  const int lane = threadIdx.x % kWarp;
  const int head = lane / 4;
  float denominator = running.denominator;
  denominator += __shfl_xor_sync(kFullMask, denominator, 1);
  denominator += __shfl_xor_sync(kFullMask, denominator, 2);
  if (head >= heads) return;
  if (lane % 4 == 0) softmax[head] = {running.maximum, denominator};
  const uint32_t out = sums + head * (dim + 8) * sizeof(float);
#pragma unroll
  for (int n = 0; n < dim / 8; ++n) {
    constexpr float back = 1 / kWeightScale<bits>;
    const float2 sum = {(running.sums[n][0] + running.sums[n][2]) * back,
                        (running.sums[n][1] + running.sums[n][3]) * back};
    if constexpr (bits == 16) {
      store_8(out + (n * 8 + lane % 4 * 2) * 4, {__float_as_uint(sum.x), __float_as_uint(sum.y)});
    } else {
      store_4(out + KvTile<dim, bits>::value_dim(n, lane % 4 * 2) * 4, __float_as_uint(sum.x));
      store_4(out + KvTile<dim, bits>::value_dim(n, lane % 4 * 2 + 1) * 4, __float_as_uint(sum.y));
    }
  }
}

// The warps' results in shared memory.
struct WarpResults {
  const float2* softmax;  // [warps][heads]
  int heads;
  uint32_t sums;  // address of the first warp's, see store_sums()
  int warp_bytes;
};

// Merges the warps' results, four dimensions in each thread, and calls store(head, first dimension, weighted
// sums of values, maximum, denominator).
template <int dim, int warps, class Store>
__device__ __forceinline__ void merge_warps(int heads, int keys, const WarpResults& results,
                                            const Store& store) {
  constexpr int kLanes = dim / 4;  // of a head
  static_assert(kHeads * kLanes <= warps * kWarp);
  const int lane = threadIdx.x % kWarp;
  const int head = threadIdx.x / kLanes;
  if (threadIdx.x / kWarp * (kWarp / kLanes) >= heads) return;
  const int d = threadIdx.x % kLanes * 4;
  const int active = min(warps, (keys + kTileKeys - 1) / kTileKeys);
  float4 v[warps];  // undefined for warps without keys
  const uint32_t sums = results.sums + (min(head, heads - 1) * (dim + 8) + d) * sizeof(float);
#pragma unroll
  for (int w = 0; w < warps; ++w) v[w] = load_shared_floats(sums + w * results.warp_bytes);
  // Each lane of a group has the softmax of one warp.
  constexpr int kGroup = warps <= 8 ? 8 : 16;
  static_assert(warps <= kGroup && kGroup <= kLanes);
  const int w = lane % kGroup;
  const float2 own =
      w < active ? results.softmax[w * results.heads + min(head, heads - 1)] : float2{-INFINITY, 0};
  float maximum = own.x;
#pragma unroll
  for (int o = 1; o < kGroup; o *= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, o));
  const float factor = w < active ? __expf(own.x - maximum) : 0.0F;
  float denominator = __fmul_rn(factor, own.y);
#pragma unroll
  for (int o = 1; o < kGroup; o *= 2) denominator += __shfl_xor_sync(kFullMask, denominator, o);
  float4 sum = {};
#pragma unroll
  for (int from = 0; from < warps; ++from) {
    const float of = __shfl_sync(kFullMask, factor, lane / kGroup * kGroup + from);
    if (from >= active) continue;
    sum = {__fmaf_rn(of, v[from].x, sum.x), __fmaf_rn(of, v[from].y, sum.y), __fmaf_rn(of, v[from].z, sum.z),
           __fmaf_rn(of, v[from].w, sum.w)};
  }
  if (head < heads) store(head, d, sum, maximum, denominator);
}

// Four floats times `scale`, as fp16.
__device__ __forceinline__ uint2 to_half(const float4& v, float scale) {
  return {as_bits(__floats2half2_rn(v.x * scale, v.y * scale)),
          as_bits(__floats2half2_rn(v.z * scale, v.w * scale))};
}

// Four neighbouring results.
__device__ __forceinline__ void store_quad(const RowAttentionArgs& a, int row, int col, uint2 halves) {
  if (a.layout == ActivationLayout::kLaneBlocks) halves = to_lane_order(halves);
  *reinterpret_cast<uint2*>(a.out + activation_offset(a.layout, a.out_stride, row, col)) = halves;
}

// The shared memory of a block: its queries (kQueryBytes), then `warp_bytes` for each warp.
struct AttentionMemory {
  uint32_t queries, warps;
  int warp_bytes;
};

// Waits for the previous kernel, adds up all tiles of the split and merges the warps. The older keys of the
// first tiles are in flight already.
template <int dim, int bits, int depth, class Store>
__device__ __forceinline__ void attend_split(const SplitAttention<dim, bits, depth>& own,
                                             const AttentionMemory& memory, const Store& store) {
  const int warp = warp_number();
  Queries<dim, bits> queries(own.kv.q, own.kv.heads);
  wait_for_previous();
  queries.load();
  own.tiles.start_rest();
  queries.store(memory.queries);
  if (own.a.cache.key_bias.pairs > 0) stage_bias<dim>(own.a, own.kv, own.shared.q_bias);
  __syncthreads();
  const int count = (own.kv.keys + kTileKeys - 1) / kTileKeys;
  Running<dim> running;
#pragma unroll 1
  for (int tile = warp; tile < count; tile += kWarps<depth>)
    add_tile<dim, bits, depth>(own, memory.queries, tile, running);
  __syncwarp();
  store_sums<dim, bits>(own.kv.heads, running, own.shared.softmax[warp],
                        memory.warps + warp * memory.warp_bytes);
  __syncthreads();
  merge_warps<dim, kWarps<depth>>(
      own.kv.heads, own.kv.keys, {&own.shared.softmax[0][0], kHeads, memory.warps, memory.warp_bytes}, store);
}

}  // namespace qwen2::cuda
