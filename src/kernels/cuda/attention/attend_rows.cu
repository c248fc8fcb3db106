// Attention of single rows over the paged cache.
//
// A block takes one split of one row's keys and query heads of one KV head (row_attention.cuh). Where a row
// has several splits, they are merged by all of its blocks if these are resident together, otherwise by the
// block that arrives last (merge_splits.cuh). A row's result depends on its length and the GPU alone.
#include <algorithm>

#include "kernels/cuda/attention/merge_splits.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace qwen2::cuda {
namespace {

// Up to this many rows, each head of a short row is a block. With more rows the blocks would not be resident
// together.
constexpr int kFewRows = 4;

template <int warps>
struct Shared {
  AttentionShared<warps> attention;
  MergeShared merge;
};

// How a row's heads and splits are distributed to blocks.
struct RowShape {
  int heads_per_block, blocks_per_group;
  float inverse_blocks;  // 1 / blocks_per_group
  int group;             // query heads of a KV head
  bool all_merge;
};

template <int dim>
__device__ __forceinline__ KvSplit find_split(const RowAttentionArgs& a, const RowShape& shape,
                                              const Row& info, int per_split) {
  KvSplit kv;
  kv.first_key = static_cast<int>(blockIdx.x) * per_split;
  kv.kv_head = divide_small(blockIdx.y, shape.inverse_blocks);
  const int in_group =
      (static_cast<int>(blockIdx.y) - kv.kv_head * shape.blocks_per_group) * shape.heads_per_block;
  kv.first_head = kv.kv_head * shape.group + in_group;
  kv.heads = min(shape.group - in_group, shape.heads_per_block);
  kv.keys = min(per_split, info.position + 1 - kv.first_key);
  kv.q = a.q + (int64_t(blockIdx.z) * a.heads.q_heads + kv.first_head) * dim;
  kv.pages = a.cache.pages + info.page_offset + kv.first_key / kPageTokens;
  return kv;
}

template <int dim, int bits, int depth>
__global__ void __launch_bounds__(kThreads<depth>)
    attend_rows_kernel(const __grid_constant__ RowAttentionArgs a, const RowShape shape) {
  extern __shared__ __align__(kTileAlignment) uint4 shared_memory[];
  __shared__ Shared<kWarps<depth>> shared;
  // The step's inputs, and all keys and values but this step's, were written before the step's first product.
  const int row = blockIdx.z;
  const Row info = a.row_info[row];
  const int length = info.position + 1;
  const int per_split = split_keys(length);
  const int split = blockIdx.x;
  if (split * per_split >= length) return;
  const KvSplit kv = find_split<dim>(a, shape, info, per_split);

  const int warp = warp_number();
  uint32_t queries = shared_address(shared_memory);
  compiler_barrier(queries);
  const AttentionMemory memory{queries, queries + kQueryBytes<dim>,
                               warp_bytes<dim, bits, depth>(shape.heads_per_block)};
  Tiles<dim, bits, depth> tiles(a, kv, memory.warps + warp * memory.warp_bytes);
  if (a.trigger_first) trigger_dependents();
  tiles.start_older(info.older);
  // The next kernel loads its weights meanwhile; it waits for this kernel's end.
  if (!a.trigger_first) trigger_dependents();
  int splits = divide_small(length - 1, __fdividef(1, static_cast<float>(per_split))) + 1;
  compiler_barrier(splits);
  const auto store = [&](int head, int d, const float4& sum, float maximum, float denominator) {
    const int q_head = kv.first_head + head;
    if (splits == 1) {
      store_quad(a, row, q_head * dim + d, to_half(sum, __fdividef(1, denominator)));
    } else {
      const int64_t at = (int64_t(row) * a.heads.q_heads + q_head) * kMaxSplits + split;
      *reinterpret_cast<float4*>(a.split_sums + at * dim + d) = sum;
      if (d == 0) *reinterpret_cast<float2*>(a.split_scalars + at * 2) = {maximum, denominator};
    }
  };
  attend_split<dim, bits, depth>({a, kv, tiles, shared.attention}, memory, store);
  if (splits == 1) return;
  __syncthreads();
  uint32_t* arrived = a.arrived + int64_t(row) * a.heads.q_heads + kv.first_head;
  int begin = 0;
  int end = kv.heads * dim / 4;
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
    merge<dim, kThreads<depth>>(a, {row, kv.first_head, kv.heads, splits, begin, end}, shared.merge,
                                reinterpret_cast<float4*>(shared_memory));
  }
}

// Blocks for the heads of one KV head.
int blocks_of_group(const HeadShape& heads, int heads_per_block) {
  return (heads.group() + heads_per_block - 1) / heads_per_block;
}

template <int dim, int bits, int depth>
void launch_rows(const RowAttentionArgs& a, int heads_per_block, bool all_merge, cudaStream_t stream) {
  const int blocks = blocks_of_group(a.heads, heads_per_block);
  const RowShape shape{heads_per_block, blocks, 1.0F / static_cast<float>(blocks), a.heads.group(),
                       all_merge};
  const int of_warp = warp_bytes<dim, bits, depth>(heads_per_block);
  // Merging needs no more memory for a head than the warps' sums.
  static_assert(kThreadsPerQuad * sizeof(float4) * (dim / 4) <= kWarps<depth> * sizeof(float) * (dim + 8));
  const size_t shared = kQueryBytes<dim> + static_cast<size_t>(kWarps<depth>) * of_warp;
  launch<attend_rows_kernel<dim, bits, depth>>(dim3(a.max_splits, a.heads.kv_heads * blocks, a.rows),
                                               kThreads<depth>, shared, stream, a, shape);
}

template <int dim, int bits>
void attend_of(const RowAttentionArgs& a, cudaStream_t stream) {
  // The time of few short rows is the latency of one block, so reading keys once for each head costs nothing.
  const int heads_per_block = a.rows <= kFewRows && a.max_splits == 1 ? 1 : std::min(a.heads.group(), kHeads);
  // Few blocks of long rows are resident together, so they all merge. They prefetch two tiles where there is
  // still shared memory for the kernels before and after.
  static const int multiprocessors = card(cudaDevAttrMultiProcessorCount);
  const int blocks = a.max_splits * a.heads.kv_heads * blocks_of_group(a.heads, heads_per_block) * a.rows;
  const bool few = a.max_splits > 1 && blocks <= multiprocessors;
  constexpr int deep = 2;
  static const bool async = compiled_for(attend_rows_kernel<dim, bits, deep>) >= 80;
  if (!async) return launch_rows<dim, bits, 0>(a, heads_per_block, few, stream);
  static const bool roomy =
      most_shared_memory() >= 3 * kWarps<deep> * warp_bytes<dim, bits, deep>(kHeads) / 2;
  if (few && roomy) return launch_rows<dim, bits, deep>(a, heads_per_block, few, stream);
  launch_rows<dim, bits, 1>(a, heads_per_block, few, stream);
}

}  // namespace

void attend_rows(const RowAttentionArgs& args, cudaStream_t stream) {
  const bool wide = args.heads.head_dim == 128;
  if (args.cache.kv_bits == 16)
    return wide ? attend_of<128, 16>(args, stream) : attend_of<64, 16>(args, stream);
  return wide ? attend_of<128, 8>(args, stream) : attend_of<64, 8>(args, stream);
}

}  // namespace qwen2::cuda
