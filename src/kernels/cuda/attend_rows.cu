// Attention of single rows over the paged cache.
//
// A block takes one part of one row's keys for the query heads of one KV head. First every warp scores its
// keys and leaves the scores in shared memory; then one warp a head makes them weights; then every warp sums
// its values. Where a row has several parts, the block that arrives last merges them, in their order.
#include <climits>

#include "kernels/cuda/attend_rows.cuh"
#include "kernels/cuda/launch.cuh"

namespace qwen2::cuda {
namespace {

// Rows up to which a head is a block: more would not be on the card at once.
constexpr int kShortRows = 8;

template <int G>
struct Shared {
  float q_bias[kHeads][kMaxBiasPairs][2];
  float maximum[kHeads];
  float denominator[kHeads];
  bool last;
};

// In flight of each lane: few heads leave registers for all keys of a short context.
template <int G>
constexpr int kLoads = G == 1   ? 8
                       : G == 2 ? 4
                                : 2;

// Loads of kUnroll keys or values by a group of lanes that share one.
template <int dim, int bits, int loads, int threads>
struct Batch {
  static constexpr int kUnroll = loads;
  static constexpr int lanes = dim / kElements;
  static constexpr int stride = threads / lanes;
  Packed<bits> values[kUnroll];
  float scale[kUnroll];

  // Of keys begin + u * stride below `keys`, counted from `first_key`; those outside of [from, to) are left
  // out.
  __device__ __forceinline__ void load(const RowAttentionArgs& a, const uint32_t* pages, int kv_head,
                                       int what, int first_key, int begin, int keys, int from, int to) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int key = min(begin + u * stride, keys - 1) + first_key;
      if (key < from || key >= to) continue;
      const PageView<dim, bits> page(a.cache, pages[key / kPageTokens], a.heads.kv_heads, kv_head);
      values[u] = page.load(what, key % kPageTokens, threadIdx.x % lanes);
      scale[u] = page.scale(what, key % kPageTokens);
    }
  }
};

// `k` holds the first batch.
template <int dim, int bits, int G, int threads>
__device__ __forceinline__ void score_keys(const RowAttentionArgs& a, const uint32_t* pages, int kv_head,
                                           int heads, const float* q, int first_key, int keys,
                                           Batch<dim, bits, kLoads<G>, threads>& k, float* scores) {
  using B = Batch<dim, bits, kLoads<G>, threads>;
  constexpr int at_once = kWarp / B::lanes;
  const int lane = threadIdx.x % B::lanes;
  const int own = threadIdx.x / B::lanes;
  float query[G][kElements];
#pragma unroll
  for (int h = 0; h < G; ++h) {
    const auto* at = reinterpret_cast<const float4*>(q + min(h, heads - 1) * dim + lane * kElements);
    const float4 low = __ldcg(at);
    const float4 high = __ldcg(at + 1);
    const float all[kElements] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kElements; ++i) query[h][i] = all[i];
  }
  // Lanes of a warp stay together: shuffles need them.
  for (int begin = own; begin - own % at_once < keys; begin += B::stride * B::kUnroll) {
    if (begin != own) k.load(a, pages, kv_head, 0, first_key, begin, keys, 0, INT_MAX);
#pragma unroll
    for (int u = 0; u < B::kUnroll; ++u) {
      float values[kElements];
      unpack(k.values[u], values);
      float score = 0;
#pragma unroll
      for (int h = 0; h < G; ++h) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kElements; ++i) sum += query[h][i] * values[i];
#pragma unroll
        for (int o = B::lanes / 2; o > 0; o /= 2) sum += __shfl_xor_sync(kFullMask, sum, o);
        if (lane == h) score = sum;
      }
      const int key = begin + u * B::stride;
      if (lane < heads && key < keys) scores[key * kHeads + lane] = score * k.scale[u];
    }
  }
  __syncthreads();
}

// Scores to weights; one warp a head.
__device__ void soften(int heads, int keys, float* scores, float* maximum, float* denominator) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (warp < heads) {
    float max = -INFINITY;
    for (int key = lane; key < keys; key += kWarp) max = fmaxf(max, scores[key * kHeads + warp]);
    max = warp_max(max);
    float sum = 0;
    for (int key = lane; key < keys; key += kWarp) {
      const float weight = __expf(scores[key * kHeads + warp] - max);
      scores[key * kHeads + warp] = weight;
      sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      maximum[warp] = max;
      denominator[warp] = sum;
    }
  }
  __syncthreads();
}

// Sums of weighted values, into `sums` [kWarps][heads][dim] of shared memory.
template <int dim, int bits, int G, int threads>
__device__ __forceinline__ void sum_values(const RowAttentionArgs& a, const uint32_t* pages, int kv_head,
                                           int heads, int first_key, int keys,
                                           Batch<dim, bits, kLoads<G>, threads>& v, const float* weights,
                                           float* sums) {
  using B = Batch<dim, bits, kLoads<G>, threads>;
  constexpr int lanes = B::lanes;
  const int lane = threadIdx.x % lanes;
  const int own = threadIdx.x / lanes;
  constexpr int stands_for = kThreads / threads;
  static_assert(B::kUnroll % stands_for == 0);
  float total[stands_for][G][kElements] = {};
  for (int begin = own; begin < keys; begin += B::stride * B::kUnroll) {
    if (begin != own) v.load(a, pages, kv_head, 1, first_key, begin, keys, 0, INT_MAX);
#pragma unroll
    for (int u = 0; u < B::kUnroll; ++u) {
      const int key = begin + u * B::stride;
      if (key >= keys) break;
      float values[kElements];
      unpack(v.values[u], values);
#pragma unroll
      for (int h = 0; h < G; ++h) {
        const float weight = weights[key * kHeads + h] * v.scale[u];
#pragma unroll
        for (int i = 0; i < kElements; ++i) total[u % stands_for][h][i] += weight * values[i];
      }
    }
  }
  __syncthreads();  // the weights are read: `sums` may lie over them
#pragma unroll
  for (int part = 0; part < stands_for; ++part) {
#pragma unroll
    for (int h = 0; h < G; ++h) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
#pragma unroll
        for (int o = lanes; o < kWarp; o *= 2)
          total[part][h][i] += __shfl_xor_sync(kFullMask, total[part][h][i], o);
      }
      if (h < heads && threadIdx.x % kWarp < lanes) {
        const int warp = threadIdx.x / kWarp + part * (threads / kWarp);
        float* out = sums + (warp * heads + h) * dim + lane * kElements;
#pragma unroll
        for (int i = 0; i < kElements; ++i) out[i] = total[part][h][i];
      }
    }
  }
  __syncthreads();
}

// Merges the parts of the block's heads, in their order.
template <int threads>
__device__ void merge(const RowAttentionArgs& a, int row, int first_head, int heads, int dim, int splits) {
  for (int i = threadIdx.x; i < heads * dim; i += threads) {
    const int head = first_head + i / dim;
    const int64_t at = (int64_t(row) * a.heads.q_heads + head) * kMaxSplits;
    float max = -INFINITY;
    for (int s = 0; s < splits; ++s) max = fmaxf(max, __ldcg(a.part_scalars + (at + s) * 2));
    float sum = 0;
    float denominator = 0;
    for (int s = 0; s < splits; ++s) {
      const float factor = __expf(__ldcg(a.part_scalars + (at + s) * 2) - max);
      denominator += factor * __ldcg(a.part_scalars + (at + s) * 2 + 1);
      sum += factor * __ldcg(a.part_sums + (at + s) * dim + i % dim);
    }
    __half* out = reinterpret_cast<__half*>(a.out) + row * a.out_stride + head * dim;
    out[a.lane_order ? lane_place(i % dim) : i % dim] = __float2half_rn(sum / denominator);
  }
}

template <int dim, int bits, int G, int threads>
__global__ void __launch_bounds__(threads, kThreads / threads)
    attend_rows_kernel(const __grid_constant__ RowAttentionArgs a) {
  extern __shared__ float shared_floats[];
  __shared__ Shared<G> shared;
  // The inputs of the step, and all keys and values but this step's, are older than the previous kernel.
  const int row = blockIdx.z;
  const Row info = a.row_info[row];
  const int length = info.position + 1;
  const int per_split = split_keys(length);
  const int splits = (length + per_split - 1) / per_split;
  const int split = blockIdx.x;
  if (split >= splits) {
    wait_for_previous();
    return;
  }
  const int group = a.heads.group();
  const int blocks_a_head = (group + G - 1) / G;
  const int kv_head = blockIdx.y / blocks_a_head;
  const int in_group = blockIdx.y % blocks_a_head * G;
  const int heads = min(group - in_group, G);
  const int first_head = kv_head * group + in_group;
  const int first_key = split * per_split;
  const int keys = min(per_split, length - first_key);
  const float* q = a.q + (int64_t(row) * a.heads.q_heads + first_head) * dim;
  const uint32_t* pages = a.cache.pages + info.page_offset;
  float* scores = shared_floats;
  const int own = threadIdx.x / Batch<dim, bits, kLoads<G>, threads>::lanes;
  Batch<dim, bits, kLoads<G>, threads> k, v;
  k.load(a, pages, kv_head, 0, first_key, own, keys, 0, info.older);
  v.load(a, pages, kv_head, 1, first_key, own, keys, 0, info.older);
  wait_for_previous();
  let_next_start();
  k.load(a, pages, kv_head, 0, first_key, own, keys, info.older, INT_MAX);
  v.load(a, pages, kv_head, 1, first_key, own, keys, info.older, INT_MAX);

  score_keys<dim, bits, G, threads>(a, pages, kv_head, heads, q, first_key, keys, k, scores);
  if (a.cache.key_bias.pairs > 0) {
    add_key_bias<dim, threads, kHeads>(a, kv_head, heads, q, first_key, keys, shared.q_bias, scores);
  }
  soften(heads, keys, scores, shared.maximum, shared.denominator);
  float* sums = shared_floats;
  sum_values<dim, bits, G, threads>(a, pages, kv_head, heads, first_key, keys, v, scores, sums);

  for (int i = threadIdx.x; i < heads * dim; i += threads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * heads * dim + i];
    const int head = first_head + i / dim;
    if (splits == 1) {
      __half* out = reinterpret_cast<__half*>(a.out) + row * a.out_stride + head * dim;
      out[a.lane_order ? lane_place(i % dim) : i % dim] = __float2half_rn(sum / shared.denominator[i / dim]);
    } else {
      const int64_t at = (int64_t(row) * a.heads.q_heads + head) * kMaxSplits + split;
      a.part_sums[at * dim + i % dim] = sum;
      if (i % dim == 0) {
        a.part_scalars[at * 2] = shared.maximum[i / dim];
        a.part_scalars[at * 2 + 1] = shared.denominator[i / dim];
      }
    }
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  uint32_t* arrived = a.arrived + int64_t(row) * a.heads.q_heads + first_head;
  if (threadIdx.x == 0) shared.last = atomicAdd(arrived, 1U) == static_cast<unsigned>(splits - 1);
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  merge<threads>(a, row, first_head, heads, dim, splits);
  if (threadIdx.x == 0) *arrived = 0;
}

template <int dim, int bits, int G, int threads>
void attend_of(const RowAttentionArgs& a, cudaStream_t stream) {
  const int group = a.heads.group();
  const int blocks_a_head = (group + G - 1) / G;
  const size_t scores = sizeof(float) * a.max_split_keys * kHeads;
  const size_t sums = sizeof(float) * kWarps * (group < G ? group : G) * dim;
  launch<attend_rows_kernel<dim, bits, G, threads>>(
      dim3(a.max_splits, a.heads.kv_heads * blocks_a_head, a.rows), threads, scores > sums ? scores : sums,
      stream, a);
}

template <int dim, int bits>
void attend_group(const RowAttentionArgs& a, cudaStream_t stream) {
  // Few short rows are bound by the length of one block's work, not by what is read twice.
  if (a.rows <= 2 && a.max_splits == 1) return attend_of<dim, bits, 1, kSmallThreads>(a, stream);
  const int group = a.heads.group();
  if (group == 1) return attend_of<dim, bits, 1, kThreads>(a, stream);
  if (group == 2) return attend_of<dim, bits, 2, kThreads>(a, stream);
  if (group <= 4) return attend_of<dim, bits, 4, kThreads>(a, stream);
  if (group <= 6) return attend_of<dim, bits, 6, kThreads>(a, stream);
  if (group == 7) return attend_of<dim, bits, 8, kThreads>(a, stream);
  return attend_of<dim, bits, 4, kThreads>(
      a, stream);  // the sums of eight heads of 128 would not fit a Turing block's memory
}

// One warp a row and head: K of all KV heads, then V.
__global__ void store_kv_kernel(const __grid_constant__ StoreKvArgs a) {
  wait_for_previous();
  let_next_start();
  const int dim = a.heads.head_dim;
  const int row = blockIdx.x;
  const int head = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const bool is_value = head >= a.heads.kv_heads;
  const int kv_head = is_value ? head - a.heads.kv_heads : head;
  const Row info = a.row_info[row];
  const float* values = a.new_kv + (int64_t(row) * 2 * a.heads.kv_heads + head) * dim;
  float max = 0;
  for (int d = lane; d < dim; d += kWarp) max = fmaxf(max, fabsf(__ldcg(values + d)));
  max = warp_max(max);
  // The scale as it is kept: codes are made with it.
  const float kept = __half2float(__float2half_rn(fminf(max / 127.0F, 65504.0F)));
  const float inverse = kept > 0 ? 1.0F / kept : 0.0F;
  std::byte* page =
      a.cache.data +
      (int64_t(a.cache.pages[info.page_offset + info.position / kPageTokens]) * a.heads.kv_heads + kv_head) *
          kv_page_bytes(8, dim);
  const int slot = info.position % kPageTokens;
  const int what = is_value ? 1 : 0;
  auto* codes = reinterpret_cast<int8_t*>(page) + (what * kPageTokens + slot) * dim;
  for (int d = lane; d < dim; d += kWarp) {
    const float code = rintf(__ldcg(values + d) * inverse);
    codes[d] = static_cast<int8_t>(fminf(fmaxf(code, -127.0F), 127.0F));
  }
  if (lane == 0)
    reinterpret_cast<__half*>(page + 2 * kPageTokens * dim)[what * kPageTokens + slot] =
        __float2half_rn(kept);
}

}  // namespace

void attend_rows(const RowAttentionArgs& args, cudaStream_t stream) {
  if (args.max_splits == 1 && args.rows <= kShortRows && attend_short(args, stream)) return;
  const bool wide = args.heads.head_dim == 128;
  if (args.cache.kv_bits == 16) {
    return wide ? attend_group<128, 16>(args, stream) : attend_group<64, 16>(args, stream);
  }
  return wide ? attend_group<128, 8>(args, stream) : attend_group<64, 8>(args, stream);
}

void store_kv_int8(const StoreKvArgs& args, cudaStream_t stream) {
  launch<store_kv_kernel>(dim3(args.rows), static_cast<unsigned>(2 * args.heads.kv_heads * kWarp), 0, stream,
                          args);
}

}  // namespace qwen2::cuda
