// A grid barrier: blocks of one kernel, all of them resident, wait for each other.
//
// Each block adds one to a counter; blocks that wait poll it. Data that was written before arrive() must be
// read past the first-level cache (__ldcg).
#pragma once

#include <cstdint>

namespace qwen2::cuda {

// Called by one thread, after a barrier of its block: makes the block's writes visible and counts the block.
__device__ __forceinline__ void arrive(uint32_t* count) {
  asm volatile("red.add.release.gpu.u32 [%0], 1;" ::"l"(count) : "memory");
}
// Called by one thread, before a barrier of its block: returns when `target` blocks have arrived.
__device__ __forceinline__ void poll_until(const uint32_t* count, uint32_t target) {
  uint32_t now;
  do {
    asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
  } while (now < target);
}

// A grid barrier that is used again and again: a counter of arrivals, and the count that this block waits
// for next. All threads of a block call wait() and block_arrives(); one thread polls and one arrives.
template <int polling_thread, int arriving_thread>
class GridBarrier {
 public:
  __device__ __forceinline__ explicit GridBarrier(uint32_t* count) : count_(count) {}
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == polling_thread) poll_until(count_, target_);
    __syncthreads();
  }
  __device__ __forceinline__ void block_arrives() const {
    __syncthreads();
    if (threadIdx.x == arriving_thread) arrive(count_);
  }
  // This many blocks arrive before the next wait() returns.
  __device__ __forceinline__ void expect(int blocks) { target_ += blocks; }

 private:
  uint32_t* count_;
  uint32_t target_ = 0;
};

}  // namespace qwen2::cuda
