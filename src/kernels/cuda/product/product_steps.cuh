// A warp's chunks through the tensor cores.
//
// NT is the number of eights of activation rows, each of which is the columns of one operand b. NT = 0 is one
// staged row, which fills all columns of b.
#pragma once

#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/common/split_int8.cuh"
#include "kernels/cuda/product/product_registers.cuh"

namespace qwen2::cuda {

template <int NT>
using Sums = float[NT == 0 ? 1 : NT][4];

// The addresses of a lane's activations of some column. One row is contiguous in shared memory; several lie
// in blocks of eight rows (see ActivationLayout).
struct Activations {
  const std::byte* x;
  int64_t eight_rows;   // bytes to the next eight rows
  const float* scales;  // of split int8: one row's, or [.][kMaxRows] from this lane's first row on
};

// Which chunk of which tile.
struct ChunkPlace {
  int tile, chunk;
};

// Bytes from the fp16 activations of 32 columns to those of the next 32, and from split int8 ones of 64
// columns to those of the next 64.
template <int NT>
constexpr int kNextActivations = NT == 0 ? 64 : 512;
template <int NT>
constexpr int kNextSplitInt8 = NT == 0 ? 128 : 1024;
// Bytes from the split int8 activations of a row to those of its neighbour.
constexpr int kNeighbour = 512;

// The operands b of steps s and s + 1 of a chunk. `x` is the address of lane t's first activations.
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

// Operand a of a chunk as signed bytes, 64 columns each; codes of 4 bits are multiplied by 16.
template <MatrixForm form>
__device__ __forceinline__ void signed_bytes(const LaneChunk& c, int half, int step, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = word_of(i % 2 == 0 ? c.low : c.high, step * 2 + i / 2);
    a[i] = form == MatrixForm::kInt8 ? word : (half == 0 ? word << 4 : word) & 0xf0f0f0f0U;
  }
}

// Adds a chunk's products with split int8 activations. `x` has the addresses of its columns.
template <MatrixForm form, int NT>
__device__ __forceinline__ void multiply_split_int8(const LaneChunk& c, const Activations& x,
                                                    Sums<NT>& sums) {
  constexpr int halves = form == MatrixForm::kInt8 ? 1 : 2;
  constexpr float unit = form == MatrixForm::kInt8 ? 1 : 1 / 16.0F;
  uint32_t a[halves][2][4];
#pragma unroll
  for (int i = 0; i < halves * 2; ++i) signed_bytes<form>(c, i / 2, i % 2, a[i / 2][i % 2]);
  float scale[2];
  chunk_scales(c, scale);
  constexpr int rows = NT == 0 ? 1 : 2;  // neighbouring rows, whose two terms fill four columns each
#pragma unroll
  for (int n = 0; n < (NT == 0 ? 1 : NT); ++n) {
    float of_row[2];
    if constexpr (NT == 0) {
      of_row[0] = x.scales[0];
    } else {
      const float2 both = __ldcg(reinterpret_cast<const float2*>(x.scales + n * 8));
      of_row[0] = both.x;
      of_row[1] = both.y;
    }
#pragma unroll
    for (int row = 0; row < rows; ++row) {
      int sum[2][4] = {};
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        const uint4 b = *reinterpret_cast<const uint4*>(x.x + n * x.eight_rows + row * kNeighbour +
                                                        half * kNextSplitInt8<NT>);
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

// The scales and minima of rows g and g + 8 of a tile's group, at element `at`.
template <MatrixForm form>
__device__ __forceinline__ void group_scales(const DeviceMatrix& w, int64_t at, float (&scale)[2],
                                             float (&minimum)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (is_general(form)) {
      scale[i] = static_cast<const float*>(w.scales)[at + 8 * i];
      minimum[i] = w.minima[at + 8 * i];
    } else {
      scale[i] = __half2float(static_cast<const __half*>(w.scales)[at + 8 * i]);
    }
  }
}

// Adds a chunk's products in fp16. `x` has the addresses of its columns. The sums of a group are multiplied
// by its scale when the group ends; with minima, the sum of its activations is a product with ones.
template <MatrixForm form, int NT>
__device__ __forceinline__ void multiply_halves(const DeviceMatrix& w, const LaneChunk& c,
                                                const Activations& x, const ChunkPlace& place, uint32_t magic,
                                                Sums<NT>& sums) {
  constexpr int steps = chunk_columns(form) / 16;
  constexpr int columns = NT == 0 ? 1 : NT;
  Sums<NT> of_group = {};
  Sums<NT> ones = {};
  const uint32_t one[4] = {0x3c003c00U, 0x3c003c00U, 0x3c003c00U, 0x3c003c00U};
#pragma unroll
  for (int s = 0; s < steps; s += 2) {
    uint32_t b[columns][2][2];
#pragma unroll
    for (int n = 0; n < columns; ++n) load_activations<NT>(x.x + n * x.eight_rows, s, b[n]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4];
      unpack_step<form>(c, s + half, magic, a);
#pragma unroll
      for (int n = 0; n < columns; ++n) {
        if constexpr (form == MatrixForm::kF16) {
          mma_step(sums[n], a, b[n][half]);
        } else {
          mma_step(of_group[n], a, b[n][half]);
          if constexpr (is_general(form)) mma_step(ones[n], one, b[n][half]);
        }
      }
      if constexpr (form != MatrixForm::kF16) {
        const int next = place.chunk * chunk_columns(form) + (s + half + 1) * 16;
        if (s + half + 1 < steps && next % w.group != 0) continue;
        const int group = min((next - 16) / w.group, w.groups - 1);
        float scale[2];
        float minimum[2] = {};
        group_scales<form>(w, (int64_t(place.tile) * w.groups + group) * kTileRows + threadIdx.x % kWarp / 4,
                           scale, minimum);
#pragma unroll
        for (int n = 0; n < columns; ++n) {
#pragma unroll
          for (int i = 0; i < 4; i += NT == 0 ? 2 : 1) {
            sums[n][i] += scale[i / 2] * of_group[n][i];
            of_group[n][i] = 0;
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

// Adds one chunk's products. `x` has the addresses of column 0.
template <MatrixForm form, int NT, bool split_int8>
__device__ __forceinline__ void multiply_chunk(const DeviceMatrix& w, const LaneChunk& c,
                                               const Activations& x, const ChunkPlace& place, uint32_t magic,
                                               Sums<NT>& sums) {
  if constexpr (split_int8) {
    const int group = place.chunk * chunk_columns(form) / kActivationGroup;
    multiply_split_int8<form, NT>(c,
                                  {x.x + place.chunk * (chunk_columns(form) / 64) * kNextSplitInt8<NT>,
                                   x.eight_rows, x.scales + group * (NT == 0 ? 1 : kMaxRows)},
                                  sums);
  } else {
    multiply_halves<form, NT>(
        w, c, {x.x + place.chunk * (chunk_columns(form) / 32) * kNextActivations<NT>, x.eight_rows, x.scales},
        place, magic, sums);
  }
}

// Adds the sums of second chunks to those of first chunks, in the lanes that have the same rows: see
// in_pairs().
template <int NT>
__device__ __forceinline__ void add_seconds(Sums<NT> (&sums)[2]) {
#pragma unroll
  for (int n = 0; n < (NT == 0 ? 1 : NT); ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += NT == 0 ? 2 : 1)
      sums[0][n][i] += __shfl_xor_sync(kFullMask, sums[1][n][i], 4);
  }
}

// What multiply_tiles() calls: finish(tile, iteration, sums) when a tile is complete, and on_issue(chunks
// that are not issued yet) after it has issued chunks.
template <class Finish, class OnIssue>
struct TileCallbacks {
  const Finish& finish;
  const OnIssue& on_issue;
};

// Multiplies a warp's chunks, which `loader` issues into `ring`.
template <MatrixForm form, int NT, bool split_int8, class WarpRing, class WarpLoader, class Finish,
          class OnIssue>
__device__ __forceinline__ void multiply_tiles(const DeviceMatrix& w, const TileRange<WarpRing::kUnit>& range,
                                               WarpRing& ring, WarpLoader& loader, const Activations& x,
                                               const TileCallbacks<Finish, OnIssue>& callbacks) {
  uint32_t magic;  // the exponent of 1024, in a register
  asm volatile("mov.u32 %0, 0x64646464;" : "=r"(magic));
  constexpr int unit = WarpRing::kUnit;
  Sums<NT> sums[unit] = {};
  int tile = range.first_tile;
#pragma unroll 1
  for (int iteration = 0; iteration < range.tiles; ++iteration) {
    int chunk = range.first_chunk;
#pragma unroll 1
    for (int left = range.steps; left > 0; left -= WarpRing::kSlots) {
#pragma unroll
      for (int slot = 0; slot < WarpRing::kSlots; ++slot) {
        if (slot == 0 || slot < left) {
#pragma unroll
          for (int u = 0; u < unit; ++u) {
            multiply_chunk<form, NT, split_int8>(
                w, ring.take(slot, u), x, {tile, chunk + slot * kTeamWarps * unit + u}, magic, sums[u]);
          }
        }
        loader.next(ring, slot);
        callbacks.on_issue(loader.left());
      }
      chunk += WarpRing::kSlots * kTeamWarps * unit;
    }
    if constexpr (unit == 2) add_seconds<NT>(sums);
    callbacks.finish(tile, iteration, sums[0]);
#pragma unroll
    for (auto& of_chunks : sums) {
#pragma unroll
      for (auto& column : of_chunks) {
#pragma unroll
        for (float& sum : column) sum = 0;
      }
    }
    tile += range.tile_stride;
  }
}

}  // namespace qwen2::cuda
