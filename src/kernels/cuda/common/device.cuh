// What the kernels share: the tensor cores' step, dependent launch, reductions.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace qwen2::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffU;

// Programmatic dependent launch (sm_90): a kernel may start while its predecessor still runs, and must wait
// before it reads what that one wrote. Elsewhere kernels follow each other anyway.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// c[16 x 8] += a[16 x 16] * b[16 x 8], fp16 in, float sums. Lane (g = lane / 4, t = lane % 4) holds rows g
// and g + 8 of a and c, column g of b. Turing has the step of eight columns only.
__device__ __forceinline__ void mma_step(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%7,%8}, {%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// The same of eight columns of a.
__device__ __forceinline__ void mma_half_step(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// Has a value computed here: compilers put that where it is needed, which may be behind a wait.
template <class T>
__device__ __forceinline__ void settle(T& v) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(v));
  } else {
    asm volatile("" : "+r"(v));
  }
}
// Asked for here and not behind a wait. Of memory that kernels do not write.
__device__ __forceinline__ float4 load_before(const float* p) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}

// Weights are read once: they should not push anything out of the caches.
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

// Shared memory by its own addresses: pointers cost a look at the cluster each time.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// Whether the chip has copies into shared memory that go on while the block works.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kAsync = true;
#else
constexpr bool kAsync = false;
#endif
__device__ __forceinline__ uint4 load_shared(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_shared_u16(uint32_t from) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from) : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_shared_8(uint32_t from) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
  return v;
}
__device__ __forceinline__ float4 load_shared_floats(uint32_t from) {
  const uint4 v = load_shared(from);
  return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}
__device__ __forceinline__ void store_4(uint32_t to, uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}
__device__ __forceinline__ void store_8(uint32_t to, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void store_16(uint32_t to, const uint4& v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
// 16 bytes to an address in shared memory, at once where there are none.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#else
  store_16(to, *static_cast<const uint4*>(from));
#endif
}
__device__ __forceinline__ void end_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int pending>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
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

// The warp's number in its block, in a form from which the compiler sees that it is the same for all lanes:
// what depends on it, branches and the places of loads, is the warp's then and not each lane's.
__device__ __forceinline__ int warp_number() {
  return __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) / kWarp, 0);
}

// Sum and maximum over a block, in an order that depends on the block's size alone. `scratch` [64] is free
// again after the caller's next barrier.
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
// Four neighbours, the even ones first: see lane_place().
__device__ __forceinline__ uint2 in_lane_order(uint2 halves) {
  return {__byte_perm(halves.x, halves.y, 0x5410), __byte_perm(halves.x, halves.y, 0x7632)};
}

// The power of two by which values up to `max` are divided to fit fp16 with room to spare.
__device__ __forceinline__ float half_scale(float max) {
  return max <= 32768.0F ? 1.0F : exp2f(ceilf(log2f(max)) - 15.0F);
}

}  // namespace qwen2::cuda
