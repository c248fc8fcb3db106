// Attention of one query head of a short row by a block of the layers kernel. Keys and values that are
// older than the step are loaded before the block waits for the step's own query, key and value. Results
// are those of attend_rows(), bit by bit.
#pragma once

#include "kernels/cuda/attention/row_attention.cuh"

namespace qwen2::cuda {

constexpr int kAttendingWarps = kWarps<0>;
// Bytes of shared memory for queries and tiles, aligned to kTileAlignment.
template <int dim>
constexpr int kHeadAttentionBytes = kQueryBytes<dim> + kAttendingWarps * KvTile<dim, 16>::kBytes;

// A warp's tile: keys in shared memory, values in registers until the keys have been read.
template <int dim>
class HeadTile {
 public:
  using Tile = KvTile<dim, 16>;

  __device__ __forceinline__ explicit HeadTile(uint32_t memory) : memory_(memory) {}

  // Loads the tile's rows. `older` of its keys are older than the step; the next key may be the step's own.
  __device__ __forceinline__ void start(const std::byte* rows, int older) {
    rows_ = rows;
    older_ = older;
    const int lane = threadIdx.x % kWarp;
    uint4 keys[Tile::kLoads];
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) keys[i] = load(rows + (lane + i * kWarp) * 16);
#pragma unroll
    for (int i = 0; i < Tile::kLoads; ++i) {
      values_[i] = {};  // 0 * infinity would be NaN
      if (i * Tile::kRows + lane / Tile::kPieces < older)
        values_[i] = load(rows + kValues + (lane + i * kWarp) * 16);
    }
    store(keys);
  }
  // Loads the step's own key and value.
  __device__ __forceinline__ void start_own() {
    const int lane = threadIdx.x % kWarp;
    if (has_own()) own_ = load(rows_ + older_ * Tile::kRowBytes + lane / 16 * kValues + own_piece() * 16);
  }
  // The address of the keys, when all are stored; then, when the keys have been read, that of the values.
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
  static constexpr int kValues = kPageTokens * Tile::kRowBytes;  // from the keys of a page to its values
  static __device__ __forceinline__ uint4 load(const std::byte* from) {
    return __ldcg(reinterpret_cast<const uint4*>(from));
  }
  [[nodiscard]] __device__ __forceinline__ bool has_own() const { return older_ < kTileKeys; }
  // Lanes from 0 on load the key, lanes from 16 on the value.
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

// With one head, keys and values are the left operand of the tensor cores, which halves the number of
// steps. Column 0 of the right operand is the query or the weights rounded to fp16, column 1 the rounding
// errors. Each step adds up the same products as a step of attend_rows().
__device__ __forceinline__ uint32_t right_column(uint32_t rounded, uint32_t error) {
  const int column = threadIdx.x % kWarp / 4;
  return column == 0 ? rounded : column == 1 ? error : 0;
}

// As score_tile(), but every lane gets the scores of the one head.
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

// sums += weights * values. Lanes with t = 0 have dimensions 16 j + g and 16 j + 8 + g, by column.
template <int dim>
__device__ __forceinline__ void add_to_head(uint32_t values, const uint32_t (&weights)[4],
                                            float (&sums)[dim / 16][4]) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t own = values + KvTile<dim, 16>::place(lane % 16, lane / 16);
  const uint32_t first = right_column(weights[0], weights[1]);
  const uint32_t second = right_column(weights[2], weights[3]);
#pragma unroll
  for (int j = 0; j < dim / 16; ++j) {
    uint32_t v[4];  // keys 0 to 7 of dimensions 0 to 7 and 8 to 15, then keys 8 to 15
    load_matrices_transposed(v, own ^ j * 32);
    mma_half_step(sums[j], v[0], v[2], first);
    mma_half_step(sums[j], v[1], v[3], second);
  }
}

// As store_sums(), of one head.
template <int dim>
__device__ __forceinline__ void store_head(const RunningSums<dim / 16>& running, float2& softmax,
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

// Head `head` of the only row. All threads call wait() once; it returns when the step's query, key and
// value are written. `wait` is passed by value, so that nothing of the caller has to be in memory. Not
// inlined: together with its caller it would need more registers than there are.
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
  const KvSplit kv{
      kv_head, head, 1, 0, info.position + 1, a.q + head * dim, a.cache.pages + info.page_offset};
  const std::byte* data = a.cache.data + kv_head * kPageBytes;
  RunningSums<dim / 16> running;
  HeadTile<dim> tile(memory + warp * Tile::kBytes);
  bool first = true;
#pragma unroll 1
  for (int key = warp * kTileKeys;; key += kAttendingWarps * kTileKeys) {
    if (key <= info.position) {
      const uint32_t page = __ldg(kv.pages + key / kPageTokens);
      tile.start(data + int64_t(page) * a.heads.kv_heads * kPageBytes +
                     key / kTileKeys % kTilesAPage * kTileKeys * Tile::kRowBytes,
                 info.position - key);
    }
    if (first) {
      Queries<dim, 16> queries_loader(kv.q, 1);
      wait();
      queries_loader.load();
      if (key <= info.position) tile.start_own();
      queries_loader.store(queries);
      if (a.cache.key_bias.pairs > 0) stage_bias<dim>(a, kv, shared.q_bias);
      __syncthreads();
      first = false;
    } else if (key <= info.position) {
      __syncwarp();  // start() must have stored its keys before the step's own key
      tile.start_own();
    }
    if (key > info.position) break;
    float scores[2][2];
    score_head<dim>(tile.keys(), queries, scores);
    if (a.cache.key_bias.pairs > 0) add_bias<dim>(a, kv, key, shared.q_bias, 0, scores);
    raise_maximum(tile.count(), scores, running);
    uint32_t weights[4];
    const uint32_t v = tile.values();
    make_weights<dim, 16>(v, tile.count(), scores, running, weights);
    add_to_head<dim>(v, weights, running.sums);
    __syncwarp();
  }
  store_head<dim>(running, shared.softmax[warp][0], memory + warp * Tile::kBytes);
  __syncthreads();
  merge_warps<dim, kAttendingWarps>(1, kv.keys, {&shared.softmax[0][0], 1, memory, Tile::kBytes},
                                    [&](int, int d, const float4& sum, float, float denominator) {
                                      store_quad(a, 0, head * dim + d,
                                                 to_half(sum, __fdividef(1, denominator)));
                                    });
}

}  // namespace qwen2::cuda
