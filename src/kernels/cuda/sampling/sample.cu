// From logits to tokens.
//
// Greedy rows take the largest logit, and of equal ones the smallest id. Other rows keep the top_k largest
// logits, then the likeliest of them that hold top_p of the probability, and draw among these in the order
// of their ids. The thresholds are found by radix selection over the logits' bits, by count for top_k and
// by probability for top_p. Probabilities are fixed-point integers, so that sums do not depend on the order
// of additions.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/sampling/sampling.h"

namespace qwen2::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kGreedyBlocks = 64;
constexpr int kGreedyThreads = 256;
constexpr int kBins = 256;

// An unsigned key with the order of the logits.
__device__ __forceinline__ uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

__global__ void penalise_kernel(const __grid_constant__ SampleArgs a) {
  wait_for_previous();
  trigger_dependents();
  const SampleRow row = a.rows[blockIdx.x];
  float* logits = a.logits + row.logits_row * a.stride;
  const auto penalise = [&](int token) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / row.penalty : logit * row.penalty;
  };
  const int pending = row.pending >= 0 ? a.tokens[row.pending] : -1;
  bool found = false;
  for (int i = threadIdx.x; i < row.seen_count; i += blockDim.x) {
    const int token = a.seen[row.seen_offset + i];
    found = found || token == pending;
    penalise(token);
  }
  const bool known = __syncthreads_or(found ? 1 : 0) != 0;
  if (pending >= 0 && !known && row.penalty != 1 && threadIdx.x == 0) penalise(pending);
}

__device__ __forceinline__ void store_token(const SampleArgs& a, const SampleRow& row, int token) {
  a.tokens[row.place] = token;
  if (a.host_tokens != nullptr) a.host_tokens[row.place] = token;
}

// A number that orders by key, and equal keys by descending id: the maximum has the smallest id.
__device__ __forceinline__ unsigned long long ranked(uint32_t key, int id) {
  return (static_cast<unsigned long long>(key) << 32) | (0xffffffffU - static_cast<uint32_t>(id));
}

__device__ unsigned long long block_largest(unsigned long long v, unsigned long long* scratch) {
  for (int o = 16; o > 0; o /= 2) v = max(v, __shfl_xor_sync(kFullMask, v, o));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = threadIdx.x % kWarp < blockDim.x / kWarp ? scratch[threadIdx.x % kWarp] : 0;
  for (int o = 16; o > 0; o /= 2) v = max(v, __shfl_xor_sync(kFullMask, v, o));
  return v;
}

__global__ void __launch_bounds__(kGreedyThreads) greedy_kernel(const __grid_constant__ SampleArgs a) {
  __shared__ unsigned long long scratch[kGreedyThreads / kWarp];
  const SampleRow row = a.rows[blockIdx.y];  // written before the step began
  wait_for_previous();
  trigger_dependents();
  if (row.temperature != 0 || (row.in_step != 0) != a.in_step) return;
  const float* logits = a.logits + row.logits_row * a.stride;
  unsigned long long best = 0;
  constexpr int kLoads = 3;
  constexpr int kStep = kGreedyBlocks * kGreedyThreads * 4;
  for (int first = (blockIdx.x * kGreedyThreads + threadIdx.x) * 4; first < a.vocab;
       first += kLoads * kStep) {
    float4 v[kLoads];  // rows are padded to a multiple of four
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (first + j * kStep < a.vocab)
        v[j] = __ldcg(reinterpret_cast<const float4*>(logits + first + j * kStep));
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const float each[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int id = first + j * kStep + i;
        if (id < a.vocab) best = max(best, ranked(key_of(each[i]), id));
      }
    }
  }
  best = block_largest(best, scratch);
  unsigned long long* shared_best = a.best + blockIdx.y;
  if (threadIdx.x == 0) {
    atomicMax(shared_best, best);
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(a.arrived + blockIdx.y)
                 : "memory");
    if (before == kGreedyBlocks - 1) {
      const auto inverted = static_cast<uint32_t>(atomicExch(shared_best, 0ULL));
      store_token(a, row, static_cast<int32_t>(0xffffffffU - inverted));
      a.arrived[blockIdx.y] = 0;
    }
  }
}

struct Selected {
  uint32_t threshold;        // all keys above it are selected
  unsigned long long above;  // their total weight
};

// Among keys of at least `floor`, the largest threshold such that the keys at or above it have a total
// weight of at least `target`. Four rounds of eight bits.
template <class Weight>
__device__ Selected select(const float* logits, int vocab, uint32_t floor, unsigned long long target,
                           const Weight& weight, unsigned long long* bins) {
  uint32_t prefix = 0;
  unsigned long long above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const uint32_t key = key_of(logits[i]);
      if (key < floor || (shift < 24 && key >> (shift + 8) != prefix)) continue;
      atomicAdd(bins + ((key >> shift) & (kBins - 1)), weight(key));
    }
    __syncthreads();
    if (threadIdx.x == 0) {  // from the largest bin down
      int bin = kBins - 1;
      while (bin > 0 && above + bins[bin] < target) above += bins[bin--];
      bins[0] = above;
      bins[1] = static_cast<unsigned long long>(bin);
    }
    __syncthreads();
    above = bins[0];
    prefix = (prefix << 8) | static_cast<uint32_t>(bins[1]);
    __syncthreads();
  }
  return {prefix, above};
}

// The sum over all threads before this one (exclusive prefix sum), and the total.
__device__ unsigned long long block_prefix(unsigned long long own, unsigned long long* scratch,
                                           unsigned long long& total) {
  unsigned long long sum = own;
  const int lane = threadIdx.x % kWarp;
  for (int o = 1; o < kWarp; o *= 2) {
    const unsigned long long other = __shfl_up_sync(kFullMask, sum, o);
    if (lane >= o) sum += other;
  }
  __syncthreads();
  if (lane == kWarp - 1) scratch[threadIdx.x / kWarp] = sum;
  __syncthreads();
  unsigned long long before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w == static_cast<int>(threadIdx.x) / kWarp) before = total;
    total += scratch[w];
  }
  return before + sum - own;
}

__global__ void __launch_bounds__(kThreads) draw_kernel(const __grid_constant__ SampleArgs a) {
  __shared__ unsigned long long bins[kBins];
  __shared__ unsigned long long scratch[kThreads / kWarp];
  wait_for_previous();
  trigger_dependents();
  const SampleRow row = a.rows[blockIdx.x];
  if (row.temperature == 0) return;
  const float* logits = a.logits + row.logits_row * a.stride;
  unsigned long long best = 0;
  for (int i = threadIdx.x; i < a.vocab; i += kThreads) best = max(best, ranked(key_of(logits[i]), i));
  best = block_largest(best, scratch);
  const float peak = logit_of(static_cast<uint32_t>(best >> 32));
  const float inverse = 1.0F / row.temperature;
  // Probabilities relative to the largest, times 2^40: sums over any vocabulary fit 64 bits.
  const auto mass = [=](uint32_t key) {
    return static_cast<unsigned long long>(__expf((logit_of(key) - peak) * inverse) * 0x1p40F);
  };

  uint32_t threshold = 0;
  unsigned long long ties = ~0ULL;  // how many keys equal to the threshold are kept, the smallest ids first
  if (row.top_k > 0 && row.top_k < a.vocab) {
    const Selected s = select(logits, a.vocab, 0, row.top_k, [](uint32_t) { return 1ULL; }, bins);
    threshold = s.threshold;
    ties = row.top_k - s.above;
  }
  if (row.top_p < 1) {
    const auto kept = [&](uint32_t key) { return mass(key); };
    unsigned long long own = 0;
    for (int i = threadIdx.x; i < a.vocab; i += kThreads) {
      const uint32_t key = key_of(logits[i]);
      if (key > threshold || (key == threshold && ties == ~0ULL)) own += mass(key);
    }
    unsigned long long total = 0;
    block_prefix(own, scratch, total);
    if (ties != ~0ULL) total += ties * mass(threshold);
    const auto target =
        static_cast<unsigned long long>(static_cast<double>(row.top_p) * static_cast<double>(total));
    const Selected s = select(logits, a.vocab, threshold, target > 0 ? target : 1, kept, bins);
    const unsigned long long each = max(mass(s.threshold), 1ULL);
    const unsigned long long needed = s.above >= target ? 1 : (target - s.above + each - 1) / each;
    ties = s.threshold > threshold ? needed : min(needed, ties);
    threshold = s.threshold;
  }

  // Each thread has a range of ids. First it counts the ties before its range, then it finds out whether the
  // drawn number falls on one of its ids.
  const int each = (a.vocab + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, a.vocab);
  const int end = min(begin + each, a.vocab);
  unsigned long long equal = 0;
  for (int i = begin; i < end; ++i) equal += key_of(logits[i]) == threshold ? 1 : 0;
  unsigned long long unused = 0;
  const unsigned long long equal_before = block_prefix(equal, scratch, unused);
  const auto for_each_kept = [&](auto&& f) {
    unsigned long long seen = equal_before;
    for (int i = begin; i < end; ++i) {
      const uint32_t key = key_of(logits[i]);
      if (key < threshold || (key == threshold && seen++ >= ties)) continue;
      f(i, mass(key));
    }
  };
  unsigned long long own = 0;
  for_each_kept([&](int, unsigned long long m) { own += m; });
  unsigned long long total = 0;
  unsigned long long before = block_prefix(own, scratch, total);
  const auto drawn =
      min(static_cast<unsigned long long>(row.uniform * static_cast<double>(total)), total - 1);
  if (drawn < before || drawn >= before + own) return;
  bool found = false;
  for_each_kept([&](int i, unsigned long long m) {
    if (!found && drawn < before + m) {
      store_token(a, row, i);
      found = true;
    }
    before += m;
  });
}

}  // namespace

void sample(const SampleArgs& args, const SampleKinds& kinds, cudaStream_t stream) {
  if (kinds.penalised) launch<penalise_kernel>(dim3(args.count), 256, 0, stream, args);
  if (kinds.greedy) launch<greedy_kernel>(dim3(kGreedyBlocks, args.count), kGreedyThreads, 0, stream, args);
  if (kinds.drawn) launch<draw_kernel>(dim3(args.count), kThreads, 0, stream, args);
}

}  // namespace qwen2::cuda
