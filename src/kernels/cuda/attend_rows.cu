// Attention of single rows over the paged cache.
//
// A block takes one part of one row's keys for query heads of one KV head, and each of its warps tiles of 16
// keys in turn, with a running softmax. The tensor cores multiply: query heads are the rows of the left
// operand, eight with what fp16 keeps of them and the same eight with what it leaves: 22 bits of queries and
// weights. Warps are merged at the end, in their order. Where a row has several parts, they are merged in an
// order of their own: by all of their blocks, where these are on the card at once, or by the one that arrives
// last. So a row's result depends on its length and the card alone; where a sum of products could be fused in
// two ways, it says in which.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/warp_tiles.cuh"

namespace qwen2::cuda {
namespace {

constexpr int kHeads = 8;  // of one block at most
// Rows up to which a short row's heads are a block each: more would not be on the card at once.
constexpr int kFewRows = 4;

struct Shared {
  float q_bias[kHeads][kMaxBiasPairs][2];
  float2 softmax[kWarps][kHeads];  // maximum, denominator
  float denominator[kHeads];
  float factors[kHeads][kMaxSplits];
  bool last;
};

// Bytes of a warp: its tiles of keys and values, one behind the other or in turn, and later its sums.
template <int dim, int bits, int depth>
constexpr int warp_bytes(int heads) {
  const int tiles = (depth > 0 ? 2 * depth : 1) * KvTile<dim, bits>::kBytes;
  const int sums = heads * (dim + 8) * static_cast<int>(sizeof(float));
  return ((tiles > sums ? tiles : sums) + 127) / 128 * 128;
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
// shared memory [dim / 16][32].
template <int dim, int bits>
class Queries {
 public:
  __device__ __forceinline__ explicit Queries(const Part& part) {
    const int step = threadIdx.x / kWarp;
    const int head = threadIdx.x % kWarp / 4;
    if (step >= dim / 16 || head >= part.heads) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      pairs_[half] = __ldcg(reinterpret_cast<const float2*>(
          part.q + head * dim + KvTile<dim, bits>::query_dim(step, threadIdx.x % 4, half)));
  }
  __device__ __forceinline__ void store(uint4* queries) const {
    static_assert(kWarps >= dim / 16);
    if (threadIdx.x >= dim / 16 * kWarp) return;
    uint4 out;
    split_half(pairs_[0].x, pairs_[0].y, out.x, out.y);
    split_half(pairs_[1].x, pairs_[1].y, out.z, out.w);
    queries[threadIdx.x] = out;
  }

 private:
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

// This lane's share of it: for one head, of keys 8 n + 2 t + i of a tile.
template <int dim>
__device__ __forceinline__ void add_bias(const RowAttentionArgs& a, const Part& part, int tile_key,
                                         const float (&q_bias)[kHeads][kMaxBiasPairs][2],
                                         float (&scores)[2][2]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + part.kv_head * kMaxBiasPairs;
  const auto* rotations = reinterpret_cast<const float2*>(a.cache.rotations);
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int pair = 0; pair < bias.pairs; ++pair) {
    const float b0 = q_bias[lane / 4][pair][0];
    const float b1 = q_bias[lane / 4][pair][1];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = min(tile_key + j / 2 * 8 + lane % 4 * 2 + j % 2, part.keys - 1) + part.first_key;
      const float2 r = __ldg(rotations + int64_t(key) * (dim / 2) + index[pair]);
      scores[j / 2][j % 2] = __fmaf_rn(b0, r.x, __fmaf_rn(b1, r.y, scores[j / 2][j % 2]));
    }
  }
}

// A warp's softmax so far, of head lane / 4.
template <int dim>
struct Running {
  float maximum = -INFINITY;
  float denominator = 0;  // of this lane's keys
  float sums[dim / 8][4] = {};
};

// Adds a tile; `first_tile_key` counts from the part's first key.
template <int dim, int bits, int depth>
__device__ __forceinline__ void add_tile(const RowAttentionArgs& a, const Part& part, const Shared& shared,
                                         const uint4* queries, int tile, Tiles<dim, bits, depth>& tiles,
                                         Running<dim>& running) {
  using Tile = KvTile<dim, bits>;
  const int lane = threadIdx.x % kWarp;
  const int keys = tiles.count(tile);
  float products[2][2][4] = {};  // of even and odd steps
  float scores[2][2];
  const std::byte* k = tiles.arrived(tile, 0);
  Tile::score(k, queries, products);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int key = j / 2 * 8 + lane % 4 * 2 + j % 2;
    scores[j / 2][j % 2] = ((products[0][j / 2][j % 2] + products[0][j / 2][2 + j % 2]) +
                            (products[1][j / 2][j % 2] + products[1][j / 2][2 + j % 2])) *
                           Tile::scale(k, key);
  }
  tiles.read(tile, 0);
  if (a.cache.key_bias.pairs > 0) add_bias<dim>(a, part, tile * kTileKeys, shared.q_bias, scores);
  float maximum = running.maximum;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int key = j / 2 * 8 + lane % 4 * 2 + j % 2;
    if (key >= keys) scores[j / 2][j % 2] = -INFINITY;
    maximum = fmaxf(maximum, scores[j / 2][j % 2]);
  }
  maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 1));
  maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, 2));
  if (running.maximum != -INFINITY) {
    const float shrink = __expf(running.maximum - maximum);
    running.denominator = __fmul_rn(running.denominator, shrink);
#pragma unroll
    for (auto& sum : running.sums) {
#pragma unroll
      for (float& value : sum) value *= shrink;
    }
  }
  running.maximum = maximum;
  const std::byte* v = tiles.arrived(tile, 1);
  uint32_t weights[4];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      weight[i] = __expf(scores[n][i] - maximum);
      running.denominator += weight[i];
      const int key = n * 8 + lane % 4 * 2 + i;
      if (bits == 8)
        weight[i] = key < keys ? __fmul_rn(weight[i], kWeightScale<bits> * Tile::scale(v, key)) : 0.0F;
    }
    split_half(weight[0], weight[1], weights[2 * n], weights[2 * n + 1]);
  }
  Tile::add(v, weights, running.sums);
  tiles.read(tile, 1);
}

// The warp's sums and softmax to shared memory.
template <int dim, int bits>
__device__ __forceinline__ void leave_sums(const Part& part, const Running<dim>& running, float2* softmax,
                                           float* sums) {
  const int lane = threadIdx.x % kWarp;
  const int head = lane / 4;
  float denominator = running.denominator;
  denominator += __shfl_xor_sync(kFullMask, denominator, 1);
  denominator += __shfl_xor_sync(kFullMask, denominator, 2);
  if (head >= part.heads) return;
  if (lane % 4 == 0) softmax[head] = {running.maximum, denominator};
  float* out = sums + head * (dim + 8);
#pragma unroll
  for (int n = 0; n < dim / 8; ++n) {
    constexpr float back = 1 / kWeightScale<bits>;
    const float2 sum = {(running.sums[n][0] + running.sums[n][2]) * back,
                        (running.sums[n][1] + running.sums[n][3]) * back};
    if constexpr (bits == 16) {
      *reinterpret_cast<float2*>(out + n * 8 + lane % 4 * 2) = sum;
    } else {
      out[KvTile<dim, bits>::value_dim(n, lane % 4 * 2)] = sum.x;
      out[KvTile<dim, bits>::value_dim(n, lane % 4 * 2 + 1)] = sum.y;
    }
  }
}

// Adds one to a counter: what blocks wrote before they added is seen by those that add later.
__device__ __forceinline__ uint32_t add_in_order(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
__device__ __forceinline__ uint32_t read_in_order(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// By one thread, when the block has stored its part: true where it is the last of `splits`. The counter is
// zero again afterwards.
__device__ __forceinline__ bool is_last(uint32_t* arrived, int splits) {
  if (add_in_order(arrived) != static_cast<uint32_t>(splits - 1)) return false;
  *arrived = 0;
  return true;
}
// The same where all blocks merge: returns when all parts are stored. All of them are on the card at once.
__device__ __forceinline__ void wait_for_all(uint32_t* arrived, int splits) {
  add_in_order(arrived);
  while (read_in_order(arrived) < static_cast<uint32_t>(splits)) {
  }
  if (add_in_order(arrived) == static_cast<uint32_t>(2 * splits - 1)) *arrived = 0;
}

// What each part of each of the block's heads counts for.
__device__ __forceinline__ void weigh_parts(const RowAttentionArgs& a, int64_t first, int heads, int splits,
                                            Shared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (warp >= heads) return;
  constexpr int kEach = kMaxSplits / kWarp;
  float2 part[kEach];  // maximum, denominator
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = lane + i * kWarp;
    part[i] = {-INFINITY, 0};
    if (s < splits)
      part[i] = __ldcg(reinterpret_cast<const float2*>(a.part_scalars) + first + warp * kMaxSplits + s);
    max = fmaxf(max, part[i].x);
  }
  max = warp_max(max);
  float denominator = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float factor = __expf(part[i].x - max);
    shared.factors[warp][lane + i * kWarp] = factor;
    denominator += factor * part[i].y;
  }
  denominator = warp_sum(denominator);
  if (lane == 0) shared.denominator[warp] = denominator;
}

// Threads that share four elements of the result: each adds up every kSharers-th part, all of them on their
// way at once.
constexpr int kSharers = 4;

// Merges the parts of the block's heads, of quads [begin, end) of their elements. `memory` holds kSharers
// float4 for each of them.
__device__ void merge(const RowAttentionArgs& a, int row, int first_head, int heads, int dim, int splits,
                      int begin, int end, Shared& shared, float4* memory) {
  const int64_t first = (int64_t(row) * a.heads.q_heads + first_head) * kMaxSplits;
  weigh_parts(a, first, heads, splits, shared);
  __syncthreads();
  const int quads = end - begin;
#pragma unroll 1
  for (int i = threadIdx.x; i < quads * kSharers; i += kThreads) {
    const int quad = begin + i % quads;
    const int share = i / quads;
    const int head = quad * 4 / dim;
    const auto* sums =
        reinterpret_cast<const float4*>(a.part_sums + (first + head * kMaxSplits) * dim) + quad % (dim / 4);
    constexpr int kEach = kMaxSplits / kSharers;
    float4 v[kEach];
#pragma unroll
    for (int s = 0; s < kEach; ++s)
      v[s] = __ldcg(sums + int64_t(min(share + s * kSharers, splits - 1)) * (dim / 4));
    float4 sum = {};
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      const int split = share + s * kSharers;
      const float factor = split < splits ? shared.factors[head][split] : 0.0F;
      sum = {sum.x + factor * v[s].x, sum.y + factor * v[s].y, sum.z + factor * v[s].z,
             sum.w + factor * v[s].w};
    }
    memory[i] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < quads; i += kThreads) {
    float4 sum = memory[i];
#pragma unroll
    for (int share = 1; share < kSharers; ++share) {
      const float4 v = memory[i + share * quads];
      sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
    }
    const int head = (begin + i) * 4 / dim;
    const float scale = 1.0F / shared.denominator[head];
    const int d = (begin + i) * 4 % dim;
    auto* out = reinterpret_cast<__half*>(a.out);
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      out[x_place(a.order, a.out_stride, row, (first_head + head) * dim + d + j)] =
          __float2half_rn(values[j] * scale);
  }
}

// Merges the warps; stores the part, or the row where it has no other.
template <int dim>
__device__ __forceinline__ void store_part(const RowAttentionArgs& a, const Part& part, int row, int split,
                                           int splits, int active, const float2 (&softmax)[kWarps][kHeads],
                                           const std::byte* memory, int of_warp) {
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x; i < part.heads * dim; i += kThreads) {
    const int head = i / dim;  // of the whole warp
    // A lane of eight for each warp of the block.
    static_assert(kWarps == 8);
    const int w = lane % kWarps;
    const float2 own = w < active ? softmax[w][head] : float2{-INFINITY, 0};
    float maximum = own.x;
#pragma unroll
    for (int o = 1; o < kWarps; o *= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, o));
    const float factor = w < active ? __expf(own.x - maximum) : 0.0F;
    float denominator = __fmul_rn(factor, own.y);
#pragma unroll
    for (int o = 1; o < kWarps; o *= 2) denominator += __shfl_xor_sync(kFullMask, denominator, o);
    float sum = 0;
#pragma unroll
    for (int from = 0; from < kWarps; ++from) {
      const float of = __shfl_sync(kFullMask, factor, from);
      if (from < active)
        sum += of * reinterpret_cast<const float*>(memory + from * of_warp)[head * (dim + 8) + i % dim];
    }
    const int q_head = part.first_head + head;
    if (splits == 1) {
      reinterpret_cast<__half*>(a.out)[x_place(a.order, a.out_stride, row, q_head * dim + i % dim)] =
          __float2half_rn(sum / denominator);
    } else {
      const int64_t at = (int64_t(row) * a.heads.q_heads + q_head) * kMaxSplits + split;
      a.part_sums[at * dim + i % dim] = sum;
      if (i % dim == 0) *reinterpret_cast<float2*>(a.part_scalars + at * 2) = {maximum, denominator};
    }
  }
}

template <int dim, int bits, int depth>
__global__ void __launch_bounds__(kThreads)
    attend_rows_kernel(const __grid_constant__ RowAttentionArgs a, const int heads_a_block,
                       const bool all_merge) {
  extern __shared__ uint4 shared_memory[];
  __shared__ Shared shared;
  // The inputs of the step, and all keys and values but this step's, are older than the previous kernel.
  const int row = blockIdx.z;
  const Row info = a.row_info[row];
  const int length = info.position + 1;
  const int per_split = split_keys(length);
  const int splits = (length + per_split - 1) / per_split;
  const int split = blockIdx.x;
  if (split >= splits) return;
  const int group = a.heads.group();
  const int blocks_a_head = (group + heads_a_block - 1) / heads_a_block;
  const int in_group = blockIdx.y % blocks_a_head * heads_a_block;
  Part part;
  part.kv_head = blockIdx.y / blocks_a_head;
  part.first_head = part.kv_head * group + in_group;
  part.heads = min(group - in_group, heads_a_block);
  part.first_key = split * per_split;
  part.keys = min(per_split, length - part.first_key);
  part.q = a.q + (int64_t(row) * a.heads.q_heads + part.first_head) * dim;
  part.pages = a.cache.pages + info.page_offset;

  const int warp = threadIdx.x / kWarp;
  const int of_warp = warp_bytes<dim, bits, depth>(heads_a_block);
  auto* queries = shared_memory;
  std::byte* memory = reinterpret_cast<std::byte*>(shared_memory) + kQueryBytes<dim>;
  Tiles<dim, bits, depth> tiles(a, part, memory + warp * of_warp);
  tiles.begin(info.older);
  let_next_start();  // its weights come meanwhile; it waits for this kernel's end
  wait_for_previous();
  const Queries<dim, bits> brought(part);
  tiles.go_on();
  brought.store(queries);
  if (a.cache.key_bias.pairs > 0) stage_bias<dim>(a, part, shared.q_bias);
  __syncthreads();

  const int count = (part.keys + kTileKeys - 1) / kTileKeys;
  Running<dim> running;
#pragma unroll 1
  for (int tile = warp; tile < count; tile += kWarps)
    add_tile<dim, bits, depth>(a, part, shared, queries, tile, tiles, running);
  __syncwarp();
  leave_sums<dim, bits>(part, running, shared.softmax[warp],
                        reinterpret_cast<float*>(memory + warp * of_warp));
  __syncthreads();
  store_part<dim>(a, part, row, split, splits, min(kWarps, count), shared.softmax, memory, of_warp);
  if (splits == 1) return;
  __syncthreads();
  uint32_t* arrived = a.arrived + int64_t(row) * a.heads.q_heads + part.first_head;
  int begin = 0;
  int end = part.heads * dim / 4;
  if (all_merge) {
    const int each = (end + splits - 1) / splits;
    begin = split * each;
    end = min(begin + each, end);
    if (threadIdx.x == 0) wait_for_all(arrived, splits);
  } else if (threadIdx.x == 0) {
    shared.last = is_last(arrived, splits);
  }
  __syncthreads();
  if (begin < end && (all_merge || shared.last)) {
    merge(a, row, part.first_head, part.heads, dim, splits, begin, end, shared,
          reinterpret_cast<float4*>(shared_memory));
  }
}

// Blocks that share the heads of one KV head.
int blocks_of_group(const HeadShape& heads, int heads_a_block) {
  return (heads.group() + heads_a_block - 1) / heads_a_block;
}

template <int dim, int bits, int depth>
void launch_rows(const RowAttentionArgs& a, int heads_a_block, bool all_merge, cudaStream_t stream) {
  const int of_warp = warp_bytes<dim, bits, depth>(heads_a_block);
  // What merging takes of a warp's heads is less than their sums.
  static_assert(kSharers * sizeof(float4) * (dim / 4) <= kWarps * sizeof(float) * (dim + 8));
  const size_t shared = kQueryBytes<dim> + static_cast<size_t>(kWarps) * of_warp;
  launch<attend_rows_kernel<dim, bits, depth>>(
      dim3(a.max_splits, a.heads.kv_heads * blocks_of_group(a.heads, heads_a_block), a.rows), kThreads,
      shared, stream, a, heads_a_block, all_merge);
}

template <int dim, int bits>
void attend_of(const RowAttentionArgs& a, cudaStream_t stream) {
  // Few short rows are bound by the length of one block's work, not by what is read twice.
  const int heads_a_block = a.rows <= kFewRows && a.max_splits == 1 ? 1 : std::min(a.heads.group(), kHeads);
  // Few blocks of long rows are on the card at once: they merge together, and look two tiles ahead where the
  // kernels before and after still have room beside them.
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  const int blocks = a.max_splits * a.heads.kv_heads * blocks_of_group(a.heads, heads_a_block) * a.rows;
  const bool few = a.max_splits > 1 && blocks <= multiprocessors;
  constexpr int deep = 2;
  static const bool async = compiled_for(attend_rows_kernel<dim, bits, deep>) >= 80;
  if (!async) return launch_rows<dim, bits, 0>(a, heads_a_block, few, stream);
  static const bool roomy = most_shared_memory() >= 3 * kWarps * warp_bytes<dim, bits, deep>(kHeads) / 2;
  if (few && roomy) return launch_rows<dim, bits, deep>(a, heads_a_block, few, stream);
  launch_rows<dim, bits, 1>(a, heads_a_block, few, stream);
}

}  // namespace

void attend_rows(const RowAttentionArgs& args, cudaStream_t stream) {
  const bool wide = args.heads.head_dim == 128;
  if (args.cache.kv_bits == 16)
    return wide ? attend_of<128, 16>(args, stream) : attend_of<64, 16>(args, stream);
  return wide ? attend_of<128, 8>(args, stream) : attend_of<64, 8>(args, stream);
}

}  // namespace qwen2::cuda
