// Merges the splits of a row's keys (split-KV) into the result. Their order is fixed, so the result depends
// on the row's length alone.
#pragma once

#include "kernels/cuda/attention/row_attention.cuh"

namespace qwen2::cuda {

struct MergeShared {
  float denominator[kHeads];
  float factors[kHeads][kMaxSplits];
  bool last;
};

// a / b of small non-negative integers, in float because integer division is slow. `inverse` is 1 / b.
__device__ __forceinline__ int divide_small(int a, float inverse) {
  return __float2int_rz((static_cast<float>(a) + 0.5F) * inverse);
}

// Called by one thread, when the block has stored its split. Returns whether it is the last of `splits`,
// which then merges; the counter is zero again.
__device__ __forceinline__ bool is_last(uint32_t* arrived, int splits) {
  uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrived) : "memory");
  if (before != static_cast<uint32_t>(splits - 1)) return false;
  *arrived = 0;
  return true;
}
// Called by one thread of each block where all blocks merge, which must be resident together. Returns when
// all splits are stored.
__device__ __forceinline__ void wait_for_all(uint32_t* arrived, int splits) {
  asm volatile("red.add.release.gpu.u32 [%0], 1;" ::"l"(arrived) : "memory");
  uint32_t stored;
  do {
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(stored) : "l"(arrived) : "memory");
  } while (stored < static_cast<uint32_t>(splits));
  if (atomicAdd(arrived, 1U) == static_cast<uint32_t>(2 * splits - 1)) *arrived = 0;
}

// Computes the factor of each split of each of the block's heads, and the heads' denominators.
__device__ __forceinline__ void weigh_splits(const RowAttentionArgs& a, int64_t first, int heads, int splits,
                                             MergeShared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (warp >= heads) return;
  constexpr int kEach = kMaxSplits / kWarp;
  float2 own[kEach];  // maximum, denominator
  float max = -INFINITY;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int s = lane + i * kWarp;
    own[i] = {-INFINITY, 0};
    if (s < splits)
      own[i] = __ldcg(reinterpret_cast<const float2*>(a.split_scalars) + first + warp * kMaxSplits + s);
    max = fmaxf(max, own[i].x);
  }
  max = warp_max(max);
  float denominator = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float factor = __expf(own[i].x - max);
    shared.factors[warp][lane + i * kWarp] = factor;
    denominator += factor * own[i].y;
  }
  denominator = warp_sum(denominator);
  if (lane == 0) shared.denominator[warp] = denominator;
}

// Threads that add up one quad of the result. Each takes every kThreadsPerQuad-th split and issues all of its
// loads at once.
constexpr int kThreadsPerQuad = 4;

// What a block merges: quads [begin, end) of the elements of its heads.
struct MergeTask {
  int row, first_head, heads;
  int splits;
  int begin, end;
};

// `memory` holds kThreadsPerQuad float4 for each quad.
template <int dim, int threads>
__device__ void merge(const RowAttentionArgs& a, const MergeTask& task, MergeShared& shared, float4* memory) {
  const int64_t first = (int64_t(task.row) * a.heads.q_heads + task.first_head) * kMaxSplits;
  const int quads = task.end - task.begin;
  const float inverse_quads = __fdividef(1, static_cast<float>(quads));
#pragma unroll 1
  for (int base = 0; base < quads * kThreadsPerQuad; base += threads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const int first_split = divide_small(i, inverse_quads);
    const int quad = task.begin + i - first_split * quads;
    const int head = quad * 4 / dim;
    const auto* sums =
        reinterpret_cast<const float4*>(a.split_sums + (first + head * kMaxSplits) * dim) + quad % (dim / 4);
    constexpr int kEach = kMaxSplits / kThreadsPerQuad;
    float4 v[kEach];
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      if (i < quads * kThreadsPerQuad)
        v[s] = __ldcg(sums + int64_t(min(first_split + s * kThreadsPerQuad, task.splits - 1)) * (dim / 4));
    }
    if (base == 0) {  // while the loads are in flight
      weigh_splits(a, first, task.heads, task.splits, shared);
      __syncthreads();
    }
    if (i >= quads * kThreadsPerQuad) continue;
    float4 sum = {};
#pragma unroll
    for (int s = 0; s < kEach; ++s) {
      const int split = first_split + s * kThreadsPerQuad;
      const float factor = split < task.splits ? shared.factors[head][split] : 0.0F;
      sum = {sum.x + factor * v[s].x, sum.y + factor * v[s].y, sum.z + factor * v[s].z,
             sum.w + factor * v[s].w};
    }
    memory[i] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < quads; i += threads) {
    float4 sum = memory[i];
#pragma unroll
    for (int thread = 1; thread < kThreadsPerQuad; ++thread) {
      const float4 v = memory[i + thread * quads];
      sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
    }
    const int head = (task.begin + i) * 4 / dim;
    const int d = (task.begin + i) * 4 % dim;
    store_quad(a, task.row, (task.first_head + head) * dim + d,
               to_half(sum, __fdividef(1, shared.denominator[head])));
  }
}

}  // namespace qwen2::cuda
