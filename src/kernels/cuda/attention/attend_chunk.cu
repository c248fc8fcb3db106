// Attention of a prompt's chunk: a block multiplies 128 tokens of one query head with the keys, page by
// page, with a running softmax. Products are fp16 with float sums; scores, maxima and denominators are
// float.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/mma.cuh"
#include "kernels/cuda/common/shared_memory.cuh"

namespace qwen2::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kTokens = kWarps * 16;  // tokens of a block
constexpr int kKeys = kPageTokens;
constexpr int kPairsAtOnce = 8;  // rotation pairs of a key bias in shared memory
constexpr float kLog2e = 1.4426950408889634F;

// fp16 [64][dim]. The 16-byte pieces of a row are permuted so that eight rows are in different banks.
template <int dim>
__device__ __forceinline__ __half* tile_place(__half* tile, int row, int piece) {
  return tile + row * dim + ((piece ^ (row & 7)) * 8);
}

template <int dim, int bits>
__device__ __forceinline__ void load_page(const ChunkAttentionArgs& a, uint32_t page, int kv_head, __half* k,
                                          __half* v) {
  const std::byte* base =
      a.cache.data + (int64_t(page) * a.heads.kv_heads + kv_head) * kv_page_bytes(bits, dim);
  constexpr int pieces = dim / 8;
  for (int i = threadIdx.x; i < 2 * kKeys * pieces; i += kThreads) {
    const int what = i / (kKeys * pieces);
    const int row = i / pieces % kKeys;
    const int piece = i % pieces;
    __half* to = tile_place<dim>(what == 0 ? k : v, row, piece);
    const int64_t at = (int64_t(what) * kKeys + row) * dim + piece * 8;
    if constexpr (bits == 16) {
      copy_16(shared_address(to), base + at * 2);
    } else {
      const uint2 codes = *reinterpret_cast<const uint2*>(base + at);
      const float scale =
          __half2float(reinterpret_cast<const __half*>(base + 2 * kKeys * dim)[what * kKeys + row]);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const auto code = static_cast<int8_t>((j < 4 ? codes.x : codes.y) >> (j % 4 * 8));
        to[j] = __float2half_rn(float(code) * scale);
      }
    }
  }
  end_copies();
}

// Adds the part of the key bias that is kept out of the cache to the scores of the warp's 16 rows: see
// row_attention.cuh. `rotations` [kKeys][kPairsAtOnce][2] and `terms` [kTokens][kPairsAtOnce][2] are shared
// memory.
template <int dim>
__device__ void add_key_bias(const ChunkAttentionArgs& a, int first_token, int head, int kv_head,
                             int first_key, float2* rotations, float2* terms, float (&s)[8][4]) {
  const KeyBiasView& bias = a.cache.key_bias;
  const int warp = threadIdx.x / kWarp;
  const int g = threadIdx.x % kWarp / 4;
  const int t = threadIdx.x % 4;
  for (int first = 0; first < bias.pairs; first += kPairsAtOnce) {
    const int pairs = min(kPairsAtOnce, bias.pairs - first);
    __syncthreads();
    const int32_t* index = bias.index + kv_head * kMaxBiasPairs + first;
    for (int i = threadIdx.x; i < kKeys * pairs; i += kThreads) {
      const int key = min(first_key + i / pairs, a.positions - 1);
      rotations[i / pairs * kPairsAtOnce + i % pairs] =
          reinterpret_cast<const float2*>(a.cache.rotations)[int64_t(key) * (dim / 2) + index[i % pairs]];
    }
    for (int i = threadIdx.x; i < kTokens * pairs; i += kThreads) {
      const int token = first_token + i / pairs;
      const int pair = i % pairs;
      float2 term = {};
      if (token < a.tokens) {
        const float* q = a.q + (int64_t(token) * a.heads.q_heads + head) * dim;
        const float q0 = q[index[pair]];
        const float q1 = q[index[pair] + dim / 2];
        const float b0 = bias.first[kv_head * kMaxBiasPairs + first + pair];
        const float b1 = bias.second[kv_head * kMaxBiasPairs + first + pair];
        term = {q0 * b0 + q1 * b1, q1 * b0 - q0 * b1};
      }
      terms[i / pairs * kPairsAtOnce + pair] = term;
    }
    __syncthreads();
    for (int pair = 0; pair < pairs; ++pair) {
      const float2 low = terms[(warp * 16 + g) * kPairsAtOnce + pair];
      const float2 high = terms[(warp * 16 + g + 8) * kPairsAtOnce + pair];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 r = rotations[(n * 8 + 2 * t + i) * kPairsAtOnce + pair];
          s[n][i] += low.x * r.x + low.y * r.y;
          s[n][2 + i] += high.x * r.x + high.y * r.y;
        }
      }
    }
  }
}

template <int dim, int bits, bool biased>
__global__ void __launch_bounds__(kThreads)
    attend_chunk_kernel(const __grid_constant__ ChunkAttentionArgs a) {
  constexpr int stages = biased || bits == 8 ? 1 : 2;
  constexpr int k_steps = dim / 16;
  extern __shared__ uint4 shared_memory[];
  auto* tiles = reinterpret_cast<__half*>(shared_memory);  // [stages][2][kKeys][dim]
  auto* rotations = reinterpret_cast<float2*>(tiles + stages * 2 * kKeys * dim);
  float2* terms = rotations + kKeys * kPairsAtOnce;
  wait_for_previous();
  trigger_dependents();
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int g = lane / 4;
  const int t = lane % 4;
  const int head = blockIdx.y;
  const int kv_head = head / a.heads.group();
  const int first_token = (gridDim.x - 1 - blockIdx.x) * kTokens;  // the longest rows first
  const int last_token = min(first_token + kTokens, a.tokens) - 1;
  const int keys = a.position + last_token + 1;
  const int pages = (keys + kKeys - 1) / kKeys;

  // Queries as the left operand: rows g and g + 8, columns 2 t and 2 t + 8 of each step.
  uint32_t q[k_steps][4];
#pragma unroll
  for (int s = 0; s < k_steps; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = first_token + warp * 16 + g + i % 2 * 8;
      float2 v = {};
      if (token < a.tokens)
        v = *reinterpret_cast<const float2*>(a.q + (int64_t(token) * a.heads.q_heads + head) * dim + s * 16 +
                                             2 * t + i / 2 * 8);
      q[s][i] = as_bits(__floats2half2_rn(v.x, v.y));
    }
  }
  float out[dim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float denominator[2] = {};
  load_page<dim, bits>(a, a.pages[0], kv_head, tiles, tiles + kKeys * dim);
  for (int page = 0; page < pages; ++page) {
    __half* k = tiles + page % stages * 2 * kKeys * dim;
    __half* v = k + kKeys * dim;
    if (stages == 2 && page + 1 < pages) {
      __half* next = tiles + (page + 1) % stages * 2 * kKeys * dim;
      load_page<dim, bits>(a, a.pages[page + 1], kv_head, next, next + kKeys * dim);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    float s[8][4] = {};
#pragma unroll
    for (int step = 0; step < k_steps; ++step) {
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        // Keys n * 8 .. + 15, columns step * 16 .. + 15.
        uint32_t b[4];
        load_matrices(
            b, shared_address(tile_place<dim>(k, (n + lane / 16) * 8 + lane % 8, step * 2 + lane / 8 % 2)));
        const uint32_t low[2] = {b[0], b[1]};
        const uint32_t high[2] = {b[2], b[3]};
        mma_step(s[n], q[step], low);
        mma_step(s[n + 1], q[step], high);
      }
    }
    const int first_key = page * kKeys;
    if constexpr (biased) {
      add_key_bias<dim>(a, first_token, head, kv_head, first_key, rotations, terms, s);
    }
    const int row = a.position + first_token + warp * 16 + g;
    if (first_key + kKeys > a.position + first_token + warp * 16) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first_key + n * 8 + 2 * t + i % 2 > row + i / 2 * 8) s[n][i] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = maximum[half];
#pragma unroll
      for (int n = 0; n < 8; ++n) max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 1));
      max = fmaxf(max, __shfl_xor_sync(kFullMask, max, 2));
      const float base = max == -INFINITY ? 0.0F : max;  // a row of padding
      const float shrink = exp2f((maximum[half] - base) * kLog2e);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = exp2f((s[n][i] - base) * kLog2e);
          sum += s[n][i];
        }
      }
      maximum[half] = max;
      denominator[half] = denominator[half] * shrink + sum;
#pragma unroll
      for (auto& o : out) {
        o[2 * half] *= shrink;
        o[2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      const uint32_t p[4] = {as_bits(__floats2half2_rn(s[2 * step][0], s[2 * step][1])),
                             as_bits(__floats2half2_rn(s[2 * step][2], s[2 * step][3])),
                             as_bits(__floats2half2_rn(s[2 * step + 1][0], s[2 * step + 1][1])),
                             as_bits(__floats2half2_rn(s[2 * step + 1][2], s[2 * step + 1][3]))};
#pragma unroll
      for (int n = 0; n < dim / 8; n += 2) {
        // Keys step * 16 .. + 15, columns n * 8 .. + 15.
        uint32_t b[4];
        load_matrices_transposed(b, shared_address(tile_place<dim>(v, step * 16 + lane % 16, n + lane / 16)));
        const uint32_t low[2] = {b[0], b[1]};
        const uint32_t high[2] = {b[2], b[3]};
        mma_step(out[n], p, low);
        mma_step(out[n + 1], p, high);
      }
    }
    __syncthreads();
    if (stages == 1 && page + 1 < pages)
      load_page<dim, bits>(a, a.pages[page + 1], kv_head, tiles, tiles + kKeys * dim);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = denominator[half];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const int token = first_token + warp * 16 + g + 8 * half;
    if (token >= a.tokens) continue;
    auto* to = reinterpret_cast<__half*>(a.out) + token * a.out_stride + head * dim + 2 * t;
#pragma unroll
    for (int n = 0; n < dim / 8; ++n)
      *reinterpret_cast<__half2*>(to + n * 8) =
          __floats2half2_rn(out[n][2 * half] / sum, out[n][2 * half + 1] / sum);
  }
}

template <int dim, int bits, bool biased>
void attend_of(const ChunkAttentionArgs& a, cudaStream_t stream) {
  constexpr int stages = biased || bits == 8 ? 1 : 2;
  constexpr size_t shared = stages * 2 * kKeys * dim * sizeof(__half) +
                            (biased ? (kKeys + kTokens) * kPairsAtOnce * sizeof(float2) : 0);
  launch<attend_chunk_kernel<dim, bits, biased>>(dim3((a.tokens + kTokens - 1) / kTokens, a.heads.q_heads),
                                                 kThreads, shared, stream, a);
}

template <int dim, int bits>
void attend_bias(const ChunkAttentionArgs& a, cudaStream_t stream) {
  if (a.cache.key_bias.pairs > 0) return attend_of<dim, bits, true>(a, stream);
  attend_of<dim, bits, false>(a, stream);
}

}  // namespace

void attend_chunk(const ChunkAttentionArgs& args, cudaStream_t stream) {
  const bool wide = args.heads.head_dim == 128;
  if (args.cache.kv_bits == 16)
    return wide ? attend_bias<128, 16>(args, stream) : attend_bias<64, 16>(args, stream);
  return wide ? attend_bias<128, 8>(args, stream) : attend_bias<64, 8>(args, stream);
}

}  // namespace qwen2::cuda
