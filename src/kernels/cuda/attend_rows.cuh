// What the kernels for attention of single rows share: how a row's keys and values are read, and the key
// bias.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {

// Values are summed by as many lanes as a block of kThreads has; smaller blocks stand for all of them, so
// that a row's result does not depend on the block. Small ones leave room for the blocks of the kernels
// before and after beside them: with 128 registers a thread, 512 threads are a whole multiprocessor.
constexpr int kThreads = 512;
constexpr int kSmallThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeads = 8;  // of one block at most; also the stride of the scores
constexpr int kElements = 8;

template <int bits>
struct Packed;
template <>
struct Packed<16> {
  uint4 bits;
};
template <>
struct Packed<8> {
  uint2 bits;
};

__device__ __forceinline__ void unpack(const Packed<16>& p, float (&out)[kElements]) {
  const uint32_t words[4] = {p.bits.x, p.bits.y, p.bits.z, p.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = __half22float2(as_half2(words[i]));
    out[2 * i] = v.x;
    out[2 * i + 1] = v.y;
  }
}
__device__ __forceinline__ void unpack(const Packed<8>& p, float (&out)[kElements]) {
  const uint32_t words[2] = {p.bits.x, p.bits.y};
#pragma unroll
  for (int i = 0; i < kElements; ++i)
    out[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8)));
}

template <int dim, int bits>
struct PageView {
  const std::byte* base;

  __device__ PageView(const KvCache& cache, uint32_t page, int kv_heads, int kv_head)
      : base(cache.data + (int64_t(page) * kv_heads + kv_head) * kv_page_bytes(bits, dim)) {}
  // Elements [8 lane, 8 lane + 8) of a key (what = 0) or value (1).
  __device__ const std::byte* at(int what, int slot, int lane) const {
    return base + ((what * kPageTokens + slot) * dim + lane * kElements) * (bits / 8);
  }
  __device__ Packed<bits> load(int what, int slot, int lane) const {
    return *reinterpret_cast<const Packed<bits>*>(at(what, slot, lane));
  }
  // Of 8 bits.
  __device__ const __half* scales(int what, int slot) const {
    return reinterpret_cast<const __half*>(base + 2 * kPageTokens * dim) + what * kPageTokens + slot;
  }
  __device__ float scale(int what, int slot) const {
    if constexpr (bits == 16) return 1.0F;
    return __half2float(*scales(what, slot));
  }
};

// The query's elements of this lane.
template <int dim>
__device__ __forceinline__ void load_query(const float* q, float (&query)[kElements]) {
  const auto* at = reinterpret_cast<const float4*>(q + threadIdx.x % (dim / kElements) * kElements);
  const float4 low = __ldcg(at);
  const float4 high = __ldcg(at + 1);
  const float all[kElements] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < kElements; ++i) query[i] = all[i];
}

// What the key bias that is kept out of the cache adds to the scores: it rotates with the key's position.
template <int dim, int threads, int stride>
__device__ void add_key_bias(const RowAttentionArgs& a, int kv_head, int heads, const float* q, int first_key,
                             int keys, float (*q_bias)[kMaxBiasPairs][2], float* scores) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int32_t* index = bias.index + kv_head * kMaxBiasPairs;
  for (int i = threadIdx.x; i < heads * bias.pairs; i += threads) {
    const int head = i / bias.pairs;
    const int pair = i % bias.pairs;
    const float b0 = bias.first[kv_head * kMaxBiasPairs + pair];
    const float b1 = bias.second[kv_head * kMaxBiasPairs + pair];
    const float q0 = __ldcg(q + head * dim + index[pair]);
    const float q1 = __ldcg(q + head * dim + index[pair] + dim / 2);
    q_bias[head][pair][0] = q0 * b0 + q1 * b1;
    q_bias[head][pair][1] = q1 * b0 - q0 * b1;
  }
  __syncthreads();
  for (int key = threadIdx.x; key < keys; key += threads) {
    const auto* rotation =
        reinterpret_cast<const float2*>(a.cache.rotations) + int64_t(first_key + key) * (dim / 2);
    float add[kHeads] = {};
    for (int pair = 0; pair < bias.pairs; ++pair) {
      const float2 r = rotation[index[pair]];
      for (int h = 0; h < heads; ++h) add[h] += q_bias[h][pair][0] * r.x + q_bias[h][pair][1] * r.y;
    }
    for (int h = 0; h < heads; ++h) scores[key * stride + h] += add[h];
  }
  __syncthreads();
}

// Rows of at most kMinSplitKeys keys each, where they fit shared memory; false where they do not.
bool attend_short(const RowAttentionArgs& args, cudaStream_t stream);

}  // namespace qwen2::cuda
