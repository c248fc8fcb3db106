// How the warps of a block divide the keys and values of one split, and load them from the paged cache.
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/kv_tile.cuh"

namespace qwen2::cuda {

// Eight warps leave room for blocks of the neighbouring kernels. At depth zero (see Tiles) kernels do not
// overlap, so a block has twelve.
template <int depth>
constexpr int kWarps = depth > 0 ? 8 : 12;
template <int depth>
constexpr int kThreads = kWarps<depth> * kWarp;

// The keys and values of one split of a row (split-KV), and the query heads that a block computes with them.
struct KvSplit {
  int kv_head, first_head, heads;
  int first_key, keys;
  const float* q;         // of the heads
  const uint32_t* pages;  // of the keys
};

// A warp's keys and values in flight, `depth` tiles ahead of the one it computes with. Tiles that are older
// than the step are issued before the previous kernel ends. Copies complete in the order of their issue. A
// depth of zero is for GPUs without asynchronous copies: keys and values of one tile take turns in one
// buffer, and the next ones are in flight to registers.
template <int dim, int bits, int depth>
class Tiles {
 public:
  using Tile = KvTile<dim, bits>;

  __device__ __forceinline__ Tiles(const RowAttentionArgs& a, const KvSplit& kv, uint32_t memory)
      : kv_(kv),
        memory_(memory),
        data_(a.cache.data + kv.kv_head * kPageBytes),
        page_stride_(a.heads.kv_heads * kPageBytes),
        page_(page_of(first())) {}

  [[nodiscard]] __device__ __forceinline__ int count(int tile) const {
    return max(0, min(kTileKeys, kv_.keys - tile * kTileKeys));
  }
  // start_older(), before the wait, issues those of the first tiles whose keys are all older than the step;
  // start_rest(), after it, the others.
  __device__ __forceinline__ void start_older(int older) { start_all(older - kv_.first_key); }
  __device__ __forceinline__ void start_rest() { start_all(kv_.keys); }
  // Waits for the keys (what = 0) or values (1) of a tile and returns their address.
  __device__ __forceinline__ uint32_t wait(int tile, int what) {
    if constexpr (!kAsync) Tile::store(pieces_, count(tile), place(tile, what));
    wait_copies<kStarts - 1>();
    if (what == 1 && count(tile) < kTileKeys) Tile::clear(count(tile), place(tile, 1));
    __syncwarp();
    if constexpr (!kAsync) start(what == 0 ? tile : tile + kWarps<depth>, 1 - what);
    return place(tile, what);
  }
  // The keys or values of a tile have been read: issues the next ones into their buffer.
  __device__ __forceinline__ void release(int tile, int what) {
    __syncwarp();
    if constexpr (kAsync) start(tile + depth * kWarps<depth>, what);
  }

 private:
  static constexpr int kPageBytes = static_cast<int>(kv_page_bytes(bits, dim));
  static constexpr int kTilesAPage = kPageTokens / kTileKeys;
  static constexpr int kStages = depth > 0 ? depth : 1;
  static constexpr int kStarts = depth > 0 ? 2 * depth : 1;  // keys or values in flight

  static __device__ __forceinline__ int first() { return threadIdx.x / kWarp; }
  [[nodiscard]] __device__ __forceinline__ uint32_t place(int tile, int what) const {
    return memory_ + (depth == 0 ? 0 : tile / kWarps<depth> % kStages * 2 + what) * Tile::kBytes;
  }
  // A split begins with a page.
  [[nodiscard]] __device__ __forceinline__ uint32_t page_of(int tile) const {
    return count(tile) > 0 ? __ldg(kv_.pages + tile / kTilesAPage) : 0;
  }
  // Issues the first tiles, as far as all of their keys are below `limit`.
  __device__ __forceinline__ void start_all(int limit) {
#pragma unroll 1
    for (; started_ < kStarts; ++started_) {
      const int tile = first() + started_ / 2 * kWarps<depth>;
      if (count(tile) > 0 && tile * kTileKeys + count(tile) > limit) return;
      start(tile, started_ % 2);
    }
  }
  // A tile's page number is loaded when the tile before it is issued.
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

  const KvSplit& kv_;
  uint32_t memory_;
  const std::byte* data_;  // of the KV head in page 0
  uint32_t page_stride_;
  uint32_t page_;
  int started_ = 0;
  typename Tile::Pieces pieces_;  // without asynchronous copies
};

}  // namespace qwen2::cuda
