// A tile of sixteen keys or values of one KV head: loaded from a page to a warp's shared memory, and from
// there to operands of the tensor cores.
//
// The 16-byte pieces of a row are permuted so that eight rows are in different banks. fp16 is read as 8 x 8
// matrices. 8-bit codes become fp16 in registers, exactly; the caller applies their scales. The two formats
// assign dimensions to the steps of a product differently: see query_dim() and value_dim().
#pragma once

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/common/shared_memory.cuh"
#include "kernels/cuda/common/unpack.cuh"

namespace qwen2::cuda {

constexpr int kTileKeys = 16;
// Tiles are aligned so that the address of a piece is a lane's base address with some bits flipped.
constexpr int kTileAlignment = 256;

// The first or last two codes of a word.
__device__ __forceinline__ uint32_t unpack_two(uint32_t word, bool last) {
  constexpr uint32_t kMagic = 0x64646464;  // see unpack_bytes()
  return last ? unpack_bytes<0x4342>(word, kMagic) : unpack_bytes<0x4140>(word, kMagic);
}

template <int dim, int bits>
struct KvTile {
  static constexpr int kRowBytes = dim * bits / 8;
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kScales = kTileKeys * kRowBytes;  // offset of the fp16 scales of 8-bit rows
  static constexpr int kBytes =
      (kScales + (bits == 8 ? kTileKeys * 2 : 0) + kTileAlignment - 1) / kTileAlignment * kTileAlignment;

  static constexpr int kRows = kWarp / kPieces;  // rows that a warp loads at once
  static constexpr int kLoads = kTileKeys / kRows;

  static constexpr int kFlipped = 7 & (kPieces - 1);
  static __device__ __forceinline__ int place(int row, int piece) {
    return row * kRowBytes + ((piece ^ (row & kFlipped)) * 16);
  }
  // The address of this lane's piece of the first rows, and from it that of the i-th rows.
  static __device__ __forceinline__ uint32_t own_place(uint32_t tile) {
    const int lane = threadIdx.x % kWarp;
    return tile + place(lane / kPieces, lane % kPieces);
  }
  static __device__ __forceinline__ uint32_t own_place(uint32_t own, int i) {
    return (own ^ (i * kRows & kFlipped) * 16) + i * kRows * kRowBytes;
  }

  // Issues the copies of the first `end` rows and of all scales. `rows` and `scales` point to the tile in its
  // page.
  static __device__ __forceinline__ void copy(const std::byte* rows, const std::byte* scales, int end,
                                              uint32_t out) {
    const int lane = threadIdx.x % kWarp;
    const uint32_t own = own_place(out);
    const std::byte* from = rows + lane * 16;
    const auto copy_rows = [&](int i) { copy_16(own_place(own, i), from + i * kWarp * 16); };
    if (end == kTileKeys) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) copy_rows(i);
    } else {
#pragma unroll 1
      for (int i = 0; i * kRows + lane / kPieces < end; ++i) copy_rows(i);
    }
    if (bits == 8 && lane < 2) copy_16(out + kScales + lane * 16, scales + lane * 16);
  }
  // The same in two steps, where there are no asynchronous copies: load() to registers, then store().
  struct Pieces {
    uint4 rows[kLoads];
    uint4 scales;
  };
  static __device__ __forceinline__ void load(const std::byte* rows, const std::byte* scales, int end,
                                              Pieces& pieces) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (i * kRows + lane / kPieces < end)
        pieces.rows[i] = __ldcg(reinterpret_cast<const uint4*>(rows + (lane + i * kWarp) * 16));
    }
    if (bits == 8 && lane < 2) pieces.scales = __ldcg(reinterpret_cast<const uint4*>(scales + lane * 16));
  }
  static __device__ __forceinline__ void store(const Pieces& pieces, int end, uint32_t out) {
    const int lane = threadIdx.x % kWarp;
    const uint32_t own = own_place(out);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (i * kRows + lane / kPieces < end) store_16(own_place(own, i), pieces.rows[i]);
    }
    if (bits == 8 && lane < 2) store_16(out + kScales + lane * 16, pieces.scales);
  }
  // Zeroes the rows from `end` on: 0 * infinity would be NaN.
  static __device__ __forceinline__ void clear(int end, uint32_t out) {
    for (int i = end * kPieces + static_cast<int>(threadIdx.x) % kWarp; i < kTileKeys * kPieces; i += kWarp)
      store_16(out + place(i / kPieces, i % kPieces), {});
  }
  static __device__ __forceinline__ float scale(uint32_t tile, int row) {
    if constexpr (bits == 16) return 1;
    return __half2float(
        __ushort_as_half(static_cast<unsigned short>(load_shared_u16(tile + kScales + row * 2))));
  }

  // The first of the two neighbouring query dimensions of lane t in a step of 16, in the low (half = 0) or
  // high columns of the step.
  static __device__ __forceinline__ constexpr int query_dim(int step, int t, int half) {
    return bits == 16 ? step * 16 + half * 8 + 2 * t : dim / 4 * t + step * 4 + 2 * half;
  }
  // The dimension of column c of the n-th eight of a sum of values.
  static __device__ __forceinline__ int value_dim(int n, int c) {
    return bits == 16 ? n * 8 + c : dim / 8 * c + n;
  }

  // scores[.][n][0, 1] += row g of the queries times keys 8 n + 2 t and the next; [2, 3] the same of row g
  // + 8. Even and odd steps have sums of their own, so that they are independent. `queries` [dim / 16][32]
  // is the left operand, lane by lane.
  static __device__ __forceinline__ void score(uint32_t keys, uint32_t queries, float (&scores)[2][2][4]) {
    const int lane = threadIdx.x % kWarp;
    uint32_t words[2][dim / 16];  // 8 bits: this lane's codes of its two keys
    if constexpr (bits == 8) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < dim / 64; ++i) {
          const int piece = lane % 4 * (dim / 64) + i;
          const uint4 v = load_shared(keys + place(n * 8 + lane / 4, piece));
#pragma unroll
          for (int j = 0; j < 4; ++j) words[n][i * 4 + j] = word_of(v, j) ^ 0x80808080U;
        }
      }
    }
    const uint32_t own = keys + place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int step = 0; step < dim / 16; ++step) {
      const uint4 q = load_shared(queries + (step * kWarp + lane) * 16);
      const uint32_t a[4] = {q.x, q.y, q.z, q.w};
      uint32_t b[4];
      if constexpr (bits == 16) {
        load_matrices(b, own ^ step * 32);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = unpack_two(words[i / 2][step], i % 2);
      }
      const uint32_t low[2] = {b[0], b[1]};
      const uint32_t high[2] = {b[2], b[3]};
      mma_step(scores[step % 2][0], a, low);
      mma_step(scores[step % 2][1], a, high);
    }
  }

  // sums += weights * values. `weights` is the left operand, its columns are the keys.
  static __device__ __forceinline__ void add(uint32_t values, const uint32_t (&weights)[4],
                                             float (&sums)[dim / 8][4]) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (bits == 16) {
      const uint32_t own = values + place(lane % 16, lane / 16);
#pragma unroll
      for (int n = 0; n < dim / 8; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, own ^ n * 16);
        const uint32_t low[2] = {b[0], b[1]};
        const uint32_t high[2] = {b[2], b[3]};
        mma_step(sums[n], weights, low);
        mma_step(sums[n + 1], weights, high);
      }
    } else {
      // The codes of keys 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: eight or sixteen dimensions of each.
      constexpr int kWords = dim / 32;
      uint32_t code[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int byte = lane / 4 * (dim / 8);
        const int row = lane % 4 * 2 + i / 2 * 8 + i % 2;
        const uint32_t at = values + place(row, byte / 16) + byte % 16;
        if constexpr (dim == 128) {
          const uint4 v = load_shared(at);
#pragma unroll
          for (int j = 0; j < 4; ++j) code[i][j] = word_of(v, j) ^ 0x80808080U;
        } else {
          const uint2 v = load_shared_8(at);
          code[i][0] = v.x ^ 0x80808080U;
          code[i][1] = v.y ^ 0x80808080U;
        }
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        uint32_t pairs[2][2];  // of two keys side by side
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          pairs[half][0] = __byte_perm(code[2 * half][word], code[2 * half + 1][word], 0x5140);
          pairs[half][1] = __byte_perm(code[2 * half][word], code[2 * half + 1][word], 0x7362);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t b[2] = {unpack_two(pairs[0][i / 2], i % 2), unpack_two(pairs[1][i / 2], i % 2)};
          mma_step(sums[word * 4 + i], weights, b);
        }
      }
    }
  }
};

}  // namespace qwen2::cuda
