// Which tiles and chunks of a matrix each warp of a product takes.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

// The warps of a team, which work on one tile together: each takes every fourth chunk. The number decides the
// order in which a sum is added up, so it is the same for every batch and matrix. With fewer warps, the two
// projections into the residual stream would have too few blocks; with more, the reduction would cost more
// than it saves.
constexpr int kTeamWarps = 4;

// Tiles of a team: `first`, `first + stride` and so on, at most `count` of them.
struct TeamTiles {
  int first, stride, count;
};
// One split of the columns (split-K), of `chunks` chunks.
struct ColumnSplit {
  int index, chunks;
};

// A warp's tiles, and its chunks of each: every kTeamWarps-th chunk, or pair of chunks (`unit` = 2).
template <int unit>
struct TileRange {
  int first_tile, tile_stride, tiles;
  int first_chunk, steps;  // of each tile

  __device__ __forceinline__ TileRange(const DeviceMatrix& w, const TeamTiles& team, const ColumnSplit& split,
                                       int warp_in_team)
      : first_tile(team.first),
        tile_stride(team.stride),
        tiles(team.count),
        first_chunk(split.index * split.chunks + warp_in_team * unit) {
    const int end = min((split.index + 1) * split.chunks, w.chunks());
    steps = max(0, (end - first_chunk + kTeamWarps * unit - 1) / (kTeamWarps * unit));
    while (tiles > 0 && first_tile + (tiles - 1) * tile_stride >= w.tiles()) --tiles;
  }
};

// Bytes from a chunk of a tile's rows to their next chunk.
template <MatrixForm form>
constexpr int kNextChunk = form == MatrixForm::kF16 ? kChunkBytes : kTileRows * kChunkBytes;

}  // namespace qwen2::cuda
