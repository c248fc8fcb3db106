// The skinny product: up to 64 rows of activations times a matrix whose bytes are read once.
//
// A block takes tiles of 16 rows of W; its warps split the columns, and lane t of four reads 16 bytes of each
// chunk of its rows g and g + 8, straight into the registers that the tensor cores take. The next chunks are
// always on their way, across tiles and, with dependent launch, across kernels: weights do not depend on what
// the previous kernel computes. A tile's sums are added up through shared memory in a fixed order, which
// depends on the matrix alone: a row's result is the same in every batch.
#pragma once

#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace qwen2::cuda {

constexpr int kNormThreads = 256;  // fixed, so that sums of squares do not depend on the block
constexpr int kNormQuads = 2;      // of each thread, in registers: up to 2048 columns
constexpr int kMaxWarps = 12;
constexpr int kReduceColumns = 16;

// Warps that take the columns of a tile in turn. It decides in which order a sum is added up, so it is the
// same for every batch and matrix; with fewer, the two projections into the residual stream would have too
// few blocks, with more, adding up would cost more than it gains.
constexpr int kSplitWarps = 4;

// Tiles that a block works on at once, which changes no sum. One row is in flight as a whole: then as many
// blocks as there are tiles. Otherwise large blocks, as long as they fill the card.
inline int product_teams(const DeviceMatrix& w, int parts, int rows, int multiprocessors) {
  constexpr int kTeams = kMaxWarps / kSplitWarps;
  const int blocks = (w.tiles() + kTeams - 1) / kTeams * parts;
  const bool fills = rows == 1 ? w.tiles() > multiprocessors : 10 * blocks >= 9 * multiprocessors;
  return fills ? kTeams : 1;
}

struct LaneChunk {
  uint4 low, high;    // rows g and g + 8
  uint32_t scale[2];  // fp16 bits
};

// Chunks on their way to a warp. From Ampere on they wait in shared memory, where each lane finds what it
// copied itself; on Turing in registers, whose places the loop must name.
constexpr int kAsyncDepth = 6;
constexpr int kRegisterDepth = 3;
constexpr int kStageBytes = kTileRows * kChunkBytes + kTileRows * 2;  // codes, and scales of the coarse forms
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kAsync = true;
#else
constexpr bool kAsync = false;
#endif
constexpr int kPlaces = kAsync ? 1 : kRegisterDepth;  // that the loop names

__device__ __forceinline__ void copy_once(uint32_t to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#endif
}
__device__ __forceinline__ void end_group() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int pending>
__device__ __forceinline__ void wait_groups() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}
__device__ __forceinline__ uint4 load_shared(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32_t load_shared_u16(uint32_t from) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from) : "memory");
  return v;
}

template <bool scaled>
class Ring {
 public:
  // Of this warp: kAsyncDepth stages of shared memory.
  __device__ __forceinline__ explicit Ring(const void* memory)
      : begin_(static_cast<uint32_t>(__cvta_generic_to_shared(memory)) + lane() * 16),
        head_(begin_),
        tail_(begin_) {}

  // Starts the chunk at `codes`, with its scales.
  __device__ __forceinline__ void start(int place, const uint8_t* codes, int64_t high_row,
                                        const uint16_t* scales) {
    if constexpr (kAsync) {
      copy_once(head_, codes);
      copy_once(head_ + 512, codes + high_row);
      if (scaled && lane() < 2) copy_once(head_ + 1024, scales + lane() * 8);
    } else {
      LaneChunk& slot = slots_[place];
      slot.low = load_once(codes);
      slot.high = load_once(codes + high_row);
      if (scaled) {
        slot.scale[0] = __ldg(scales + lane() / 4);
        slot.scale[1] = __ldg(scales + lane() / 4 + 8);
      }
    }
  }
  // After every start(), and in its place when there is nothing more to start.
  __device__ __forceinline__ void pass() {
    if constexpr (kAsync) {
      end_group();
      head_ = next(head_);
    }
  }
  // The oldest chunk.
  __device__ __forceinline__ LaneChunk take(int place) {
    if constexpr (!kAsync) return slots_[place];
    wait_groups<kAsyncDepth - 1>();
    if (scaled) __syncwarp();
    LaneChunk c;
    c.low = load_shared(tail_);
    c.high = load_shared(tail_ + 512);
    if (scaled) {
      const uint32_t scales = tail_ - lane() * 16 + 1024 + lane() / 4 * 2;
      c.scale[0] = load_shared_u16(scales);
      c.scale[1] = load_shared_u16(scales + 16);
    }
    tail_ = next(tail_);
    return c;
  }

 private:
  static __device__ __forceinline__ uint32_t lane() { return threadIdx.x % kWarp; }
  __device__ __forceinline__ uint32_t next(uint32_t at) const {
    return at == begin_ + (kAsyncDepth - 1) * kStageBytes ? begin_ : at + kStageBytes;
  }
  uint32_t begin_, head_, tail_;
  LaneChunk slots_[kPlaces];
};

// Two fp16 pairs of the q-th pairs of a word, exact.
template <MatrixForm form>
__device__ __forceinline__ uint32_t unpack_pair(uint32_t word, int q, uint32_t magic) {
  if constexpr (form_bits(form) == 8) {
    uint32_t
        pair;  // 1024 + byte, twice; the selector as a constant: the compiler would rather load it each time
    if (q == 0) {
      asm("prmt.b32 %0, %1, %2, 0x4140;" : "=r"(pair) : "r"(word), "r"(magic));
    } else {
      asm("prmt.b32 %0, %1, %2, 0x4342;" : "=r"(pair) : "r"(word), "r"(magic));
    }
    return as_bits(__hsub2(as_half2(pair), as_half2(0x64806480U)));  // - 1152
  } else {
    constexpr bool general = is_general(form);
    const uint32_t w = q >= 2 ? word >> 8 : word;
    if (q % 2 == 0) {  // 1024 + code
      return as_bits(__hsub2(as_half2(and_or(w, 0x000f000fU, 0x64006400U)),
                             as_half2(general ? 0x64006400U : 0x64086408U)));
    }
    return as_bits(__hfma2(as_half2(and_or(w, 0x00f000f0U, 0x64006400U)), as_half2(0x2c002c00U),
                           as_half2(general ? 0xd400d400U : 0xd480d480U)));  // (1024 + 16 code) / 16 - 64
  }
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The registers of step `s` (16 columns) of a chunk.
template <MatrixForm form>
__device__ __forceinline__ void unpack_step(const LaneChunk& c, int s, uint32_t magic, uint32_t (&a)[4]) {
  if constexpr (form == MatrixForm::kF16) {
    a[0] = word_of(c.low, 2 * s);
    a[1] = word_of(c.high, 2 * s);
    a[2] = word_of(c.low, 2 * s + 1);
    a[3] = word_of(c.high, 2 * s + 1);
  } else {
    const int word = form_bits(form) == 8 ? s : s / 2;
    const int first = form_bits(form) == 8 ? 0 : s % 2 * 2;
    a[0] = unpack_pair<form>(word_of(c.low, word), first, magic);
    a[1] = unpack_pair<form>(word_of(c.high, word), first, magic);
    a[2] = unpack_pair<form>(word_of(c.low, word), first + 1, magic);
    a[3] = unpack_pair<form>(word_of(c.high, word), first + 1, magic);
  }
}

template <int NT>
using Sums = float[NT == 0 ? 1 : NT][4];  // NT = 0: one row, in every column

// The activations of steps s and s + 1 of a chunk; `x` points at lane t's first ones.
__device__ __forceinline__ void load_activations(const __half* x, int s, uint32_t (&b)[2][2]) {
  const uint4 v = *reinterpret_cast<const uint4*>(x + 16 * s);
  b[0][0] = v.x;
  b[0][1] = v.y;
  b[1][0] = v.z;
  b[1][1] = v.w;
}

template <MatrixForm form>
__device__ __forceinline__ int staged_place(int col) {
  return form == MatrixForm::kF16 ? col : lane_place(col);
}

template <MatrixForm form, int NT, bool fine>
__device__ __forceinline__ void multiply_chunk(const DeviceMatrix& w, const LaneChunk& c, const __half* x,
                                               int64_t stride8, int tile, int chunk, int g, uint32_t magic,
                                               Sums<NT>& sums) {
  constexpr int steps = chunk_columns(form) / 16;
  constexpr int columns = NT == 0 ? 1 : NT;
  Sums<NT> part = {};
  Sums<NT> ones = {};
  const uint32_t one[4] = {0x3c003c00U, 0x3c003c00U, 0x3c003c00U, 0x3c003c00U};
#pragma unroll
  for (int s = 0; s < steps; s += 2) {
    uint32_t b[columns][2][2];
#pragma unroll
    for (int n = 0; n < columns; ++n) load_activations(x + n * stride8, s, b[n]);
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

__device__ __forceinline__ float4 sum_partials(const ProductInput& in, int rows, int cols, int row, int k,
                                               float scale = 1) {
  const int64_t at = int64_t(row) * cols + k;
  float4 v = __ldcg(reinterpret_cast<const float4*>(in.hidden + at));
  float4 add[kMaxParts];
#pragma unroll
  for (int p = 0; p < kMaxParts; ++p) {  // all on their way before the first is needed
    if (p < in.parts)
      add[p] = __ldcg(reinterpret_cast<const float4*>(in.partials + int64_t(p) * rows * cols + at));
  }
#pragma unroll
  for (int p = 0; p < kMaxParts; ++p) {
    if (p >= in.parts) continue;
    v.x += add[p].x * scale;
    v.y += add[p].y * scale;
    v.z += add[p].z * scale;
    v.w += add[p].w * scale;
  }
  return v;
}

__device__ __forceinline__ float sum_squares(float squares, const float4& v) {
  return squares + v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

// Four neighbouring activations to their places in a staged row.
template <MatrixForm form>
__device__ __forceinline__ void put_quad(__half* out, int k, float4 v) {
  const __half2 low = __floats2half2_rn(saturate_half(v.x), saturate_half(v.y));
  const __half2 high = __floats2half2_rn(saturate_half(v.z), saturate_half(v.w));
  *reinterpret_cast<uint2*>(out + staged_place<form>(k)) = {as_bits(low), as_bits(high)};
}

// rms_norm(hidden + partials) * norm, by kNormThreads threads, so that sums are add_norm()'s.
template <MatrixForm form>
__device__ __forceinline__ void stage_normed(const DeviceMatrix& w, const ProductInput& in,
                                             const float4 (&norm)[kNormQuads], __half* out, float* scratch) {
  float4 v[kNormQuads];
  float squares = 0;
  const bool works = threadIdx.x < kNormThreads;
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (works && k < w.cols) v[i] = sum_partials(in, 1, w.cols, 0, k);
  }
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (!works || k >= w.cols) continue;
    squares = sum_squares(squares, v[i]);
    if (in.hidden_out != nullptr && blockIdx.x == 0) *reinterpret_cast<float4*>(in.hidden_out + k) = v[i];
  }
  squares = warp_sum(squares);
  if (works && threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = squares;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kNormThreads / kWarp; ++i) sum += scratch[i];
  const float factor = rsqrtf(sum / float(w.cols) + in.epsilon);
#pragma unroll
  for (int i = 0; i < kNormQuads; ++i) {
    const int k = (i * kNormThreads + threadIdx.x) * 4;
    if (!works || k >= w.cols) continue;
    put_quad<form>(out, k,
                   {v[i].x * factor * norm[i].x, v[i].y * factor * norm[i].y, v[i].z * factor * norm[i].z,
                    v[i].w * factor * norm[i].w});
  }
}

// fp16 or float activations of columns [begin, end); returns what the products must be multiplied by.
template <MatrixForm form>
__device__ __forceinline__ float stage_plain(const ProductInput& in, int begin, int end, __half* out) {
  constexpr int kLoads = 6;
  if (in.x != nullptr) {
    for (int k = begin + threadIdx.x * 4; k < end; k += blockDim.x * 4)
      *reinterpret_cast<uint2*>(out + staged_place<form>(k)) =
          __ldcg(reinterpret_cast<const uint2*>(in.x + k));
    return 1;
  }
  float factor = 1;
  for (int first = begin + threadIdx.x * 4; first < end; first += kLoads * blockDim.x * 4) {
    float4 v[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = first + i * blockDim.x * 4;
      if (k < end) v[i] = __ldcg(reinterpret_cast<const float4*>(in.values + k));
    }
    factor = half_scale(__uint_as_float(__ldcg(in.row_max)));
    const float down = 1.0F / factor;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int k = first + i * blockDim.x * 4;
      if (k < end) put_quad<form>(out, k, {v[i].x * down, v[i].y * down, v[i].z * down, v[i].w * down});
    }
  }
  return half_scale(__uint_as_float(__ldcg(in.row_max)));
}

// Where two rows of W that lie eight apart in a tile belong: dimensions d and d + half of a head for queries
// and keys, d and d + 8 for values; and what their sums need, none of which the previous kernel wrote.
struct QkvPair {
  int head;  // queries', keys', then values'
  int d0, d1;
  float bias0, bias1;
  float2 rotation;
  std::byte* page;  // of keys and values
  int slot;
};

__device__ __forceinline__ QkvPair find_qkv(const ProductArgs& a, int tile, int pair, int m) {
  QkvPair p;
  const int dim = a.heads.head_dim;
  const int row = a.first_row + tile * kTileRows;
  p.head = dim == 128 ? row / 128 : row / 64;
  const int in_head = row - p.head * dim;
  const bool is_value = p.head >= a.heads.q_heads + a.heads.kv_heads;
  p.d0 = is_value ? in_head + pair : in_head / 2 + pair;
  p.d1 = p.d0 + (is_value ? 8 : dim / 2);
  p.bias0 = __ldg(a.cache.bias + p.head * dim + p.d0);
  p.bias1 = __ldg(a.cache.bias + p.head * dim + p.d1);
  const Row info = a.row_info[m];
  p.rotation = {1, 0};
  if (!is_value) {
    p.rotation =
        __ldg(reinterpret_cast<const float2*>(a.cache.rotations) + int64_t(info.position) * (dim / 2) + p.d0);
  }
  p.page = nullptr;
  p.slot = info.position % kPageTokens;
  if (p.head >= a.heads.q_heads && a.cache.kv_bits == 16) {
    const int kv_head = p.head - a.heads.q_heads - (is_value ? a.heads.kv_heads : 0);
    const uint32_t page = a.cache.pages[info.page_offset + info.position / kPageTokens];
    p.page = a.cache.data + (int64_t(page) * a.heads.kv_heads + kv_head) * kv_page_bytes(16, dim) +
             (is_value ? kPageTokens * dim * 2 : 0);
  }
  return p;
}

// Bias, rotation and the cache.
__device__ __forceinline__ void store_qkv(const ProductArgs& a, const QkvPair& p, int m, float v0, float v1) {
  const int dim = a.heads.head_dim;
  v0 += p.bias0;
  v1 += p.bias1;
  const float first = v0 * p.rotation.x - v1 * p.rotation.y;
  v1 = v1 * p.rotation.x + v0 * p.rotation.y;
  v0 = first;
  if (p.head < a.heads.q_heads) {
    float* q = a.q + (int64_t(m) * a.heads.q_heads + p.head) * dim;
    q[p.d0] = v0 * a.q_scale;
    q[p.d1] = v1 * a.q_scale;
  } else if (p.page == nullptr) {
    float* out = a.new_kv + (int64_t(m) * 2 * a.heads.kv_heads + p.head - a.heads.q_heads) * dim;
    out[p.d0] = v0;
    out[p.d1] = v1;
  } else {
    auto* out = reinterpret_cast<__half*>(p.page) + p.slot * dim;
    out[p.d0] = __float2half_rn(saturate_half(v0));
    out[p.d1] = __float2half_rn(saturate_half(v1));
  }
}

// One pair of finished sums. Returns the magnitude of what SwiGLU makes of it.
__device__ __forceinline__ float store_pair(const ProductArgs& a, int tile, int pair, int m, float v0,
                                            float v1, float factor, const QkvPair& qkv) {
  if (a.output == ProductOutput::kQkv) {
    store_qkv(a, qkv, m, v0, v1);
    return 0;
  }
  if (a.output == ProductOutput::kSwiglu) {
    const float value = v0 / (1.0F + __expf(-v0)) * v1;
    a.y[m * a.y_stride + (a.first_row + tile * kTileRows) / 2 + pair] = value;
    return fabsf(value);
  }
  float* y = a.y + (int64_t(blockIdx.y) * a.rows + m) * a.y_stride + a.first_row;
  const int n = tile * kTileRows + pair;
  if (n < a.out_rows) y[n] = v0 * factor;
  if (n + 8 < a.out_rows) y[n + 8] = v1 * factor;
  return 0;
}

// Columns that are added up at once, and buffers, so that one tile's sums are read while the next one's are
// written.
template <int NT>
struct Reduce {
  static constexpr int columns = NT == 0 ? 1 : NT == 1 ? 8 : kReduceColumns;
  static constexpr int passes = NT <= 2 ? 1 : NT / 2;
  static constexpr int buffers = NT <= 2 ? 2 : 1;
  static constexpr int floats = kMaxWarps * kTileRows * columns * buffers;
};

__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kSplitWarps * kWarp) : "memory");
}

// Adds up a team's sums of one tile and stores them. `turn` says which warps do it when few are needed.
template <int NT>
__device__ __forceinline__ void reduce_tile(const ProductArgs& a, int tile, int turn, int team, int in_team,
                                            const Sums<NT>& sums, float* buffer, float factor,
                                            const float* factors, unsigned* block_max, const QkvPair& qkv,
                                            float& largest) {
  using R = Reduce<NT>;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  float* own =
      buffer + turn % R::buffers * (kMaxWarps * kTileRows * R::columns) + warp * kTileRows * R::columns;
  const float* all = own - in_team * kTileRows * R::columns;
#pragma unroll
  for (int pass = 0; pass < R::passes; ++pass) {
    if constexpr (NT == 0) {
      if (lane % 4 == 0) {
        own[lane / 4] = sums[0][0];
        own[lane / 4 + 8] = sums[0][2];
      }
    } else {
#pragma unroll
      for (int n = 0; n < R::columns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          own[(lane / 4 + i / 2 * 8) * R::columns + n * 8 + lane % 4 * 2 + i % 2] =
              sums[pass * (R::columns / 8) + n][i];
      }
    }
    team_barrier(team);
    for (int column = (in_team + turn) % kSplitWarps; column < R::columns; column += kSplitWarps) {
      const int pair = lane / 4;
      static_assert(kSplitWarps == 4);  // a lane of four for each warp's sum
      float v0 = all[(lane % 4 * kTileRows + pair) * R::columns + column];
      float v1 = all[(lane % 4 * kTileRows + pair + 8) * R::columns + column];
      v0 += __shfl_xor_sync(kFullMask, v0, 1);
      v1 += __shfl_xor_sync(kFullMask, v1, 1);
      v0 += __shfl_xor_sync(kFullMask, v0, 2);
      v1 += __shfl_xor_sync(kFullMask, v1, 2);
      const int m = pass * R::columns + column;
      if (lane % 4 != 0 || m >= a.rows) continue;
      const bool found = NT == 0 && turn == 0;
      const float magnitude =
          store_pair(a, tile, pair, m, v0, v1, NT == 0 ? factor : factors[m],
                     found || a.output != ProductOutput::kQkv ? qkv : find_qkv(a, tile, pair, m));
      if constexpr (NT == 0) {
        largest = fmaxf(largest, magnitude);
      } else if (a.output == ProductOutput::kSwiglu) {
        atomicMax(block_max + m, __float_as_uint(magnitude));
      }
    }
    if (R::buffers == 1) team_barrier(team);
  }
}

template <MatrixForm form, int NT, bool fine>
__global__ void __launch_bounds__(kMaxWarps* kWarp, NT <= 1 ? 2 : 1)
    product_kernel(const __grid_constant__ ProductArgs a, int chunks_a_part, int whole, int rounds, int teams,
                   int group_shift, int ring_offset) {
  extern __shared__ uint4 shared_memory[];
  __shared__ float factors[NT == 0 ? 1 : kMaxRows];
  __shared__ unsigned block_max[NT == 0 ? 1 : kMaxRows];
  __shared__ float scratch[kNormThreads / kWarp];
  auto* buffer = reinterpret_cast<float*>(shared_memory);
  constexpr bool scaled = form != MatrixForm::kF16 && !fine;
  const DeviceMatrix& w = a.w;
  const int warp = threadIdx.x / kWarp;
  const int g = threadIdx.x % kWarp / 4;
  const int t = threadIdx.x % 4;
  const int team = warp / kSplitWarps;
  const int in_team = warp % kSplitWarps;
  const int first_chunk = blockIdx.y * chunks_a_part + in_team;
  const int end_chunk = min(static_cast<int>(blockIdx.y + 1) * chunks_a_part, w.chunks());
  // `whole`: steps of every warp in each tile; some have one more, in the last part some have fewer.
  int steps = whole + (first_chunk + whole * kSplitWarps < end_chunk ? 1 : 0);
  while (steps > 0 && first_chunk + (steps - 1) * kSplitWarps >= end_chunk) --steps;
  const int first_tile = blockIdx.x * teams + team;
  const int tile_stride = gridDim.x * teams;
  int own_tiles = team < teams ? rounds : 0;  // warps beyond the teams help to norm
  while (own_tiles > 0 && first_tile + (own_tiles - 1) * tile_stride >= w.tiles()) --own_tiles;

  Ring<scaled> ring(reinterpret_cast<const char*>(shared_memory) + ring_offset +
                    warp * kAsyncDepth * kStageBytes);
  const uint8_t* codes =
      w.codes + (int64_t(first_tile) * kTileRows + g) * w.row_bytes + first_chunk * kChunkBytes + t * 16;
  const uint16_t* scales =
      static_cast<const uint16_t*>(w.scales) + int64_t(first_tile) * w.groups * kTileRows;
  const int64_t high_row = 8 * w.row_bytes;
  const int64_t code_jump =
      int64_t(tile_stride) * kTileRows * w.row_bytes - int64_t(steps) * kSplitWarps * kChunkBytes;
  const int64_t scale_jump = int64_t(tile_stride) * w.groups * kTileRows;
  const int64_t step_bytes = kSplitWarps * kChunkBytes;
  int fetches = own_tiles * steps;
  int fetch_step = steps;
  int fetch_chunk = first_chunk;
  const auto fetch = [&](int place) {
    if (fetches <= 0) return ring.pass();
    --fetches;
    ring.start(place, codes, high_row, scaled ? scales + (fetch_chunk >> group_shift) * kTileRows : nullptr);
    ring.pass();
    codes += step_bytes;
    if constexpr (scaled) fetch_chunk += kSplitWarps;
    if (--fetch_step == 0) {
      fetch_step = steps;
      codes += code_jump;
      if constexpr (scaled) {
        scales += scale_jump;
        fetch_chunk = first_chunk;
      }
    }
  };
#pragma unroll
  for (int i = 0; i < (kAsync ? kAsyncDepth : kRegisterDepth); ++i) fetch(i);

  float factor = 1;
  const __half* x;
  int64_t stride = 0;
  QkvPair qkv;
  if (NT == 0 && a.output == ProductOutput::kQkv && own_tiles > 0) qkv = find_qkv(a, first_tile, g, 0);
  if constexpr (NT == 0) {
    auto* xs = reinterpret_cast<__half*>(buffer + Reduce<NT>::floats);
    if (threadIdx.x == 0) block_max[0] = 0;
    // Beyond the columns, in the last chunk.
    for (int k = w.cols + threadIdx.x * 4; k < w.chunks() * chunk_columns(form); k += blockDim.x * 4)
      *reinterpret_cast<uint2*>(xs + staged_place<form>(k)) = {};
    if (a.input.hidden != nullptr) {
      float4 norm[kNormQuads];
#pragma unroll
      for (int i = 0; i < kNormQuads; ++i) {
        const int k = (i * kNormThreads + threadIdx.x) * 4;
        if (threadIdx.x < kNormThreads && k < w.cols)
          norm[i] = __ldg(reinterpret_cast<const float4*>(a.input.norm + k));
      }
      wait_for_previous();
      let_next_start();
      stage_normed<form>(w, a.input, norm, xs, scratch);
    } else {
      wait_for_previous();
      let_next_start();
      const int begin = static_cast<int>(blockIdx.y) * chunks_a_part * chunk_columns(form);
      factor = stage_plain<form>(a.input, begin, min(end_chunk * chunk_columns(form), w.cols), xs);
    }
    x = xs + 8 * t;
  } else {
    wait_for_previous();
    let_next_start();
    for (int m = threadIdx.x; m < kMaxRows; m += blockDim.x) {
      factors[m] = a.input.row_max != nullptr && m < a.rows
                       ? half_scale(__uint_as_float(__ldcg(a.input.row_max + m)))
                       : 1.0F;
      block_max[m] = 0;
    }
    stride = a.input.stride;
    x = reinterpret_cast<const __half*>(a.input.x) + (NT == 1 ? g & (a.rows - 1) : g) * stride + 8 * t;
  }
  __syncthreads();

  uint32_t magic;  // the exponent of 1024, in a register
  asm volatile("mov.u32 %0, 0x64646464;" : "=r"(magic));
  Sums<NT> sums = {};
  float largest = 0;  // of this lane's results, for one row
  int tile = first_tile;
  int turn = 0;
  const auto finish_tile = [&] {
    reduce_tile<NT>(a, tile, turn++, team, in_team, sums, buffer, factor, factors, block_max, qkv, largest);
#pragma unroll
    for (auto& column : sums) {
#pragma unroll
      for (float& sum : column) sum = 0;
    }
    tile += tile_stride;
  };
  if (steps == 0) {
    for (int i = 0; i < own_tiles; ++i) finish_tile();
  }
  int work = own_tiles * steps;
  int step = steps;
  int chunk = first_chunk;
  while (work > 0) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      if (work <= 0) break;
      --work;
      const LaneChunk taken = ring.take(i);
      multiply_chunk<form, NT, fine>(w, taken, x + chunk * chunk_columns(form), 8 * stride, tile, chunk, g,
                                     magic, sums);
      chunk += kSplitWarps;
      fetch(i);
      if (--step > 0) continue;
      step = steps;
      chunk = first_chunk;
      finish_tile();
    }
  }
  if (a.output == ProductOutput::kSwiglu) {
    if constexpr (NT == 0) {
      largest = warp_max(largest);
      if (threadIdx.x % kWarp == 0) atomicMax(block_max, __float_as_uint(largest));
    }
    __syncthreads();
    for (int m = threadIdx.x; m < a.rows; m += blockDim.x) atomicMax(a.row_max + m, block_max[m]);
  }
}

// One group a row, or groups of a power of two of chunks.
inline bool is_coarse(const DeviceMatrix& w) {
  if (w.groups == 1) return true;
  const int chunks = w.group / chunk_columns(w.form);
  return w.group % chunk_columns(w.form) == 0 && (chunks & (chunks - 1)) == 0;
}

constexpr size_t staged_bytes(MatrixForm form, int64_t row_bytes) {
  return static_cast<size_t>(row_bytes / kChunkBytes * chunk_columns(form)) * sizeof(uint16_t);
}

template <MatrixForm form, bool fine>
void product_of(const ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  const int teams = product_teams(a.w, a.split, a.rows, multiprocessors);
  const int chunks_a_part = (a.w.chunks() + a.split - 1) / a.split;
  const int places = (a.w.tiles() + teams - 1) / teams;
  const dim3 blocks(places < multiprocessors ? places : multiprocessors, a.split);
  const int rounds = (places + static_cast<int>(blocks.x) - 1) / static_cast<int>(blocks.x);
  const unsigned team_threads = teams * kSplitWarps * kWarp;
  // Chunks to groups, where groups are as long as chunks or longer; one group has any length.
  int shift = 0;
  if (form != MatrixForm::kF16 && !fine) {
    shift = 31;
    if (a.w.groups > 1) {
      for (shift = 0; chunk_columns(form) << shift < a.w.group;) ++shift;
    }
  }
  const auto run = [&]<int NT>() {
    // A norm takes kNormThreads; small blocks otherwise leave room for the next kernel's.
    const unsigned threads =
        a.input.hidden != nullptr ? std::max<unsigned>(team_threads, kNormThreads) : team_threads;
    // Sums of tiles, staged activations, chunks on their way.
    const size_t ring_offset =
        sizeof(float) * Reduce<NT>::floats + (NT == 0 ? staged_bytes(form, a.w.row_bytes) : 0);
    static const bool async = compiled_for(product_kernel<form, NT, fine>) >= 80;
    const size_t shared =
        ring_offset + (async ? static_cast<size_t>(threads / kWarp) * kAsyncDepth * kStageBytes : 0);
    // Several rows are read from the first-level cache again and again; one row from shared memory.
    launch<product_kernel<form, NT, fine>, NT == 0 ? Carveout::kShared : Carveout::kCache>(
        blocks, threads, shared, stream, a, chunks_a_part, chunks_a_part / kSplitWarps, rounds, teams, shift,
        static_cast<int>(ring_offset));
  };
  if (a.rows == 1 && a.input.stride == 0) return run.template operator()<0>();
  if (a.rows <= 8) return run.template operator()<1>();
  if (a.rows == 16) return run.template operator()<2>();
  if (a.rows == 32) return run.template operator()<4>();
  return run.template operator()<8>();
}

}  // namespace qwen2::cuda
