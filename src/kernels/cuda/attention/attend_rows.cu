// Attention of single rows over the paged cache.
//
// A block takes one part of one row's keys for query heads of one KV head (row_attention.cuh). Where a row
// has several parts, they are merged in an order of their own: by all of their blocks, where these are on the
// card at once, or by the one that arrives last. So a row's result depends on its length and the card alone.
#include <algorithm>

#include "kernels/cuda/attention/row_attention.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace qwen2::cuda {
namespace {

// Rows up to which a short row's heads are a block each: more would not be on the card at once.
constexpr int kFewRows = 4;

struct MergeShared {
  float denominator[kHeads];
  float factors[kHeads][kMaxSplits];
  bool last;
};
template <int warps>
struct Shared {
  AttentionShared<warps> attention;
  MergeShared merge;
};

// a / b of small numbers, by a faster way than whole ones have; `inverse` is 1 / b.
__device__ __forceinline__ int divide_small(int a, float inverse) {
  return __float2int_rz((static_cast<float>(a) + 0.5F) * inverse);
}

// By one thread, when the block has stored its part: true where it is the last of `splits`. The counter is
// zero again afterwards.
__device__ __forceinline__ bool is_last(uint32_t* arrived, int splits) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrived) : "memory");
  if (before != static_cast<uint32_t>(splits - 1)) return false;
  *arrived = 0;
  return true;
}
// The same where all blocks merge: returns when all parts are stored. All of them are on the card at once.
__device__ __forceinline__ void wait_for_all(uint32_t* arrived, int splits) {
  asm volatile("red.add.release.gpu.u32 [%0], 1;" ::"l"(arrived) : "memory");
  uint32_t stored;
  do {
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(stored) : "l"(arrived) : "memory");
  } while (stored < static_cast<uint32_t>(splits));
  if (atomicAdd(arrived, 1U) == static_cast<uint32_t>(2 * splits - 1)) *arrived = 0;
}

// What each part of each of the block's heads counts for.
__device__ __forceinline__ void weigh_parts(const RowAttentionArgs& a, int64_t first, int heads, int splits,
                                            MergeShared& shared) {
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
template <int threads>
__device__ void merge(const RowAttentionArgs& a, int row, int first_head, int heads, int dim, int splits,
                      int begin, int end, MergeShared& shared, float4* memory) {
  const int64_t first = (int64_t(row) * a.heads.q_heads + first_head) * kMaxSplits;
  const int quads = end - begin;
  const float inverse_quads = __fdividef(1, static_cast<float>(quads));
#pragma unroll 1
  for (int base = 0; base < quads * kSharers; base += threads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const int share = divide_small(i, inverse_quads);
    const int quad = begin + i - share * quads;
    const int head = quad * 4 / dim;
    const auto* sums =
        reinterpret_cast<const float4*>(a.part_sums + (first + head * kMaxSplits) * dim) + quad % (dim / 4);
    constexpr int kEach = kMaxSplits / kSharers;
    float4 v[kEach];
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      if (i < quads * kSharers)
        v[s] = __ldcg(sums + int64_t(min(share + s * kSharers, splits - 1)) * (dim / 4));
    }
    if (base == 0) {  // while these are on their way
      weigh_parts(a, first, heads, splits, shared);
      __syncthreads();
    }
    if (i >= quads * kSharers) continue;
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
  for (int i = threadIdx.x; i < quads; i += threads) {
    float4 sum = memory[i];
#pragma unroll
    for (int share = 1; share < kSharers; ++share) {
      const float4 v = memory[i + share * quads];
      sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
    }
    const int head = (begin + i) * 4 / dim;
    const int d = (begin + i) * 4 % dim;
    store_quad(a, row, (first_head + head) * dim + d, to_half(sum, __fdividef(1, shared.denominator[head])));
  }
}

// How a row's work is shared out.
struct RowShape {
  int heads_a_block, blocks_a_group;
  float inverse_blocks;  // 1 / blocks_a_group
  int group;             // query heads of a KV head
  bool all_merge;
};

template <int dim, int bits, int depth>
__global__ void __launch_bounds__(kThreads<depth>)
    attend_rows_kernel(const __grid_constant__ RowAttentionArgs a, const RowShape shape) {
  extern __shared__ __align__(kTileAlignment) uint4 shared_memory[];
  __shared__ Shared<kWarps<depth>> shared;
  // The inputs of the step, and all keys and values but this step's, were there before its first product.
  const int row = blockIdx.z;
  const Row info = a.row_info[row];
  const int length = info.position + 1;
  const int per_split = split_keys(length);
  const int split = blockIdx.x;
  Part part;
  part.first_key = split * per_split;
  if (part.first_key >= length) return;
  part.kv_head = divide_small(blockIdx.y, shape.inverse_blocks);
  const int in_group =
      (static_cast<int>(blockIdx.y) - part.kv_head * shape.blocks_a_group) * shape.heads_a_block;
  part.first_head = part.kv_head * shape.group + in_group;
  part.heads = min(shape.group - in_group, shape.heads_a_block);
  part.keys = min(per_split, length - part.first_key);
  part.q = a.q + (int64_t(row) * a.heads.q_heads + part.first_head) * dim;
  part.pages = a.cache.pages + info.page_offset + part.first_key / kPageTokens;

  const int warp = warp_number();
  const int of_warp = warp_bytes<dim, bits, depth>(shape.heads_a_block);
  uint32_t queries = shared_address(shared_memory);
  settle(queries);
  const uint32_t memory = queries + kQueryBytes<dim>;
  Tiles<dim, bits, depth> tiles(a, part, memory + warp * of_warp);
  if (a.next_starts_first) let_next_start();
  tiles.begin(info.older);
  if (!a.next_starts_first) let_next_start();  // its weights come meanwhile; it waits for this kernel's end
  int splits = divide_small(length - 1, __fdividef(1, static_cast<float>(per_split))) + 1;
  settle(splits);
  const auto leave = [&](int head, int d, const float4& sum, float maximum, float denominator) {
    const int q_head = part.first_head + head;
    if (splits == 1) {
      store_quad(a, row, q_head * dim + d, to_half(sum, __fdividef(1, denominator)));
    } else {
      const int64_t at = (int64_t(row) * a.heads.q_heads + q_head) * kMaxSplits + split;
      *reinterpret_cast<float4*>(a.part_sums + at * dim + d) = sum;
      if (d == 0) *reinterpret_cast<float2*>(a.part_scalars + at * 2) = {maximum, denominator};
    }
  };
  attend_part<dim, bits, depth>(a, part, tiles, queries, memory, of_warp, shared.attention, leave);
  if (splits == 1) return;
  __syncthreads();
  uint32_t* arrived = a.arrived + int64_t(row) * a.heads.q_heads + part.first_head;
  int begin = 0;
  int end = part.heads * dim / 4;
  if (shape.all_merge) {
    const int each = (end + splits - 1) / splits;
    begin = split * each;
    end = min(begin + each, end);
    if (threadIdx.x == 0) wait_for_all(arrived, splits);
  } else if (threadIdx.x == 0) {
    shared.merge.last = is_last(arrived, splits);
  }
  __syncthreads();
  if (begin < end && (shape.all_merge || shared.merge.last)) {
    merge<kThreads<depth>>(a, row, part.first_head, part.heads, dim, splits, begin, end, shared.merge,
                           reinterpret_cast<float4*>(shared_memory));
  }
}

// Blocks that share the heads of one KV head.
int blocks_of_group(const HeadShape& heads, int heads_a_block) {
  return (heads.group() + heads_a_block - 1) / heads_a_block;
}

template <int dim, int bits, int depth>
void launch_rows(const RowAttentionArgs& a, int heads_a_block, bool all_merge, cudaStream_t stream) {
  const int blocks = blocks_of_group(a.heads, heads_a_block);
  const RowShape shape{heads_a_block, blocks, 1.0F / static_cast<float>(blocks), a.heads.group(), all_merge};
  const int of_warp = warp_bytes<dim, bits, depth>(heads_a_block);
  // What merging takes of a warp's heads is less than their sums.
  static_assert(kSharers * sizeof(float4) * (dim / 4) <= kWarps<depth> * sizeof(float) * (dim + 8));
  const size_t shared = kQueryBytes<dim> + static_cast<size_t>(kWarps<depth>) * of_warp;
  launch<attend_rows_kernel<dim, bits, depth>>(dim3(a.max_splits, a.heads.kv_heads * blocks, a.rows),
                                               kThreads<depth>, shared, stream, a, shape);
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
  static const bool roomy =
      most_shared_memory() >= 3 * kWarps<deep> * warp_bytes<dim, bits, deep>(kHeads) / 2;
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
