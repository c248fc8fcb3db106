// Chunks of a matrix on their way to a warp, and what the tensor cores take from one. From Ampere on they
// wait in shared memory, where each lane finds the codes that it copied itself; for Turing see
// product_registers.cuh.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/layout.h"
#include "kernels/cuda/common/unpack.cuh"

namespace qwen2::cuda {

struct LaneChunk {
  uint4 low, high;    // rows g and g + 8
  uint32_t scale[2];  // fp16 bits
};

// Of each stage: codes, and scales where products are made in digits, which have a place more: a warp copies
// scales where they were read one chunk ago, so that its lanes are done with them. All codes of a warp lie
// before its scales: copies want lines of 128 bytes.
constexpr int kStageCodes = kTileRows * kChunkBytes;
constexpr int kStageScales = kTileRows * 2;
constexpr int ring_bytes(bool scaled, int depth) {
  return (depth * kStageCodes + (scaled ? (depth + 1) * kStageScales : 0) + 127) / 128 * 128;
}

// What the second-level cache is told of weights: they come once a step and should not push out what every
// layer needs again, the kernels' code among it.
__device__ __forceinline__ uint64_t read_once_policy() {
  uint64_t policy = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
__device__ __forceinline__ void copy_once(uint32_t to, const void* from, uint64_t policy) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "l"(policy)
               : "memory");
#endif
}
// `depth` stages of shared memory.
template <bool scaled, int depth>
class Ring {
 public:
  static constexpr int kPlaces = 1;
  static constexpr int kAhead = depth;
  static constexpr int kUnit = 1;  // chunks that are taken together

  __device__ __forceinline__ explicit Ring(const void* memory)
      : begin_(shared_address(memory) + lane() * 16),
        at_(begin_),
        scales_(first_scales() + kStageScales),
        policy_(read_once_policy()) {}

  // Starts the chunk at `codes`, with its scales (of this lane's 16 bytes of them), where the last one was
  // taken, scales where those before it were. Followed by pass(), which alone says that there is nothing more
  // to start.
  __device__ __forceinline__ void start(const uint8_t* codes, uint32_t high_row, const uint16_t* scales) {
    copy_once(at_, codes, policy_);
    copy_once(at_ + kStageCodes / 2, codes + high_row, policy_);
    if (scaled && lane() < 2) {
      const bool first = scales_ == first_scales();
      copy_once(scales_ + (first ? depth * kStageScales : -kStageScales), scales, policy_);
    }
  }
  __device__ __forceinline__ void pass() {
    end_copies();
    const bool last = at_ == begin_ + (depth - 1) * kStageCodes;
    at_ = last ? begin_ : at_ + kStageCodes;
    if (!scaled) return;
    const bool last_scales = scales_ == first_scales() + depth * kStageScales;
    scales_ = last_scales ? first_scales() : scales_ + kStageScales;
  }
  // The oldest chunk, whose place the next start() fills.
  __device__ __forceinline__ LaneChunk take(int, int) {
    wait_copies<depth - 1>();
    if (scaled) __syncwarp();
    LaneChunk c;
    c.low = load_shared(at_);
    c.high = load_shared(at_ + kStageCodes / 2);
    if (scaled) {
      const uint32_t of_row = scales_ - lane() * 16 + lane() / 4 * 2;
      c.scale[0] = load_shared_u16(of_row);
      c.scale[1] = load_shared_u16(of_row + kStageScales / 2);
    }
    return c;
  }
  // The row of its tile whose sum lane / 4 = g has.
  static __device__ __forceinline__ int tile_row(int g) { return g; }

 private:
  static __device__ __forceinline__ uint32_t lane() { return threadIdx.x % kWarp; }
  [[nodiscard]] __device__ __forceinline__ uint32_t first_scales() const {
    return begin_ + depth * kStageCodes;
  }
  // Where this lane's part of the oldest chunk and of its scales lie. They differ from lane to lane:
  // ptxas 13.0 gives copies with a policy wrong registers where their address has a part that all lanes
  // share.
  uint32_t begin_, at_, scales_;
  uint64_t policy_;
};

// Warps that take the columns of a tile in turn. It decides in which order a sum is added up, so it is the
// same for every batch and matrix; with fewer, the two projections into the residual stream would have too
// few blocks, with more, adding up would cost more than it gains.
constexpr int kSplitWarps = 4;

// A warp's share of a matrix: every kSplitWarps-th chunk of some tiles, or pair of chunks (`unit` = 2).
template <int unit>
struct Walk {
  int first_tile, tile_stride, tiles;
  int first_chunk, steps;  // of each tile

  // Of at most `rounds` tiles, and of the columns' part `part`.
  __device__ __forceinline__ Walk(const DeviceMatrix& w, int first, int stride, int rounds, int part,
                                  int chunks_a_part, int in_team)
      : first_tile(first),
        tile_stride(stride),
        tiles(rounds),
        first_chunk(part * chunks_a_part + in_team * unit) {
    const int end = min((part + 1) * chunks_a_part, w.chunks());
    steps = max(0, (end - first_chunk + kSplitWarps * unit - 1) / (kSplitWarps * unit));
    while (tiles > 0 && first_tile + (tiles - 1) * tile_stride >= w.tiles()) --tiles;
  }
};

// From a chunk of some rows to their next one.
template <MatrixForm form>
constexpr int kNextChunk = form == MatrixForm::kF16 ? kChunkBytes : kTileRows * kChunkBytes;

// The chunks of a warp, in its order: tile by tile.
template <class Ring, MatrixForm form, bool scaled>
class Fetch {
 public:
  __device__ __forceinline__ Fetch(const DeviceMatrix& w, const Walk<1>& walk, int group_shift)
      : codes_(w.codes +
               chunk_place(form, w.row_bytes, walk.first_tile * kTileRows + threadIdx.x % kWarp / 4,
                           walk.first_chunk) +
               threadIdx.x % 4 * 16),
        scales_(static_cast<const uint16_t*>(w.scales) + int64_t(walk.first_tile) * w.groups * kTileRows +
                threadIdx.x % kWarp * 8),
        code_jump_(int64_t(walk.tile_stride) * kTileRows * w.row_bytes -
                   int64_t(walk.steps) * kSplitWarps * kNextChunk<form>),
        scale_jump_(walk.tile_stride * w.groups * kTileRows),
        high_row_(static_cast<uint32_t>(form == MatrixForm::kF16 ? 8 * w.row_bytes : 8 * kChunkBytes)),
        left_(walk.tiles * walk.steps),
        step_(walk.steps),
        steps_(walk.steps),
        chunk_(walk.first_chunk),
        first_chunk_(walk.first_chunk),
        group_shift_(group_shift) {}

  // Starts the next chunk, if there is one.
  __device__ __forceinline__ void next(Ring& ring, int) {
    if (left_ > 0) {
      --left_;
      ring.start(codes_, high_row_, scaled ? scales_ + (chunk_ >> group_shift_) * kTileRows : nullptr);
      codes_ += kSplitWarps * kNextChunk<form>;
      if constexpr (scaled) chunk_ += kSplitWarps;
      if (--step_ == 0) {
        step_ = steps_;
        codes_ += code_jump_;
        if constexpr (scaled) {
          scales_ += scale_jump_;
          chunk_ = first_chunk_;
        }
      }
    }
    ring.pass();
  }
  [[nodiscard]] __device__ __forceinline__ int left() const { return left_; }

 private:
  const uint8_t* codes_;
  const uint16_t* scales_;
  int64_t code_jump_;
  int scale_jump_;
  uint32_t high_row_;
  int left_, step_, steps_, chunk_, first_chunk_, group_shift_;
};

// The registers of step `s` (16 columns) of a chunk, as fp16.
template <MatrixForm form>
__device__ __forceinline__ void unpack_step(const LaneChunk& c, int s, uint32_t magic, uint32_t (&a)[4]) {
  if constexpr (form == MatrixForm::kF16) {
    a[0] = word_of(c.low, 2 * s);
    a[1] = word_of(c.high, 2 * s);
    a[2] = word_of(c.low, 2 * s + 1);
    a[3] = word_of(c.high, 2 * s + 1);
  } else {
    const int word = s % 4;
    const bool high = s >= 4;
    a[0] = unpack_pair<form>(word_of(c.low, word), false, high, magic);
    a[1] = unpack_pair<form>(word_of(c.high, word), false, high, magic);
    a[2] = unpack_pair<form>(word_of(c.low, word), true, high, magic);
    a[3] = unpack_pair<form>(word_of(c.high, word), true, high, magic);
  }
}

}  // namespace qwen2::cuda
