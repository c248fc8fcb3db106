// A warp's chunks in flight to shared memory, from Ampere on. Each lane reads the codes that it copied
// itself. For Turing see product_registers.cuh.
#pragma once

#include "kernels/cuda/common/shared_memory.cuh"
#include "kernels/cuda/common/unpack.cuh"
#include "kernels/cuda/product/tile_range.cuh"

namespace qwen2::cuda {

// A lane's codes of one chunk.
struct LaneChunk {
  uint4 low, high;    // rows g and g + 8
  uint32_t scale[2];  // fp16 bits
};

// Bytes of each slot of a ring. All codes of a warp come before its scales, because copies of whole 128-byte
// lines are fastest.
constexpr int kSlotCodes = kTileRows * kChunkBytes;
constexpr int kSlotScales = kTileRows * 2;
// Scales have one slot more than codes: a scale is overwritten one chunk after it was read, so that every
// lane of the warp has read it.
constexpr int ring_bytes(bool scaled, int depth) {
  return (depth * kSlotCodes + (scaled ? (depth + 1) * kSlotScales : 0) + 127) / 128 * 128;
}

// The L2 cache policy of weights: evict first. They are read once a step, and must not evict what every layer
// reads again, the kernels' code included.
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

// A ring of `depth` slots.
template <bool scaled, int depth>
class Ring {
 public:
  static constexpr int kSlots = 1;  // named at compile time: see RegisterRing
  static constexpr int kPrefetchDepth = depth;
  static constexpr int kUnit = 1;  // chunks that are loaded together

  __device__ __forceinline__ explicit Ring(const void* memory)
      : begin_(shared_address(memory) + lane() * 16),
        at_(begin_),
        scales_(first_scales() + kSlotScales),
        policy_(read_once_policy()) {}

  // Issues the copy of the chunk at `codes`, into the slot of the last chunk taken, and of this lane's 16
  // bytes of its scales. advance() follows; without start() before it, it marks the end of the warp's
  // chunks.
  __device__ __forceinline__ void start(const uint8_t* codes, uint32_t high_row, const uint16_t* scales) {
    copy_once(at_, codes, policy_);
    copy_once(at_ + kSlotCodes / 2, codes + high_row, policy_);
    if (scaled && lane() < 2) {
      const bool first = scales_ == first_scales();
      copy_once(scales_ + (first ? depth * kSlotScales : -kSlotScales), scales, policy_);
    }
  }
  __device__ __forceinline__ void advance() {
    end_copies();
    const bool last = at_ == begin_ + (depth - 1) * kSlotCodes;
    at_ = last ? begin_ : at_ + kSlotCodes;
    if (!scaled) return;
    const bool last_scales = scales_ == first_scales() + depth * kSlotScales;
    scales_ = last_scales ? first_scales() : scales_ + kSlotScales;
  }
  // Waits for the oldest chunk and returns it. The next start() overwrites its slot.
  __device__ __forceinline__ LaneChunk take(int, int) {
    wait_copies<depth - 1>();
    if (scaled) __syncwarp();
    LaneChunk c;
    c.low = load_shared(at_);
    c.high = load_shared(at_ + kSlotCodes / 2);
    if (scaled) {
      const uint32_t of_row = scales_ - lane() * 16 + lane() / 4 * 2;
      c.scale[0] = load_shared_u16(of_row);
      c.scale[1] = load_shared_u16(of_row + kSlotScales / 2);
    }
    return c;
  }
  // The tile's row of which a lane with lane / 4 = g has the sum.
  static __device__ __forceinline__ int tile_row(int g) { return g; }

 private:
  static __device__ __forceinline__ uint32_t lane() { return threadIdx.x % kWarp; }
  [[nodiscard]] __device__ __forceinline__ uint32_t first_scales() const {
    return begin_ + depth * kSlotCodes;
  }
  // Addresses of this lane's part of the oldest chunk and of its scales. They are kept for each lane: ptxas
  // 13.0 gives copies with a cache policy wrong registers where part of the address is uniform.
  uint32_t begin_, at_, scales_;
  uint64_t policy_;
};

// Issues a warp's chunks in its order: tile by tile.
template <class Ring, MatrixForm form, bool scaled>
class ChunkLoader {
 public:
  __device__ __forceinline__ ChunkLoader(const DeviceMatrix& w, const TileRange<1>& range, int group_shift)
      : codes_(w.codes +
               chunk_offset(form, w.row_bytes, range.first_tile * kTileRows + threadIdx.x % kWarp / 4,
                            range.first_chunk) +
               threadIdx.x % 4 * 16),
        scales_(static_cast<const uint16_t*>(w.scales) + int64_t(range.first_tile) * w.groups * kTileRows +
                threadIdx.x % kWarp * 8),
        code_jump_(int64_t(range.tile_stride) * kTileRows * w.row_bytes -
                   int64_t(range.steps) * kTeamWarps * kNextChunk<form>),
        scale_jump_(range.tile_stride * w.groups * kTileRows),
        high_row_(static_cast<uint32_t>(form == MatrixForm::kF16 ? 8 * w.row_bytes : 8 * kChunkBytes)),
        left_(range.tiles * range.steps),
        step_(range.steps),
        steps_(range.steps),
        chunk_(range.first_chunk),
        first_chunk_(range.first_chunk),
        group_shift_(group_shift) {}

  // Issues the next chunk, if there is one.
  __device__ __forceinline__ void next(Ring& ring, int) {
    if (left_ > 0) {
      --left_;
      ring.start(codes_, high_row_, scaled ? scales_ + (chunk_ >> group_shift_) * kTileRows : nullptr);
      codes_ += kTeamWarps * kNextChunk<form>;
      if constexpr (scaled) chunk_ += kTeamWarps;
      if (--step_ == 0) {
        step_ = steps_;
        codes_ += code_jump_;
        if constexpr (scaled) {
          scales_ += scale_jump_;
          chunk_ = first_chunk_;
        }
      }
    }
    ring.advance();
  }
  // Chunks that are not issued yet.
  [[nodiscard]] __device__ __forceinline__ int left() const { return left_; }

 private:
  const uint8_t* codes_;
  const uint16_t* scales_;
  int64_t code_jump_;
  int scale_jump_;
  uint32_t high_row_;
  int left_, step_, steps_, chunk_, first_chunk_, group_shift_;
};

// A lane's operand a of step `s` (16 columns) of a chunk, as fp16.
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
