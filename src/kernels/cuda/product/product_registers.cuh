// Chunks on their way to a warp on Turing, which has no copies into shared memory: in registers.
//
// Places are named at compile time, and chunks come in rounds of one for each place, so that a round has no
// branch that leaves it: the compiler has one wait for all loads that are on their way in a loop (it keeps
// track of few), and only in this form puts it at the beginning of a round instead of before every chunk.
#pragma once

#include "kernels/cuda/product/product_ring.cuh"

namespace qwen2::cuda {

// Memory wants whole lines of 128 bytes of each load of a warp. Chunks of codes lie as such. Rows of fp16 lie
// apart: there a warp takes pairs of chunks, four rows a load. Lane l brings piece l % 8 of rows l / 8 and
// l / 8 + 8, and piece l % 8 ^ 4 of rows four further: so it has a chunk of one row's and the other chunk of
// another's for the tensor cores. Sums of first and of second chunks stay apart until the tile's end, when
// those of second chunks go to the lanes that have their row.
constexpr bool in_pairs(MatrixForm form) {
  return form == MatrixForm::kF16;
}

template <MatrixForm form, bool scaled, int places>
class RegisterRing {
 public:
  static constexpr int kUnit = in_pairs(form) ? 2 : 1;
  static constexpr int kPlaces = places / kUnit;
  static constexpr int kAhead = kPlaces;

  __device__ __forceinline__ explicit RegisterRing(const void*) {}

  // Nothing of it is needed any more. Where a ring is filled again in a loop, this has to be said: loads are
  // conditional, so that registers would be kept for what they leave as it is.
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (Place& p : places_) p = {};
  }
  // Returns when what was started at the place is there.
  __device__ __forceinline__ void await(int place) {
#pragma unroll
    for (uint4& v : places_[place].piece) asm volatile("mov.b32 %0, %0;" : "+r"(v.w));
  }

  // Starts what lies at `codes`, whose other rows lie `further` and `high_row` bytes further.
  __device__ __forceinline__ void start(int place, const uint8_t* codes, int64_t further, int64_t high_row,
                                        const uint16_t* scales) {
    Place& p = places_[place];
    p.piece[0] = load_once(codes);
    p.piece[1] = load_once(codes + high_row);
    if constexpr (kUnit == 2) {
      p.piece[2] = load_once(codes + further);
      p.piece[3] = load_once(codes + further + high_row);
    }
    if (scaled) {
      p.scale[0] = __ldg(scales);
      p.scale[1] = __ldg(scales + 8);
    }
  }
  // Chunk `u` of the place.
  __device__ __forceinline__ LaneChunk take(int place, int u) const {
    const Place& p = places_[place];
    if constexpr (kUnit == 1) return {p.piece[0], p.piece[1], {p.scale[0], p.scale[1]}};
    const bool own = (threadIdx.x % 8 < 4) == (u == 0);
    return {choose(own, p.piece[0], p.piece[kUnit]), choose(own, p.piece[1], p.piece[kUnit + 1]), {}};
  }
  static __device__ __forceinline__ int tile_row(int g) { return kUnit == 2 ? g / 2 + g % 2 * 4 : g; }

 private:
  struct Place {
    uint4 piece[2 * kUnit];
    uint32_t scale[2];
  };
  static __device__ __forceinline__ uint4 choose(bool first, const uint4& a, const uint4& b) {
    return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
  }
  Place places_[kPlaces];
};

// The chunks of a warp, in its order: tile by tile, the last round of a tile with fewer.
template <class Ring, MatrixForm form, bool scaled>
class FetchRounds {
 public:
  __device__ __forceinline__ FetchRounds(const DeviceMatrix& w, const Walk<Ring::kUnit>& walk,
                                         int group_shift)
      : code_jump_(int64_t(walk.tile_stride) * kTileRows * w.row_bytes -
                   int64_t((walk.steps + Ring::kPlaces - 1) / Ring::kPlaces) * kRound),
        scale_jump_(walk.tile_stride * w.groups * kTileRows),
        tiles_(walk.tiles),
        step_(walk.tiles > 0 ? walk.steps : 0),
        steps_(walk.steps),
        chunk_(walk.first_chunk),
        first_chunk_(walk.first_chunk),
        group_shift_(group_shift) {
    const int lane = threadIdx.x % kWarp;
    const int row = walk.first_tile * kTileRows;
    codes_ = w.codes + chunk_place(form, w.row_bytes, row, walk.first_chunk);
    if constexpr (in_pairs(form)) {
      codes_ += lane / 8 * w.row_bytes + lane % 8 * 16;
      further_ = 4 * w.row_bytes + ((lane % 8 ^ 4) - lane % 8) * 16;
      high_row_ = 8 * w.row_bytes;
    } else {
      codes_ += lane * 16;
      high_row_ = 8 * kChunkBytes;
    }
    scales_ =
        static_cast<const uint16_t*>(w.scales) + int64_t(walk.first_tile) * w.groups * kTileRows + lane / 4;
  }

  // Starts what belongs to `place` in this round, if there is something.
  __device__ __forceinline__ void next(Ring& ring, int place) {
    if (place < step_) {
      ring.start(place, codes_ + place * kStep, further_, high_row_,
                 scaled ? scales_ + (chunk_ + place * kSplitWarps >> group_shift_) * kTileRows : nullptr);
    }
    if (place < Ring::kPlaces - 1) return;
    codes_ += kRound;
    if constexpr (scaled) chunk_ += Ring::kPlaces * kSplitWarps;
    step_ -= Ring::kPlaces;
    if (step_ > 0) return;
    --tiles_;
    step_ = tiles_ > 0 ? steps_ : 0;
    codes_ += code_jump_;
    if constexpr (scaled) {
      scales_ += scale_jump_;
      chunk_ = first_chunk_;
    }
  }
  // Nobody is let in when few are left.
  [[nodiscard]] static __device__ __forceinline__ int left() { return 0; }

 private:
  static constexpr int kStep = kSplitWarps * Ring::kUnit * kNextChunk<form>;
  static constexpr int kRound = Ring::kPlaces * kStep;
  const uint8_t* codes_;
  const uint16_t* scales_;
  int64_t code_jump_;
  int64_t further_ = 0;
  int64_t high_row_;
  int scale_jump_;
  int tiles_, step_, steps_, chunk_, first_chunk_, group_shift_;
};

}  // namespace qwen2::cuda
