// A warp's share of a skinny product: chunk by chunk through the tensor cores.
#pragma once

#include "kernels/cuda/common/split_int8.cuh"
#include "kernels/cuda/product/product_registers.cuh"

namespace qwen2::cuda {

template <int NT>
using Sums = float[NT == 0 ? 1 : NT][4];  // NT = 0: one row, in every column

// Where a lane finds its activations of column 0: one row lies as such in shared memory, several in blocks of
// 8 rows (see XOrder).
struct Activations {
  const std::byte* x;
  int64_t eight_rows;   // bytes to those of the next 8 rows
  const float* scales;  // of digits: one row's, or [.][kMaxRows] from this lane's first row on
};

// Bytes from the activations of 32 columns to those of the next 32, and of digits of 64.
template <int NT>
constexpr int kNextActivations = NT == 0 ? 64 : 512;
template <int NT>
constexpr int kNextDigits = NT == 0 ? 128 : 1024;
// From the digits of one row to those of its neighbour.
constexpr int kNeighbour = 512;

// The activations of steps s and s + 1 of a chunk; `x` points at lane t's first ones.
template <int NT>
__device__ __forceinline__ void load_activations(const std::byte* x, int s, uint32_t (&b)[2][2]) {
  const uint4 v = *reinterpret_cast<const uint4*>(x + s / 2 * kNextActivations<NT>);
  b[0][0] = v.x;
  b[0][1] = v.y;
  b[1][0] = v.z;
  b[1][1] = v.w;
}

__device__ __forceinline__ void chunk_scales(const LaneChunk& c, float (&scale)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    scale[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(c.scale[i])));
}

// A chunk's codes as signed bytes, 64 columns each; those of 4 bits times 16.
template <MatrixForm form>
__device__ __forceinline__ void signed_bytes(const LaneChunk& c, int half, int step, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = word_of(i % 2 == 0 ? c.low : c.high, step * 2 + i / 2);
    a[i] = form == MatrixForm::kInt8 ? word : (half == 0 ? word << 4 : word) & 0xf0f0f0f0U;
  }
}

// A chunk in integers. `x` points at its activations, `scales` at theirs.
template <MatrixForm form, int NT>
__device__ __forceinline__ void multiply_digits(const LaneChunk& c, const std::byte* x, int64_t eight_rows,
                                                const float* scales, Sums<NT>& sums) {
  constexpr int halves = form == MatrixForm::kInt8 ? 1 : 2;
  constexpr float unit = form == MatrixForm::kInt8 ? 1 : 1 / 16.0F;
  uint32_t a[halves][2][4];
#pragma unroll
  for (int i = 0; i < halves * 2; ++i) signed_bytes<form>(c, i / 2, i % 2, a[i / 2][i % 2]);
  float scale[2];
  chunk_scales(c, scale);
  constexpr int rows = NT == 0 ? 1 : 2;  // neighbours, whose digits are four columns each
#pragma unroll
  for (int n = 0; n < (NT == 0 ? 1 : NT); ++n) {
    float of_row[2];
    if constexpr (NT == 0) {
      of_row[0] = scales[0];
    } else {
      const float2 both = __ldcg(reinterpret_cast<const float2*>(scales + n * 8));
      of_row[0] = both.x;
      of_row[1] = both.y;
    }
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      int sum[2][4] = {};
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        const uint4 b =
            *reinterpret_cast<const uint4*>(x + n * eight_rows + row * kNeighbour + half * kNextDigits<NT>);
        mma_integer(sum[0], a[half][0], b.x, b.y);
        mma_integer(sum[NT == 0 ? 1 : 0], a[half][1], b.z, b.w);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float value =
            __int2float_rn(256 * (sum[0][2 * i] + sum[1][2 * i]) + (sum[0][2 * i + 1] + sum[1][2 * i + 1]));
        float& to = sums[n][NT == 0 ? 2 * i : 2 * i + row];
        to = __fmaf_rn(value, __fmul_rn(scale[i], __fmul_rn(of_row[row], unit)), to);
      }
    }
  }
}

// A chunk in fp16.
template <MatrixForm form, int NT>
__device__ __forceinline__ void multiply_halves(const DeviceMatrix& w, const LaneChunk& c, const std::byte* x,
                                                int64_t eight_rows, int tile, int chunk, int g,
                                                uint32_t magic, Sums<NT>& sums) {
  constexpr int steps = chunk_columns(form) / 16;
  constexpr int columns = NT == 0 ? 1 : NT;
  Sums<NT> part = {};
  Sums<NT> ones = {};
  const uint32_t one[4] = {0x3c003c00U, 0x3c003c00U, 0x3c003c00U, 0x3c003c00U};
#pragma unroll
  for (int s = 0; s < steps; s += 2) {
    uint32_t b[columns][2][2];
#pragma unroll
    for (int n = 0; n < columns; ++n) load_activations<NT>(x + n * eight_rows, s, b[n]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      unpack_step<form>(c, s + half, magic, a);
#pragma unroll
      for (int n = 0; n < columns; ++n) {
        if constexpr (form == MatrixForm::kF16) {
          mma_step(sums[n], a, b[n][half]);
        } else {
          mma_step(part[n], a, b[n][half]);
          if constexpr (is_general(form)) mma_step(ones[n], one, b[n][half]);
        }
      }
      if constexpr (form != MatrixForm::kF16) {
        const int next = chunk * chunk_columns(form) + (s + half + 1) * 16;
        if (s + half + 1 < steps && next % w.group != 0) continue;
        const int group = min((next - 16) / w.group, w.groups - 1);
        const int64_t at = (int64_t(tile) * w.groups + group) * kTileRows + g;
        float scale[2];
        float minimum[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if constexpr (is_general(form)) {
            scale[i] = static_cast<const float*>(w.scales)[at + 8 * i];
            minimum[i] = w.minima[at + 8 * i];
          } else {
            scale[i] = __half2float(static_cast<const __half*>(w.scales)[at + 8 * i]);
          }
        }
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
          for (int i = 0; i < 4; i += NT == 0 ? 2 : 1) {
            sums[n][i] += scale[i / 2] * part[n][i];
            part[n][i] = 0;
            if constexpr (is_general(form)) {
              sums[n][i] -= minimum[i / 2] * ones[n][i];
              ones[n][i] = 0;
            }
          }
        }
      }
    }
  }
}

// `x` says where the activations of column 0 are.
template <MatrixForm form, int NT, bool fine>
__device__ __forceinline__ void multiply_chunk(const DeviceMatrix& w, const LaneChunk& c,
                                               const Activations& x, int tile, int chunk, uint32_t magic,
                                               Sums<NT>& sums) {
  if constexpr (kInDigits<form, fine>) {
    const int group = chunk * chunk_columns(form) / kDigitColumns;
    multiply_digits<form, NT>(c, x.x + chunk * (chunk_columns(form) / 64) * kNextDigits<NT>, x.eight_rows,
                              x.scales + group * (NT == 0 ? 1 : kMaxRows), sums);
  } else {
    multiply_halves<form, NT>(w, c, x.x + chunk * (chunk_columns(form) / 32) * kNextActivations<NT>,
                              x.eight_rows, tile, chunk, threadIdx.x % kWarp / 4, magic, sums);
  }
}

// The sums of second chunks to those of first ones, whose lanes have the same rows.
template <int NT>
__device__ __forceinline__ void add_seconds(Sums<NT> (&sums)[2]) {
#pragma unroll
  for (int n = 0; n < (NT == 0 ? 1 : NT); ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += NT == 0 ? 2 : 1)
      sums[0][n][i] += __shfl_xor_sync(kFullMask, sums[1][n][i], 4);
  }
}

// A warp's share of the product, with what `fetch` brings into `ring`. Calls finish(tile, how many before it,
// sums) when a tile is through, and asked_for(chunks that are left to ask for) after each place of the ring.
template <MatrixForm form, int NT, bool fine, class WarpRing, class WarpFetch, class Finish, class AskedFor>
__device__ __forceinline__ void multiply_tiles(const DeviceMatrix& w, const Walk<WarpRing::kUnit>& walk,
                                               WarpRing& ring, WarpFetch& fetch, const Activations& x,
                                               const Finish& finish, const AskedFor& asked_for) {
  uint32_t magic;  // the exponent of 1024, in a register
  asm volatile("mov.u32 %0, 0x64646464;" : "=r"(magic));
  constexpr int unit = WarpRing::kUnit;
  Sums<NT> sums[unit] = {};
  int tile = walk.first_tile;
#pragma unroll 1
  for (int turn = 0; turn < walk.tiles; ++turn) {
    int chunk = walk.first_chunk;
#pragma unroll 1
    for (int left = walk.steps; left > 0; left -= WarpRing::kPlaces) {
#pragma unroll
      for (int place = 0; place < WarpRing::kPlaces; ++place) {
        if (place == 0 || place < left) {
#pragma unroll
          for (int u = 0; u < unit; ++u) {
            multiply_chunk<form, NT, fine>(w, ring.take(place, u), x, tile,
                                           chunk + place * kSplitWarps * unit + u, magic, sums[u]);
          }
        }
        fetch.next(ring, place);
        asked_for(fetch.left());
      }
      chunk += WarpRing::kPlaces * kSplitWarps * unit;
    }
    if constexpr (unit == 2) add_seconds<NT>(sums);
    finish(tile, turn, sums[0]);
#pragma unroll
    for (auto& of_chunks : sums) {
#pragma unroll
      for (auto& column : of_chunks) {
#pragma unroll
        for (float& sum : column) sum = 0;
      }
    }
    tile += walk.tile_stride;
  }
}

}  // namespace qwen2::cuda
