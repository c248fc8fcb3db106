// How the warps of a block share a part of a row's keys and values, and have them brought from the paged
// cache.
#pragma once

#include "kernels/cuda/attention/kv_tile.cuh"
#include "kernels/cuda/kernels.h"

namespace qwen2::cuda {

// Eight warps leave room for blocks of the kernels before and after beside them. A depth of zero (see
// Tiles) has no such kernels: twelve warps have 192 keys in one tile each.
template <int depth>
constexpr int kWarps = depth > 0 ? 8 : 12;
template <int depth>
constexpr int kThreads = kWarps<depth> * kWarp;

// A block's part of a row.
struct Part {
  int kv_head, first_head, heads;
  int first_key, keys;
  const float* q;         // of its heads
  const uint32_t* pages;  // of its keys
};

// A warp's keys and values on their way, `depth` tiles ahead of what it works on; tiles that are older than
// the step come before the previous kernel ends. Copies are waited for in the order of their starts. A depth
// of zero is for chips without copies that go on by themselves, and little memory: keys and values of one
// tile take turns in one place, and what comes next is on its way to registers.
template <int dim, int bits, int depth>
class Tiles {
 public:
  using Tile = KvTile<dim, bits>;

  __device__ __forceinline__ Tiles(const RowAttentionArgs& a, const Part& part, uint32_t memory)
      : part_(part),
        memory_(memory),
        data_(a.cache.data + part.kv_head * kPageBytes),
        page_stride_(a.heads.kv_heads * kPageBytes),
        page_(page_of(first())) {}

  [[nodiscard]] __device__ __forceinline__ int count(int tile) const {
    return max(0, min(kTileKeys, part_.keys - tile * kTileKeys));
  }
  // Before the wait, and after it.
  __device__ __forceinline__ void begin(int older) { start_all(older - part_.first_key); }
  __device__ __forceinline__ void go_on() { start_all(part_.keys); }
  // Keys (what = 0) or values (1) of a tile, when they are there.
  __device__ __forceinline__ uint32_t arrived(int tile, int what) {
    if constexpr (!kAsync) Tile::store(pieces_, count(tile), place(tile, what));
    wait_copies<kStarts - 1>();
    if (what == 1 && count(tile) < kTileKeys) Tile::clear(count(tile), place(tile, 1));
    __syncwarp();
    if constexpr (!kAsync) start(what == 0 ? tile : tile + kWarps<depth>, 1 - what);
    return place(tile, what);
  }
  // They are read: what comes next in their place.
  __device__ __forceinline__ void read(int tile, int what) {
    __syncwarp();
    if constexpr (kAsync) start(tile + depth * kWarps<depth>, what);
  }

 private:
  static constexpr int kPageBytes = static_cast<int>(kv_page_bytes(bits, dim));
  static constexpr int kTilesAPage = kPageTokens / kTileKeys;
  static constexpr int kStages = depth > 0 ? depth : 1;
  static constexpr int kStarts = depth > 0 ? 2 * depth : 1;  // of keys or values, ahead

  static __device__ __forceinline__ int first() { return threadIdx.x / kWarp; }
  [[nodiscard]] __device__ __forceinline__ uint32_t place(int tile, int what) const {
    return memory_ + (depth == 0 ? 0 : tile / kWarps<depth> % kStages * 2 + what) * Tile::kBytes;
  }
  // A part begins with a page.
  [[nodiscard]] __device__ __forceinline__ uint32_t page_of(int tile) const {
    return count(tile) > 0 ? __ldg(part_.pages + tile / kTilesAPage) : 0;
  }
  // The first tiles, as far as all of their keys are below `limit`.
  __device__ __forceinline__ void start_all(int limit) {
#pragma unroll 1
    for (; started_ < kStarts; ++started_) {
      const int tile = first() + started_ / 2 * kWarps<depth>;
      if (count(tile) > 0 && tile * kTileKeys + count(tile) > limit) return;
      start(tile, started_ % 2);
    }
  }
  // The page of each tile is asked for when the one before it is started.
  __device__ __forceinline__ void start(int tile, int what) {
    if (count(tile) > 0) {
      const std::byte* page = data_ + int64_t(page_) * page_stride_;
      const int row = what * kPageTokens + tile % kTilesAPage * kTileKeys;
      const std::byte* rows = page + row * Tile::kRowBytes;
      const std::byte* scales = page + 2 * kPageTokens * dim + row * 2;
      if constexpr (kAsync) {
        Tile::copy(rows, scales, count(tile), place(tile, what));
      } else {
        Tile::load(rows, scales, count(tile), pieces_);
      }
    }
    end_copies();
    if (what == 1) page_ = page_of(tile + kWarps<depth>);
  }

  const Part& part_;
  uint32_t memory_;
  const std::byte* data_;  // of the KV head in page 0
  uint32_t page_stride_;
  uint32_t page_;
  int started_ = 0;
  typename Tile::Pieces pieces_;  // where copies cannot go on by themselves
};

}  // namespace qwen2::cuda
