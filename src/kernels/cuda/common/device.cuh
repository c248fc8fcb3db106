// What all kernels share: programmatic dependent launch, loads with cache hints, reductions, fp16.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace qwen2::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffU;

// Programmatic dependent launch (sm_90): a kernel may start once all blocks of the previous one have
// triggered it or ended. It must wait before it reads what the previous kernel wrote: the wait returns when
// that kernel has ended. On other GPUs kernels run one after the other and both functions do nothing.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void trigger_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A compiler barrier for one value: it is computed before this point. Otherwise the compiler computes it
// where it is first used, which may be after a wait.
template <class T>
__device__ __forceinline__ void compiler_barrier(T& v) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(v));
  } else {
    asm volatile("" : "+r"(v));
  }
}
// A load that is issued here and not moved behind a wait, of memory that no kernel writes.
__device__ __forceinline__ float4 load_before(const float* p) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}

// A load of weights, which are read once a step: they should not evict other data from the caches.
__device__ __forceinline__ uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ uint32_t as_bits(__half2 h) {
  return *reinterpret_cast<uint32_t*>(&h);
}
__device__ __forceinline__ __half2 as_half2(uint32_t bits) {
  return *reinterpret_cast<__half2*>(&bits);
}

// lop3 with the table (a & b) ^ c.
__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(kFullMask, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v = fmaxf(v, __shfl_xor_sync(kFullMask, v, o));
  return v;
}

// The warp's number in its block. The shuffle shows the compiler that all lanes have the same value, so that
// branches and addresses which depend on it are computed once a warp, in uniform registers.
__device__ __forceinline__ int warp_number() {
  return __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) / kWarp, 0);
}

// Sum and maximum over a block, in an order that depends on the block's size alone. `scratch` [64] may be
// reused after the caller's next barrier.
struct SumMax {
  float sum, max;
};
__device__ __forceinline__ SumMax block_sum_max(float sum, float max, float* scratch) {
  sum = warp_sum(sum);
  max = warp_max(max);
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) {
    scratch[warp] = sum;
    scratch[32 + warp] = max;
  }
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const int warps = (blockDim.x + kWarp - 1) / kWarp;
  return {warp_sum(lane < warps ? scratch[lane] : 0.0F), warp_max(lane < warps ? scratch[32 + lane] : 0.0F)};
}

__device__ __forceinline__ float saturate_half(float v) {
  return fminf(fmaxf(v, -65504.0F), 65504.0F);
}

__device__ __forceinline__ float4 times(const float4& v, float factor) {
  return {v.x * factor, v.y * factor, v.z * factor, v.w * factor};
}
__device__ __forceinline__ float4 times(const float4& v, const float4& w) {
  return {v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w};
}

// Four floats as fp16.
__device__ __forceinline__ uint2 to_halves(float a, float b, float c, float d) {
  return {as_bits(__floats2half2_rn(saturate_half(a), saturate_half(b))),
          as_bits(__floats2half2_rn(saturate_half(c), saturate_half(d)))};
}

__device__ __forceinline__ float4 to_floats(uint2 halves) {
  const float2 low = __half22float2(as_half2(halves.x));
  const float2 high = __half22float2(as_half2(halves.y));
  return {low.x, low.y, high.x, high.y};
}
// Four neighbouring columns, the even ones first: see lane_column().
__device__ __forceinline__ uint2 to_lane_order(uint2 halves) {
  return {__byte_perm(halves.x, halves.y, 0x5410), __byte_perm(halves.x, halves.y, 0x7632)};
}

// The power of two by which values of magnitude up to `max` are divided so that they fit fp16.
__device__ __forceinline__ float half_scale(float max) {
  return max <= 32768.0F ? 1.0F : exp2f(ceilf(log2f(max)) - 15.0F);
}

}  // namespace qwen2::cuda
