// Attention of one part of a row's keys by a block of kThreads<depth>.
//
// A block takes query heads of one KV head, and each of its warps tiles of 16 keys in turn, with a running
// softmax. The tensor cores multiply: query heads are the rows of the left operand, eight with what fp16
// keeps of them and the same eight with what it leaves: 22 bits of queries and weights. Warps are merged at
// the end, in their order: a head's result depends on the keys alone. Where a sum of products could be fused
// in two ways, it says in which.
#pragma once

#include "kernels/cuda/attention/warp_tiles.cuh"

namespace qwen2::cuda {

constexpr int kHeads = 8;  // of one block at most

// What a block's warps share beside their tiles.
template <int warps, int heads = kHeads>
struct AttentionShared {
  float q_bias[kHeads][kMaxBiasPairs][2];  // zero where there is no head
  float2 softmax[warps][heads];            // maximum, denominator
};

// Bytes of a warp: its tiles of keys and values, one behind the other or in turn, and later its sums.
template <int dim, int bits, int depth>
constexpr int warp_bytes(int heads) {
  const int tiles = (depth > 0 ? 2 * depth : 1) * KvTile<dim, bits>::kBytes;
  const int sums = heads * (dim + 8) * static_cast<int>(sizeof(float));
  return ((tiles > sums ? tiles : sums) + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
}
// Bytes of the block's queries.
template <int dim>
constexpr int kQueryBytes = dim / 16 * kWarp * 16;

// Of weights times the scales of 8-bit values, which are at most 65504 / 127: as far from fp16's smallest
// numbers as its largest allow.
template <int bits>
constexpr float kWeightScale = bits == 8 ? 64 : 1;

// What fp16 keeps of two floats, and what it leaves.
__device__ __forceinline__ void split_half(float x, float y, uint32_t& high, uint32_t& low) {
  const __half2 kept = __floats2half2_rn(saturate_half(x), saturate_half(y));
  const float2 back = __half22float2(kept);
  high = as_bits(kept);
  low = as_bits(__floats2half2_rn(saturate_half(x - back.x), saturate_half(y - back.y)));
}

// The left operand of the scores: what a thread brings of it, asked for before other loads, and stores in
// shared memory [dim / 16][32]; the block has a warp for each of these.
template <int dim, int bits>
class Queries {
 public:
  // Before the wait.
  __device__ __forceinline__ Queries(const float* q, int heads) {
    const int step = threadIdx.x / kWarp;
    const int head = threadIdx.x % kWarp / 4;
    if (step < dim / 16 && head < heads)
      from_ = q + head * dim + KvTile<dim, bits>::query_dim(step, threadIdx.x % 4, 0);
    settle(from_);
  }
  // After it.
  __device__ __forceinline__ void bring() {
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

// What the key bias that is kept out of the cache adds to scores rotates with the key's position: its
// products with the queries, by pair.
template <int dim>
__device__ void stage_bias(const RowAttentionArgs& a, const Part& part,
                           float (&q_bias)[kHeads][kMaxBiasPairs][2]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + part.kv_head * kMaxBiasPairs;
  for (int i = threadIdx.x; i < kHeads * bias.pairs; i += blockDim.x) {
    const int head = i / bias.pairs;
    const int pair = i % bias.pairs;
    float2 product = {};
    if (head < part.heads) {
      const float b0 = bias.first[part.kv_head * kMaxBiasPairs + pair];
      const float b1 = bias.second[part.kv_head * kMaxBiasPairs + pair];
      const float q0 = __ldcg(part.q + head * dim + index[pair]);
      const float q1 = __ldcg(part.q + head * dim + index[pair] + dim / 2);
      product = {__fmaf_rn(q0, b0, __fmul_rn(q1, b1)), __fmaf_rn(q1, b0, -__fmul_rn(q0, b1))};
    }
    q_bias[head][pair][0] = product.x;
    q_bias[head][pair][1] = product.y;
  }
}

// This lane's share of it: for the block's head `head`, of keys 8 n + 2 t + i of a tile.
template <int dim>
__device__ __forceinline__ void add_bias(const RowAttentionArgs& a, const Part& part, int tile_key,
                                         const float (&q_bias)[kHeads][kMaxBiasPairs][2], int head,
                                         float (&scores)[2][2]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + part.kv_head * kMaxBiasPairs;
  const auto* rotations = reinterpret_cast<const float2*>(a.cache.rotations);
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int pair = 0; pair < bias.pairs; ++pair) {
    const float b0 = q_bias[head][pair][0];
    const float b1 = q_bias[head][pair][1];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = min(tile_key + j / 2 * 8 + lane % 4 * 2 + j % 2, part.keys - 1) + part.first_key;
      const float2 r = __ldg(rotations + int64_t(key) * (dim / 2) + index[pair]);
      scores[j / 2][j % 2] = __fmaf_rn(b0, r.x, __fmaf_rn(b1, r.y, scores[j / 2][j % 2]));
    }
  }
}

// A warp's softmax so far, of head lane / 4.
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
  float products[2][2][4] = {};  // of even and odd steps
  Tile::score(k, queries, products);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int key = j / 2 * 8 + lane % 4 * 2 + j % 2;
    scores[j / 2][j % 2] = ((products[0][j / 2][j % 2] + products[0][j / 2][2 + j % 2]) +
                            (products[1][j / 2][j % 2] + products[1][j / 2][2 + j % 2])) *
                           Tile::scale(k, key);
  }
}

// Takes the tile's first `keys` scores into the maximum; the others become minus infinity.
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
  // Most tiles of a long row leave the maximum alone.
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

// What fp16 keeps and leaves of the weights of keys 8 n + 2 t and the next, at 2 n and 2 n + 1. `v` has the
// scales of 8-bit values.
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

// Adds a tile, which counts from the part's first key.
template <int dim, int bits, int depth>
__device__ __forceinline__ void add_tile(const RowAttentionArgs& a, const Part& part,
                                         const AttentionShared<kWarps<depth>>& shared, uint32_t queries,
                                         int tile, Tiles<dim, bits, depth>& tiles, Running<dim>& running) {
  const int keys = tiles.count(tile);
  float scores[2][2];
  score_tile<dim, bits>(tiles.arrived(tile, 0), queries, scores);
  tiles.read(tile, 0);
  if (a.cache.key_bias.pairs > 0)
    add_bias<dim>(a, part, tile * kTileKeys, shared.q_bias, threadIdx.x % kWarp / 4, scores);
  raise_maximum(keys, scores, running);
  const uint32_t v = tiles.arrived(tile, 1);
  uint32_t weights[4];
  make_weights<dim, bits>(v, keys, scores, running, weights);
  KvTile<dim, bits>::add(v, weights, running.sums);
  tiles.read(tile, 1);
}

// The warp's sums and softmax to shared memory, of the first `heads`.
template <int dim, int bits>
__device__ __forceinline__ void leave_sums(int heads, const Running<dim>& running, float2* softmax,
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

// Merges the warps, four dimensions a thread: leave(head of the block, the first of them, weighted sums of
// values, maximum, denominator). `softmax` [warps][of_block], sums as leave_sums() left them.
template <int dim, int warps, class Leave>
__device__ __forceinline__ void merge_warps(int heads, int keys, const float2* softmax, int of_block,
                                            uint32_t memory, int of_warp, const Leave& leave) {
  constexpr int kLanes = dim / 4;  // of a head
  static_assert(kHeads * kLanes <= warps * kWarp);
  const int lane = threadIdx.x % kWarp;
  const int head = threadIdx.x / kLanes;
  if (threadIdx.x / kWarp * (kWarp / kLanes) >= heads) return;
  const int d = threadIdx.x % kLanes * 4;
  const int active = min(warps, (keys + kTileKeys - 1) / kTileKeys);
  float4 v[warps];  // of warps without keys anything
  const uint32_t sums = memory + (min(head, heads - 1) * (dim + 8) + d) * sizeof(float);
#pragma unroll
  for (int w = 0; w < warps; ++w) v[w] = load_shared_floats(sums + w * of_warp);
  // A lane of a group for each warp of the block.
  constexpr int kGroup = warps <= 8 ? 8 : 16;
  static_assert(warps <= kGroup && kGroup <= kLanes);
  const int w = lane % kGroup;
  const float2 own = w < active ? softmax[w * of_block + min(head, heads - 1)] : float2{-INFINITY, 0};
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
  if (head < heads) leave(head, d, sum, maximum, denominator);
}

// Four floats times `scale`, as fp16.
__device__ __forceinline__ uint2 to_half(const float4& v, float scale) {
  return {as_bits(__floats2half2_rn(v.x * scale, v.y * scale)),
          as_bits(__floats2half2_rn(v.z * scale, v.w * scale))};
}

// Four neighbouring results.
__device__ __forceinline__ void store_quad(const RowAttentionArgs& a, int row, int col, uint2 halves) {
  if (a.order == XOrder::kLaneBlocks) halves = in_lane_order(halves);
  *reinterpret_cast<uint2*>(a.out + x_place(a.order, a.out_stride, row, col)) = halves;
}

// The whole of it, for `tiles` in `memory` (of_warp bytes for each warp) whose old keys are on their way;
// `queries` has kQueryBytes. Waits for the previous kernel.
template <int dim, int bits, int depth, class Leave>
__device__ __forceinline__ void attend_part(const RowAttentionArgs& a, const Part& part,
                                            Tiles<dim, bits, depth>& tiles, uint32_t queries, uint32_t memory,
                                            int of_warp, AttentionShared<kWarps<depth>>& shared,
                                            const Leave& leave) {
  const int warp = warp_number();
  Queries<dim, bits> brought(part.q, part.heads);
  wait_for_previous();
  brought.bring();
  tiles.go_on();
  brought.store(queries);
  if (a.cache.key_bias.pairs > 0) stage_bias<dim>(a, part, shared.q_bias);
  __syncthreads();
  const int count = (part.keys + kTileKeys - 1) / kTileKeys;
  Running<dim> running;
#pragma unroll 1
  for (int tile = warp; tile < count; tile += kWarps<depth>)
    add_tile<dim, bits, depth>(a, part, shared, queries, tile, tiles, running);
  __syncwarp();
  leave_sums<dim, bits>(part.heads, running, shared.softmax[warp], memory + warp * of_warp);
  __syncthreads();
  merge_warps<dim, kWarps<depth>>(part.heads, part.keys, &shared.softmax[0][0], kHeads, memory, of_warp,
                                  leave);
}

}  // namespace qwen2::cuda
