// Attention of one query head of a short row by a whole block, within a kernel that does more than that: keys
// and values that are older than the step come before the step's own query, key and value are waited for.
// Results are attend_rows()'s, bit by bit.
#pragma once

#include "kernels/cuda/attention/row_attention.cuh"

namespace qwen2::cuda {

constexpr int kAttendingWarps = kWarps<0>;
// Of queries and tiles, at a multiple of kTileAlignment.
template <int dim>
constexpr int kHeadAttentionBytes = kQueryBytes<dim> + kAttendingWarps * KvTile<dim, 16>::kBytes;

// Keys and values of a warp's tile: keys in shared memory, values in registers until the keys are read.
template <int dim>
class HeadTile {
 public:
  using Tile = KvTile<dim, 16>;

  __device__ __forceinline__ explicit HeadTile(uint32_t memory) : memory_(memory) {}

  // Asks for the tile's rows; `older` of its keys are older than the step, and the next one may be the
  // step's own.
  __device__ __forceinline__ void start(const std::byte* rows, int older) {
    rows_ = rows;
    older_ = older;
    const int lane = threadIdx.x % kWarp;
    uint4 keys[Tile::kLoads];
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) keys[i] = load(rows + (lane + i * kWarp) * 16);
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      values_[i] = {};  // they must not be infinite where their weight is zero
      if (i * Tile::kRows + lane / Tile::kPieces < older)
        values_[i] = load(rows + kValues + (lane + i * kWarp) * 16);
    }
    store(keys);
  }
  // Asks for the step's own key and value.
  __device__ __forceinline__ void start_own() {
    const int lane = threadIdx.x % kWarp;
    if (has_own()) own_ = load(rows_ + older_ * Tile::kRowBytes + lane / 16 * kValues + own_piece() * 16);
  }
  // The keys, when all are there; the same of the values, when the keys are read.
  __device__ __forceinline__ uint32_t keys() const {
    if (has_own() && threadIdx.x % kWarp < Tile::kPieces) store_own();
    __syncwarp();
    return memory_;
  }
  __device__ __forceinline__ uint32_t values() const {
    __syncwarp();
    store(values_);
    __syncwarp();
    if (has_own() && threadIdx.x % kWarp / 16 == 1 && threadIdx.x % 16 < Tile::kPieces) store_own();
    __syncwarp();
    return memory_;
  }
  [[nodiscard]] __device__ __forceinline__ int count() const { return min(older_ + 1, kTileKeys); }

 private:
  static constexpr int kValues = kPageTokens * Tile::kRowBytes;  // from keys to values of a page
  static __device__ __forceinline__ uint4 load(const std::byte* from) {
    return __ldcg(reinterpret_cast<const uint4*>(from));
  }
  [[nodiscard]] __device__ __forceinline__ bool has_own() const { return older_ < kTileKeys; }
  // Lanes from 0 on bring the key, from 16 on the value.
  static __device__ __forceinline__ int own_piece() { return threadIdx.x % Tile::kPieces; }
  __device__ __forceinline__ void store_own() const {
    store_16(memory_ + Tile::place(older_, own_piece()), own_);
  }
  __device__ __forceinline__ void store(const uint4 (&rows)[Tile::kLoads]) const {
    const uint32_t to = Tile::own_place(memory_);
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) store_16(Tile::own_place(to, i), rows[i]);
  }

  uint32_t memory_;
  const std::byte* rows_ = nullptr;
  int older_ = 0;
  uint4 values_[Tile::kLoads];
  uint4 own_ = {};
};

// With one head, keys and values are the left operand of the tensor cores, which halves their steps: column 0
// of the right one has what fp16 keeps of the query or the weights, column 1 what it leaves. Every step adds
// up what attend_rows() adds up in one.
__device__ __forceinline__ uint32_t right_column(uint32_t kept, uint32_t left) {
  const int column = threadIdx.x % kWarp / 4;
  return column == 0 ? kept : column == 1 ? left : 0;
}

// As score_tile(), but every lane has the scores of the one head.
template <int dim>
__device__ __forceinline__ void score_head(uint32_t keys, uint32_t queries, float (&scores)[2][2]) {
  using Tile = KvTile<dim, 16>;
  const int lane = threadIdx.x % kWarp;
  const uint32_t own = keys + Tile::place(lane % 16, lane / 16);
  float products[2][4] = {};  // of even and odd steps
#pragma unroll
  for (int step = 0; step < dim / 16; ++step) {
    const uint4 q = load_shared(queries + (step * kWarp + lane % 4) * 16);
    uint32_t k[4];
    load_matrices(k, own ^ step * 32);
    mma_half_step(products[step % 2], k[0], k[1], right_column(q.x, q.y));
    mma_half_step(products[step % 2], k[2], k[3], right_column(q.z, q.w));
  }
  // Lanes with t = 0 have keys g and g + 8, of column 0 and 1.
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float of_key =
        (products[0][2 * n] + products[0][2 * n + 1]) + (products[1][2 * n] + products[1][2 * n + 1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) scores[n][i] = __shfl_sync(kFullMask, of_key, (lane % 4 * 2 + i) * 4);
  }
}

// sums += weights * values: of dimensions 16 j + g and 16 j + 8 + g in lanes with t = 0, by column.
template <int dim>
__device__ __forceinline__ void add_to_head(uint32_t values, const uint32_t (&weights)[4],
                                            float (&sums)[dim / 16][4]) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t own = values + KvTile<dim, 16>::place(lane % 16, lane / 16);
  const uint32_t first = right_column(weights[0], weights[1]);
  const uint32_t second = right_column(weights[2], weights[3]);
#pragma unroll
  for (int j = 0; j < dim / 16; ++j) {
    uint32_t v[4];  // of dimensions below and above eight: keys below eight, keys above
    load_matrices_transposed(v, own ^ j * 32);
    mma_half_step(sums[j], v[0], v[2], first);
    mma_half_step(sums[j], v[1], v[3], second);
  }
}

// As leave_sums().
template <int dim>
__device__ __forceinline__ void leave_head(const RunningSums<dim / 16>& running, float2& softmax,
                                           uint32_t sums) {
  const int lane = threadIdx.x % kWarp;
  float denominator = running.denominator;
  denominator += __shfl_xor_sync(kFullMask, denominator, 1);
  denominator += __shfl_xor_sync(kFullMask, denominator, 2);
  if (lane % 4 > 0) return;
  if (lane == 0) softmax = {running.maximum, denominator};
#pragma unroll
  for (int j = 0; j < dim / 16; ++j) {
    const uint32_t at = sums + (j * 16 + lane / 4) * sizeof(float);
    store_4(at, __float_as_uint(running.sums[j][0] + running.sums[j][1]));
    store_4(at + 8 * sizeof(float), __float_as_uint(running.sums[j][2] + running.sums[j][3]));
  }
}

// The only row's head `head`. Calls wait(), which is to return when the step's query, key and value are
// there, once, as all threads of the block do (by value: nothing of the caller's has to be in memory). Not
// inlined: what its caller has in registers would not leave room.
template <int dim, class Wait>
__device__ __noinline__ void attend_head(const RowAttentionArgs& a, int head, uint32_t queries,
                                         AttentionShared<kAttendingWarps, 1>& shared, const Wait wait) {
  using Tile = KvTile<dim, 16>;
  constexpr int kPageBytes = static_cast<int>(kv_page_bytes(16, dim));
  constexpr int kTilesAPage = kPageTokens / kTileKeys;
  const int warp = threadIdx.x / kWarp;
  const Row info = a.row_info[0];
  const uint32_t memory = queries + kQueryBytes<dim>;
  const int kv_head = head / a.heads.group();
  const Part part{kv_head, head, 1, 0, info.position + 1, a.q + head * dim, a.cache.pages + info.page_offset};
  const std::byte* data = a.cache.data + kv_head * kPageBytes;
  RunningSums<dim / 16> running;
  HeadTile<dim> tile(memory + warp * Tile::kBytes);
  bool first = true;
#pragma unroll 1
  for (int key = warp * kTileKeys;; key += kAttendingWarps * kTileKeys) {
    if (key <= info.position) {
      const uint32_t page = __ldg(part.pages + key / kPageTokens);
      tile.start(data + int64_t(page) * a.heads.kv_heads * kPageBytes +
                     key / kTileKeys % kTilesAPage * kTileKeys * Tile::kRowBytes,
                 info.position - key);
    }
    if (first) {
      Queries<dim, 16> brought(part.q, 1);
      wait();
      brought.bring();
      if (key <= info.position) tile.start_own();
      brought.store(queries);
      if (a.cache.key_bias.pairs > 0) stage_bias<dim>(a, part, shared.q_bias);
      __syncthreads();
      first = false;
    } else if (key <= info.position) {
      __syncwarp();  // what start() stored comes before the step's own key
      tile.start_own();
    }
    if (key > info.position) break;
    float scores[2][2];
    score_head<dim>(tile.keys(), queries, scores);
    if (a.cache.key_bias.pairs > 0) add_bias<dim>(a, part, key, shared.q_bias, 0, scores);
    raise_maximum(tile.count(), scores, running);
    uint32_t weights[4];
    const uint32_t v = tile.values();
    make_weights<dim, 16>(v, tile.count(), scores, running, weights);
    add_to_head<dim>(v, weights, running.sums);
    __syncwarp();
  }
  leave_head<dim>(running, shared.softmax[warp][0], memory + warp * Tile::kBytes);
  __syncthreads();
  merge_warps<dim, kAttendingWarps>(1, part.keys, &shared.softmax[0][0], 1, memory, Tile::kBytes,
                                    [&](int, int d, const float4& sum, float, float denominator) {
                                      store_quad(a, 0, head * dim + d,
                                                 to_half(sum, __fdividef(1, denominator)));
                                    });
}

}  // namespace qwen2::cuda
