// Attention of single rows over the paged cache.
//
// A block takes one part of one row's keys for the query heads of one KV head. First every warp scores its
// keys and leaves the scores in shared memory; then one warp a head makes them weights; then every warp sums
// its values. Where a row has several parts, the block that arrives last merges them, in their order.
#include "kernels/cuda/kv_stream.cuh"
#include "kernels/cuda/launch.cuh"

namespace qwen2::cuda {
namespace {

// Rows up to which a head is a block: more would not be on the card at once.
constexpr int kShortRows = 8;

struct Shared {
  float q_bias[kHeads][kMaxBiasPairs][2];
  float maximum[kHeads];
  float denominator[kHeads];
  float factors[kHeads][kMaxSplits];
  bool last;
};

// Keys or values that a lane takes at once. Without copies in flight few heads leave registers for all keys
// of a short context.
template <int G>
constexpr int kLoads = kAsync || G > 2 ? 2
                       : G == 1        ? 8
                                       : 4;

template <int dim, int G, class Stream>
__device__ __forceinline__ void score_keys(int heads, const float* q, int keys, Stream& stream,
                                           float* scores) {
  using B = typename Stream::B;
  const int lane = threadIdx.x % B::lanes;
  float query[G][kElements];
#pragma unroll
  for (int h = 0; h < G; ++h) load_query<dim>(q + min(h, heads - 1) * dim, query[h]);
#pragma unroll 1
  for (int batch = 0; batch < stream.batches(); ++batch) {
    const B k = stream.take(0, batch);
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
      const int key = stream.first_key(batch) + u * B::stride;
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
template <int dim, int G, int threads, class Stream>
__device__ __forceinline__ void sum_values(int heads, int keys, Stream& stream, const float* weights,
                                           float* sums) {
  using B = typename Stream::B;
  constexpr int lanes = B::lanes;
  const int lane = threadIdx.x % lanes;
  constexpr int stands_for = kThreads / threads;
  static_assert(B::kUnroll % stands_for == 0);
  float total[stands_for][G][kElements] = {};
#pragma unroll 1
  for (int batch = 0; batch < stream.batches(); ++batch) {
    const B v = stream.take(1, batch);
#pragma unroll
    for (int u = 0; u < B::kUnroll; ++u) {
      const int key = stream.first_key(batch) + u * B::stride;
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

// Merges the parts of the block's heads; `memory` holds a float4 for every thread.
template <int threads>
__device__ void merge(const RowAttentionArgs& a, int row, int first_head, int heads, int dim, int splits,
                      Shared& shared, float4* memory) {
  const int64_t first = (int64_t(row) * a.heads.q_heads + first_head) * kMaxSplits;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (warp < heads) {
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
  __syncthreads();
  // Several threads share four elements: each has some of the parts.
  const int quads = heads * dim / 4;
  const int sharers = min(threads / quads, 4);
  const int quad = threadIdx.x % quads;
  const int share = threadIdx.x / quads;
  const int head = quad * 4 / dim;
  if (share < sharers) {
    const auto* sums =
        reinterpret_cast<const float4*>(a.part_sums + (first + head * kMaxSplits) * dim) + quad % (dim / 4);
    float4 sum = {};
#pragma unroll 8
    for (int s = share; s < splits; s += sharers) {
      const float4 v = __ldcg(sums + int64_t(s) * (dim / 4));
      const float factor = shared.factors[head][s];
      sum = {sum.x + factor * v.x, sum.y + factor * v.y, sum.z + factor * v.z, sum.w + factor * v.w};
    }
    memory[threadIdx.x] = sum;
  }
  __syncthreads();
  if (share > 0) return;
  float4 sum = memory[quad];
  for (int i = 1; i < sharers; ++i) {
    const float4 v = memory[quad + i * quads];
    sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
  }
  const float scale = 1.0F / shared.denominator[head];
  const int d = quad * 4 % dim;
  auto* out = reinterpret_cast<__half*>(a.out);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    out[x_place(a.order, a.out_stride, row, (first_head + head) * dim + d + i)] =
        __float2half_rn(values[i] * scale);
}

template <int dim, int bits, int G, int threads, int depth>
__global__ void __launch_bounds__(threads, kThreads / threads)
    attend_rows_kernel(const __grid_constant__ RowAttentionArgs a) {
  extern __shared__ uint4 shared_memory[];
  __shared__ Shared shared;
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
  using Stream = KvStream<dim, bits, kLoads<G>, threads, depth>;
  auto* memory = reinterpret_cast<std::byte*>(shared_memory);
  auto* scores = reinterpret_cast<float*>(memory + (kAsync ? depth * Stream::kStage : 0));
  Stream stream(a, pages, kv_head, first_key, keys, memory);
  stream.begin(info.older);
  let_next_start();  // its weights come meanwhile; it waits for this kernel's end
  wait_for_previous();
  stream.go_on(info.older);

  score_keys<dim, G>(heads, q, keys, stream, scores);
  if (a.cache.key_bias.pairs > 0) {
    add_key_bias<dim, threads, kHeads>(a, kv_head, heads, q, first_key, keys, shared.q_bias, scores);
  }
  soften(heads, keys, scores, shared.maximum, shared.denominator);
  auto* sums = reinterpret_cast<float*>(memory);  // over all of it
  sum_values<dim, G, threads>(heads, keys, stream, scores, sums);

  for (int i = threadIdx.x; i < heads * dim; i += threads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * heads * dim + i];
    const int head = first_head + i / dim;
    if (splits == 1) {
      reinterpret_cast<__half*>(a.out)[x_place(a.order, a.out_stride, row, head * dim + i % dim)] =
          __float2half_rn(sum / shared.denominator[i / dim]);
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
  merge<threads>(a, row, first_head, heads, dim, splits, shared, reinterpret_cast<float4*>(shared_memory));
  if (threadIdx.x == 0) *arrived = 0;
}

// Batches on their way: as many as hide the memory's latency, one where long parts leave no room for more.
constexpr int kDepth = 4;

// False where `depth` batches and the scores are too much for a block's memory, unless there is no other
// choice.
template <int dim, int bits, int G, int threads, int depth>
bool launch_rows(const RowAttentionArgs& a, bool last_choice, cudaStream_t stream) {
  constexpr auto kernel = attend_rows_kernel<dim, bits, G, threads, depth>;
  using Stream = KvStream<dim, bits, kLoads<G>, threads, depth>;
  static const bool async = compiled_for(kernel) >= 80;
  static const int most = most_shared_memory();
  const int group = a.heads.group();
  const size_t scores = sizeof(float) * a.max_split_keys * kHeads + (async ? depth * Stream::kStage : 0);
  const size_t sums = sizeof(float) * kWarps * (group < G ? group : G) * dim;
  const size_t shared = scores > sums ? scores : sums;
  if (!last_choice && shared + sizeof(Shared) > static_cast<size_t>(most)) return false;
  const int blocks_a_head = (group + G - 1) / G;
  launch<kernel>(dim3(a.max_splits, a.heads.kv_heads * blocks_a_head, a.rows), threads, shared, stream, a);
  return true;
}

template <int dim, int bits, int G, int threads>
void attend_of(const RowAttentionArgs& a, cudaStream_t stream) {
  if (!launch_rows<dim, bits, G, threads, kDepth>(a, false, stream))
    launch_rows<dim, bits, G, threads, 1>(a, true, stream);
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
  let_next_start();
  wait_for_previous();
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
