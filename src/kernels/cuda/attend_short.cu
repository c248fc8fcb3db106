// Attention of a few single rows over few keys each, where nothing but latency counts.
//
// A block takes one query head. The keys and values that are older than the step are on their way into shared
// memory before the previous kernel ends; what is left to do then is one row of each, the query, and code
// that is short enough to stay in the instruction cache. Sums are added up in attend_rows_kernel's order.
#include "kernels/cuda/attend_rows.cuh"
#include "kernels/cuda/launch.cuh"

namespace qwen2::cuda {
namespace {

constexpr int kMaxKeys = kMinSplitKeys;

template <int dim, int bits>
struct ShortMemory {
  static constexpr int kRowBytes = dim * bits / 8;
  static constexpr int kValues = kMaxKeys * kRowBytes;
  static constexpr int kScales = 2 * kValues;  // fp16, of keys and of values
  static constexpr int kScores = kScales + (bits == 8 ? 2 * kMaxKeys * 2 : 0);
  static constexpr int kBytes = kScores + kMaxKeys * 4;
};

// Starts the copies of keys and values [from, to).
template <int dim, int bits>
__device__ __forceinline__ void copy_rows(const KvCache& cache, const uint32_t* pages, int kv_heads,
                                          int kv_head, int from, int to, std::byte* memory) {
  using M = ShortMemory<dim, bits>;
  constexpr int pieces = M::kRowBytes / 16;
  constexpr int stride = kThreads / pieces;
  const int piece = threadIdx.x % pieces * 16;
#pragma unroll 1
  for (int page = from / kPageTokens; page * kPageTokens < to; ++page) {
    const std::byte* base = PageView<dim, bits>(cache, pages[page], kv_heads, kv_head).base;
    const int end = min(to, (page + 1) * kPageTokens);
    for (int key = max(from, page * kPageTokens) + threadIdx.x / pieces; key < end; key += stride) {
      const std::byte* row = base + key % kPageTokens * M::kRowBytes + piece;
      copy_16(memory + key * M::kRowBytes + piece, row);
      copy_16(memory + M::kValues + key * M::kRowBytes + piece, row + kPageTokens * M::kRowBytes);
    }
    if constexpr (bits == 8) {
      const auto* scales = reinterpret_cast<const __half*>(base + 2 * kPageTokens * dim);
      auto* out = reinterpret_cast<__half*>(memory + M::kScales);
      for (int key = max(from, page * kPageTokens) + threadIdx.x; key < end; key += kThreads) {
        out[key] = scales[key % kPageTokens];
        out[kMaxKeys + key] = scales[kPageTokens + key % kPageTokens];
      }
    }
  }
}

// Element 8 lane .. 8 lane + 7 of a key (what = 0) or value (1), and its scale.
template <int dim, int bits>
__device__ __forceinline__ float staged_row(const std::byte* memory, int what, int key, int lane,
                                            float (&values)[kElements]) {
  using M = ShortMemory<dim, bits>;
  const std::byte* row = memory + what * M::kValues + key * M::kRowBytes;
  unpack(reinterpret_cast<const Packed<bits>*>(row)[lane], values);
  if constexpr (bits == 16) return 1.0F;
  return __half2float(reinterpret_cast<const __half*>(memory + M::kScales)[what * kMaxKeys + key]);
}

template <int dim, int bits>
__device__ __forceinline__ void score_staged(const float (&query)[kElements], int keys,
                                             const std::byte* memory, float* scores) {
  constexpr int lanes = dim / kElements;
  constexpr int stride = kThreads / lanes;
  constexpr int at_once = kWarp / lanes;
  constexpr int kUnroll = 3;
  const int lane = threadIdx.x % lanes;
  const int own = threadIdx.x / lanes;
  // Lanes of a warp stay together: shuffles need them.
#pragma unroll 1
  for (int begin = own; begin - own % at_once < keys; begin += stride * kUnroll) {
    float sum[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      float values[kElements];
      const float scale = staged_row<dim, bits>(memory, 0, min(begin + u * stride, keys - 1), lane, values);
      sum[u] = 0;
#pragma unroll
      for (int i = 0; i < kElements; ++i) sum[u] += query[i] * values[i];
#pragma unroll
      for (int o = lanes / 2; o > 0; o /= 2) sum[u] += __shfl_xor_sync(kFullMask, sum[u], o);
      sum[u] *= scale;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (lane == 0 && begin + u * stride < keys) scores[begin + u * stride] = sum[u];
    }
  }
}

// The largest score, and the sum of the weights; by every warp for itself.
__device__ __forceinline__ float2 soften_staged(int keys, const float* scores) {
  const int lane = threadIdx.x % kWarp;
  float max = -INFINITY;
  for (int key = lane; key < keys; key += kWarp) max = fmaxf(max, scores[key]);
  max = warp_max(max);
  float sum = 0;
  for (int key = lane; key < keys; key += kWarp) sum += __expf(scores[key] - max);
  return {max, warp_sum(sum)};
}

// Sums of weighted values, into `sums` [kWarps][dim].
template <int dim, int bits>
__device__ __forceinline__ void sum_staged(int keys, const std::byte* memory, const float* scores, float max,
                                           float* sums) {
  constexpr int lanes = dim / kElements;
  const int lane = threadIdx.x % lanes;
  float total[kElements] = {};
#pragma unroll 2
  for (int key = threadIdx.x / lanes; key < keys; key += kThreads / lanes) {
    float values[kElements];
    const float scale = staged_row<dim, bits>(memory, 1, key, lane, values);
    const float weight = __expf(scores[key] - max) * scale;
#pragma unroll
    for (int i = 0; i < kElements; ++i) total[i] += weight * values[i];
  }
#pragma unroll
  for (float& value : total) {
#pragma unroll
    for (int o = lanes; o < kWarp; o *= 2) value += __shfl_xor_sync(kFullMask, value, o);
  }
  if (threadIdx.x % kWarp >= lanes) return;
  auto* out = reinterpret_cast<float4*>(sums + threadIdx.x / kWarp * dim + lane * kElements);
  out[0] = {total[0], total[1], total[2], total[3]};
  out[1] = {total[4], total[5], total[6], total[7]};
}

template <int dim, int bits>
__global__ void __launch_bounds__(kThreads, 2)
    attend_short_kernel(const __grid_constant__ RowAttentionArgs a) {
  extern __shared__ uint4 shared_memory[];
  __shared__ float q_bias[1][kMaxBiasPairs][2];
  auto* memory = reinterpret_cast<std::byte*>(shared_memory);
  auto* scores = reinterpret_cast<float*>(memory + ShortMemory<dim, bits>::kScores);
  const int row = blockIdx.z;
  const int head = blockIdx.y;
  const Row info = a.row_info[row];
  const int keys = info.position + 1;
  const int kv_head = head / a.heads.group();
  const uint32_t* pages = a.cache.pages + info.page_offset;
  const float* q = a.q + (int64_t(row) * a.heads.q_heads + head) * dim;
  copy_rows<dim, bits>(a.cache, pages, a.heads.kv_heads, kv_head, 0, info.older, memory);
  let_next_start();  // its weights come meanwhile; it waits for this kernel's end
  wait_for_previous();
  float query[kElements];
  load_query<dim>(q, query);
  copy_rows<dim, bits>(a.cache, pages, a.heads.kv_heads, kv_head, info.older, keys, memory);
  end_copies();
  wait_copies<0>();
  __syncthreads();

  score_staged<dim, bits>(query, keys, memory, scores);
  __syncthreads();
  if (a.cache.key_bias.pairs > 0) add_key_bias<dim, kThreads, 1>(a, kv_head, 1, q, 0, keys, q_bias, scores);
  const float2 softened = soften_staged(keys, scores);
  auto* sums = reinterpret_cast<float*>(memory);  // over the keys
  sum_staged<dim, bits>(keys, memory, scores, softened.x, sums);
  __syncthreads();
  if (threadIdx.x >= dim) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += sums[w * dim + threadIdx.x];
  reinterpret_cast<__half*>(a.out)[x_place(a.order, a.out_stride, row, head * dim + threadIdx.x)] =
      __float2half_rn(sum / softened.y);
}

template <int dim, int bits>
bool attend_short_of(const RowAttentionArgs& a, cudaStream_t stream) {
  constexpr auto kernel = attend_short_kernel<dim, bits>;
  constexpr size_t bytes = ShortMemory<dim, bits>::kBytes;
  static const bool fits =
      compiled_for(kernel) >= 80 && static_cast<int>(bytes) + 1024 <= most_shared_memory();
  if (!fits) return false;
  launch<kernel>(dim3(1, a.heads.q_heads, a.rows), kThreads, bytes, stream, a);
  return true;
}

}  // namespace

bool attend_short(const RowAttentionArgs& args, cudaStream_t stream) {
  const bool wide = args.heads.head_dim == 128;
  if (args.cache.kv_bits == 16)
    return wide ? attend_short_of<128, 16>(args, stream) : attend_short_of<64, 16>(args, stream);
  return wide ? attend_short_of<128, 8>(args, stream) : attend_short_of<64, 8>(args, stream);
}

}  // namespace qwen2::cuda
