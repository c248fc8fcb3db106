// A block's keys and values on their way from the paged cache.
#pragma once

#include <climits>

#include "kernels/cuda/attend_rows.cuh"

namespace qwen2::cuda {

// Loads of kUnroll keys or values by a group of lanes that share one.
template <int dim, int bits, int loads, int threads>
struct Batch {
  static constexpr int kUnroll = loads;
  static constexpr int lanes = dim / kElements;
  static constexpr int stride = threads / lanes;
  Packed<bits> values[kUnroll];
  float scale[kUnroll];

  // Of keys begin + u * stride below `keys`, counted from `first_key`; those outside of [from, to) are left
  // out.
  __device__ __forceinline__ void load(const RowAttentionArgs& a, const uint32_t* pages, int kv_head,
                                       int what, int first_key, int begin, int keys, int from, int to) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int key = min(begin + u * stride, keys - 1) + first_key;
      if (key < from || key >= to) continue;
      const PageView<dim, bits> page(a.cache, pages[key / kPageTokens], a.heads.kv_heads, kv_head);
      values[u] = page.load(what, key % kPageTokens, threadIdx.x % lanes);
      scale[u] = page.scale(what, key % kPageTokens);
    }
  }
};

// A block's keys and then its values, batch by batch. From Ampere on the next batches are on their way in
// shared memory, where each lane finds what it copied itself; before, the first of both are in registers.
template <int dim, int bits, int loads, int threads, int depth>
class KvStream {
 public:
  using B = Batch<dim, bits, loads, threads>;
  static constexpr int kScaleBytes = bits == 8 ? 4 : 0;  // the least that can be copied: scales of two keys
  static constexpr int kStage = threads * loads * (static_cast<int>(sizeof(Packed<bits>)) + kScaleBytes);

  __device__ __forceinline__ KvStream(const RowAttentionArgs& a, const uint32_t* pages, int kv_head,
                                      int first_key, int keys, std::byte* memory)
      : a_(a),
        pages_(pages),
        kv_head_(kv_head),
        first_key_(first_key),
        keys_(keys),
        batches_((keys + B::stride * loads - 1) / (B::stride * loads)),
        memory_(memory) {}

  // Of keys and of values each.
  [[nodiscard]] __device__ __forceinline__ int batches() const { return batches_; }
  [[nodiscard]] static __device__ __forceinline__ int first_key(int batch) {
    return batch * B::stride * loads + threadIdx.x / B::lanes;
  }

  // Before the wait: what the previous kernels do not write.
  __device__ __forceinline__ void begin(int older) {
    if constexpr (kAsync) {
      while (started_ < depth && started_ < 2 * batches_ && is_old(started_ % batches_, older)) start();
    } else {
      first_[0].load(a_, pages_, kv_head_, 0, first_key_, first_key(0), keys_, 0, older);
      first_[1].load(a_, pages_, kv_head_, 1, first_key_, first_key(0), keys_, 0, older);
    }
  }
  // After it.
  __device__ __forceinline__ void go_on(int older) {
    if constexpr (kAsync) {
      while (started_ < depth) start();
    } else {
      first_[0].load(a_, pages_, kv_head_, 0, first_key_, first_key(0), keys_, older, INT_MAX);
      first_[1].load(a_, pages_, kv_head_, 1, first_key_, first_key(0), keys_, older, INT_MAX);
    }
  }
  // The next batch, of keys (what = 0) or values (1).
  __device__ __forceinline__ B take(int what, int batch) {
    if constexpr (kAsync) {
      wait_copies<depth - 1>();
      const B taken = staged(what, batch);
      start();
      return taken;
    } else {
      if (batch == 0) return what == 0 ? first_[0] : first_[1];
      B taken;
      taken.load(a_, pages_, kv_head_, what, first_key_, first_key(batch), keys_, 0, INT_MAX);
      return taken;
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ bool is_old(int batch, int older) const {
    return first_key_ + min((batch + 1) * B::stride * loads, keys_) <= older;
  }
  [[nodiscard]] __device__ __forceinline__ int key_of(int batch, int u) const {
    return min(first_key(batch) + u * B::stride, keys_ - 1) + first_key_;
  }
  [[nodiscard]] __device__ __forceinline__ std::byte* place(int stage, int u) const {
    return memory_ + stage * kStage + (u * threads + threadIdx.x) * sizeof(Packed<bits>);
  }
  [[nodiscard]] __device__ __forceinline__ std::byte* scale_place(int stage, int u) const {
    return memory_ + stage * kStage + threads * loads * sizeof(Packed<bits>) +
           (u * threads + threadIdx.x) * 4;
  }
  // Starts the next batch, if there is one.
  __device__ __forceinline__ void start() {
    if (started_ < 2 * batches_) {
      const int what = started_ < batches_ ? 0 : 1;
      const int batch = started_ - what * batches_;
#pragma unroll
      for (int u = 0; u < loads; ++u) {
        if (first_key(batch) + u * B::stride >= keys_) continue;
        const int key = key_of(batch, u);
        const PageView<dim, bits> page(a_.cache, pages_[key / kPageTokens], a_.heads.kv_heads, kv_head_);
        const std::byte* from = page.at(what, key % kPageTokens, threadIdx.x % B::lanes);
        if constexpr (bits == 16) {
          copy_16(place(started_ % depth, u), from);
        } else {
          copy_small<8>(place(started_ % depth, u), from);
          copy_small<4>(scale_place(started_ % depth, u), page.scales(what, key % kPageTokens / 2 * 2));
        }
      }
    }
    end_copies();
    ++started_;
  }
  [[nodiscard]] __device__ __forceinline__ B staged(int what, int batch) const {
    const int stage = (what * batches_ + batch) % depth;
    B taken;
#pragma unroll
    for (int u = 0; u < loads; ++u) {
      taken.values[u] = *reinterpret_cast<const Packed<bits>*>(place(stage, u));
      taken.scale[u] = 1;
      if constexpr (bits == 8) {
        const auto* two = reinterpret_cast<const __half*>(scale_place(stage, u));
        taken.scale[u] = __half2float(two[key_of(batch, u) % 2]);
      }
    }
    return taken;
  }

  const RowAttentionArgs& a_;
  const uint32_t* pages_;
  int kv_head_, first_key_, keys_, batches_;
  std::byte* memory_;
  int started_ = 0;
  B first_[kAsync ? 1 : 2];
};

}  // namespace qwen2::cuda
