// A warp's share of a skinny product: chunk by chunk through the tensor cores.
#pragma once

#include "kernels/cuda/product_ring.cuh"

namespace qwen2::cuda {

template <int NT>
using Sums = float[NT == 0 ? 1 : NT][4];  // NT = 0: one row, in every column

// Elements from a lane's activations of 32 columns to those of the next 32: one row lies as such in shared
// memory, several in blocks (see XOrder).
template <int NT>
constexpr int kNextActivations = NT == 0 ? 32 : 256;

// The activations of steps s and s + 1 of a chunk; `x` points at lane t's first ones.
template <int NT>
__device__ __forceinline__ void load_activations(const __half* x, int s, uint32_t (&b)[2][2]) {
  const uint4 v = *reinterpret_cast<const uint4*>(x + s / 2 * kNextActivations<NT>);
  b[0][0] = v.x;
  b[0][1] = v.y;
  b[1][0] = v.z;
  b[1][1] = v.w;
}

template <MatrixForm form, int NT, bool fine>
__device__ __forceinline__ void multiply_chunk(const DeviceMatrix& w, const LaneChunk& c, const __half* x,
                                               int64_t stride8, int tile, int chunk, int g, uint32_t magic,
                                               Sums<NT>& sums) {
  constexpr int steps = chunk_columns(form) / 16;
  constexpr int columns = NT == 0 ? 1 : NT;
  // Of even and odd steps, so that they need not wait for each other; on Turing registers are dearer.
  Sums<NT> parts[2] = {};
  Sums<NT> ones = {};
  const uint32_t one[4] = {0x3c003c00U, 0x3c003c00U, 0x3c003c00U, 0x3c003c00U};
#pragma unroll
  for (int s = 0; s < steps; s += 2) {
    uint32_t b[columns][2][2];
#pragma unroll
    for (int n = 0; n < columns; ++n) load_activations<NT>(x + n * stride8, s, b[n]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      unpack_step<form>(c, s + half, magic, a);
#pragma unroll
      for (int n = 0; n < columns; ++n) {
        if constexpr (form == MatrixForm::kF16) {
          mma_step(sums[n], a, b[n][half]);
        } else {
          mma_step(parts[kAsync ? half : 0][n], a, b[n][half]);
          if constexpr (is_general(form)) mma_step(ones[n], one, b[n][half]);
        }
      }
      if constexpr (form != MatrixForm::kF16) {
        const bool last = s + half + 1 == steps;
        float scale[2];
        float minimum[2] = {};
        if constexpr (fine) {
          const int next = chunk * chunk_columns(form) + (s + half + 1) * 16;
          if (!last && next % w.group != 0) continue;
          const int group = min((next - 16) / w.group, w.groups - 1);
          const int64_t at = (int64_t(tile) * w.groups + group) * kTileRows + g;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if constexpr (is_general(form)) {
              scale[i] = static_cast<const float*>(w.scales)[at + 8 * i];
              minimum[i] = w.minima[at + 8 * i];
            } else {
              scale[i] = __half2float(static_cast<const __half*>(w.scales)[at + 8 * i]);
            }
          }
        } else {
          if (!last) continue;
          scale[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(c.scale[0])));
          scale[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(c.scale[1])));
        }
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
          for (int i = 0; i < 4; i += NT == 0 ? 2 : 1) {
            sums[n][i] += scale[i / 2] * (kAsync ? parts[0][n][i] + parts[1][n][i] : parts[0][n][i]);
            parts[0][n][i] = parts[1][n][i] = 0;
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

// A warp's share of the product, with what `fetch` brings into `ring`. `x` points at lane t's activations of
// column 0. Calls finish(tile, how many before it, sums) when a tile is through, and asked_for(chunks that
// are left to ask for) after each chunk.
template <MatrixForm form, int NT, bool fine, class WarpRing, class WarpFetch, class Finish, class AskedFor>
__device__ __forceinline__ void multiply_tiles(const DeviceMatrix& w, const Walk& walk, WarpRing& ring,
                                               WarpFetch& fetch, const __half* x, int64_t stride8,
                                               const Finish& finish, const AskedFor& asked_for) {
  uint32_t magic;  // the exponent of 1024, in a register
  asm volatile("mov.u32 %0, 0x64646464;" : "=r"(magic));
  Sums<NT> sums = {};
  int tile = walk.first_tile;
  int turn = 0;
  const auto finish_tile = [&] {
    finish(tile, turn++, sums);
#pragma unroll
    for (auto& column : sums) {
#pragma unroll
      for (float& sum : column) sum = 0;
    }
    tile += walk.tile_stride;
  };
  if (walk.steps == 0) {
    for (int i = 0; i < walk.tiles; ++i) finish_tile();
  }
  int work = walk.tiles * walk.steps;
  int step = walk.steps;
  int chunk = walk.first_chunk;
  while (work > 0) {
#pragma unroll
    for (int i = 0; i < WarpRing::kPlaces; ++i) {
      if (work <= 0) break;
      --work;
      const LaneChunk taken = ring.take(i);
      multiply_chunk<form, NT, fine>(w, taken, x + chunk * (chunk_columns(form) / 32) * kNextActivations<NT>,
                                     stride8, tile, chunk, threadIdx.x % kWarp / 4, magic, sums);
      chunk += kSplitWarps;
      fetch.next(ring, i);
      asked_for(fetch.left());
      if (--step > 0) continue;
      step = walk.steps;
      chunk = walk.first_chunk;
      finish_tile();
    }
  }
}

}  // namespace qwen2::cuda
