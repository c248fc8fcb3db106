// One block waits for others of its kernel, all of which are on the card at once.
//
// Blocks count themselves in; whoever waits for a count reads what they wrote before from the second-level
// cache (__ldcg), where the release has put it.
#pragma once

#include <cstdint>

namespace qwen2::cuda {

// By one thread, behind a barrier of its block: what the block wrote is there for everyone.
__device__ __forceinline__ void count_in(uint32_t* count) {
  asm volatile("red.add.release.gpu.u32 [%0], 1;" ::"l"(count) : "memory");
}
// By one thread, before a barrier of its block: returns when `target` blocks have counted themselves in.
__device__ __forceinline__ void wait_for_count(const uint32_t* count, uint32_t target) {
  uint32_t now;
  do {
    asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
  } while (now < target);
}

}  // namespace qwen2::cuda
