// A warp's chunks in flight to registers, on Turing, which has no asynchronous copies to shared memory.
//
// Slots are indexed at compile time. Chunks are issued in rounds of one for each slot, and no branch leaves a
// round early. The compiler tracks all loads of a loop with one scoreboard: only in this form does it wait
// once at the beginning of a round instead of before every chunk.
#pragma once

#include "kernels/cuda/product/product_ring.cuh"

namespace qwen2::cuda {

// Whether chunks are loaded in pairs. Loads are fastest in whole lines of 128 bytes. Chunks of codes are
// contiguous; in fp16 a line is two neighbouring chunks of one row, eight pieces of 16 bytes. One load covers
// four rows: lane l loads piece l % 8 of row l / 8. The load of the four rows below swaps the halves of the
// line (piece l % 8 ^ 4). A lane then holds the first chunk of one row and the second chunk of another, so
// their sums stay apart until add_seconds() at the tile's end.
constexpr bool in_pairs(MatrixForm form) {
  return form == MatrixForm::kF16;
}

template <MatrixForm form, bool scaled, int chunks>
class RegisterRing {
 public:
  static constexpr int kUnit = in_pairs(form) ? 2 : 1;
  static constexpr int kSlots = chunks / kUnit;
  static constexpr int kPrefetchDepth = kSlots;

  __device__ __forceinline__ explicit RegisterRing(const void*) {}

  // Clears all slots. Loads are conditional: without this, a ring that is refilled in a loop would keep its
  // registers alive from one round to the next.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (Slot& p : slots_) p = {};
  }
  // Waits for the loads of a slot.
  __device__ __forceinline__ void wait(int slot) {
#pragma unroll
    for (uint4& v : slots_[slot].piece) asm volatile("mov.b32 %0, %0;" : "+r"(v.w));
  }

  // Issues the loads of the chunk at `codes`. Its rows g + 8 are `high_row` bytes further, the second chunk
  // of a pair `second` bytes.
  __device__ __forceinline__ void start(int slot, const uint8_t* codes, int64_t second, int64_t high_row,
                                        const uint16_t* scales) {
    Slot& p = slots_[slot];
    p.piece[0] = load_once(codes);
    p.piece[1] = load_once(codes + high_row);
    if constexpr (kUnit == 2) {
      p.piece[2] = load_once(codes + second);
      p.piece[3] = load_once(codes + second + high_row);
    }
    if (scaled) {
      p.scale[0] = __ldg(scales);
      p.scale[1] = __ldg(scales + 8);
    }
  }
  // Chunk `u` of a slot.
  __device__ __forceinline__ LaneChunk take(int slot, int u) const {
    const Slot& p = slots_[slot];
    if constexpr (kUnit == 1) return {p.piece[0], p.piece[1], {p.scale[0], p.scale[1]}};
    const bool own = (threadIdx.x % 8 < 4) == (u == 0);
    return {choose(own, p.piece[0], p.piece[kUnit]), choose(own, p.piece[1], p.piece[kUnit + 1]), {}};
  }
  static __device__ __forceinline__ int tile_row(int g) { return kUnit == 2 ? g / 2 + g % 2 * 4 : g; }

 private:
  struct Slot {
    uint4 piece[2 * kUnit];
    uint32_t scale[2];
  };
  static __device__ __forceinline__ uint4 choose(bool first, const uint4& a, const uint4& b) {
    return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
  }
  Slot slots_[kSlots];
};

// Issues a warp's chunks in its order: tile by tile. A tile's last round may have fewer chunks than slots.
template <class Ring, MatrixForm form, bool scaled>
class RoundLoader {
 public:
  __device__ __forceinline__ RoundLoader(const DeviceMatrix& w, const TileRange<Ring::kUnit>& range,
                                         int group_shift)
      : code_jump_(int64_t(range.tile_stride) * kTileRows * w.row_bytes -
                   int64_t((range.steps + Ring::kSlots - 1) / Ring::kSlots) * kRound),
        scale_jump_(range.tile_stride * w.groups * kTileRows),
        tiles_(range.tiles),
        step_(range.tiles > 0 ? range.steps : 0),
        steps_(range.steps),
        chunk_(range.first_chunk),
        first_chunk_(range.first_chunk),
        group_shift_(group_shift) {
    const int lane = threadIdx.x % kWarp;
    const int row = range.first_tile * kTileRows;
    codes_ = w.codes + chunk_offset(form, w.row_bytes, row, range.first_chunk);
    if constexpr (in_pairs(form)) {
      codes_ += lane / 8 * w.row_bytes + lane % 8 * 16;
      second_ = 4 * w.row_bytes + ((lane % 8 ^ 4) - lane % 8) * 16;
      high_row_ = 8 * w.row_bytes;
    } else {
      codes_ += lane * 16;
      high_row_ = 8 * kChunkBytes;
    }
    scales_ =
        static_cast<const uint16_t*>(w.scales) + int64_t(range.first_tile) * w.groups * kTileRows + lane / 4;
  }

  // Issues the chunk of `slot` in this round, if there is one.
  __device__ __forceinline__ void next(Ring& ring, int slot) {
    if (slot < step_) {
      ring.start(slot, codes_ + slot * kStep, second_, high_row_,
                 scaled ? scales_ + (chunk_ + slot * kTeamWarps >> group_shift_) * kTileRows : nullptr);
    }
    if (slot < Ring::kSlots - 1) return;
    codes_ += kRound;
    if constexpr (scaled) chunk_ += Ring::kSlots * kTeamWarps;
    step_ -= Ring::kSlots;
    if (step_ > 0) return;
    --tiles_;
    step_ = tiles_ > 0 ? steps_ : 0;
    codes_ += code_jump_;
    if constexpr (scaled) {
      scales_ += scale_jump_;
      chunk_ = first_chunk_;
    }
  }
  // Always 0: Turing has no dependent launch, so nothing waits for this number.
  [[nodiscard]] static __device__ __forceinline__ int left() { return 0; }

 private:
  static constexpr int kStep = kTeamWarps * Ring::kUnit * kNextChunk<form>;
  static constexpr int kRound = Ring::kSlots * kStep;
  const uint8_t* codes_;
  const uint16_t* scales_;
  int64_t code_jump_;
  int64_t second_ = 0;
  int64_t high_row_;
  int scale_jump_;
  int tiles_, step_, steps_, chunk_, first_chunk_, group_shift_;
};

}  // namespace qwen2::cuda
