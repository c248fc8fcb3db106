// The kernels' one source, compiled once per instruction set: the including file defines the vector type `V`
// in its own namespace first. Standard templates stay out of here, so that no code for a newer instruction set
// can be linked into the rest of the program.

// ---- exp -----------------------------------------------------------------------------------------------
// 2^n * p(r) with r in [-ln2/2, ln2/2] and the Taylor polynomial of degree 6: relative error under 2e-7.
static inline V::F vexp(V::F x) {
  x = V::max(V::min(x, V::set1(88.0F)), V::set1(-87.0F));
  const V::F n = V::round(V::mul(x, V::set1(1.44269504088896F)));
  V::F r = V::fma(n, V::set1(-0.693359375F), x);
  r = V::fma(n, V::set1(2.12194440e-4F), r);
  V::F p = V::set1(1.0F / 720);
  p = V::fma(p, r, V::set1(1.0F / 120));
  p = V::fma(p, r, V::set1(1.0F / 24));
  p = V::fma(p, r, V::set1(1.0F / 6));
  p = V::fma(p, r, V::set1(0.5F));
  p = V::fma(p, r, V::set1(1.0F));
  p = V::fma(p, r, V::set1(1.0F));
  return V::scale_by_power_of_two(p, n);
}

// exp for differences that may be minus infinity: those give exactly 0.
static inline V::F vexp_or_zero(V::F x) { return V::zero_below(vexp(x), x, -87.0F); }

static inline float exp_or_zero(float x) {
  float lanes[V::kWidth];
  V::store(lanes, vexp_or_zero(V::set1(x)));
  return lanes[0];
}

// ---- gemv_bf16 -------------------------------------------------------------------------------------------
constexpr int64_t kPairElements = 128;   // one pair of columns of a block
constexpr int64_t kPrefetchBytes = 4096;  // ahead in the thread's sequential stream
constexpr int64_t kChunkPairs = 64;       // 16 KiB of weights stay in L1 while every row of the batch uses them

// acc[b][NV * width] += the products of `pairs` column pairs. Sequential in k for each output. Fetches the weights
// `ahead` bytes further; 0 for none.
template <int B, int NV>
static inline void gemv_tile(const uint16_t* w, int64_t pairs, const float* x, int64_t x_stride, float* acc,
                             int64_t ahead) {
  V::F sums[B][NV];
  for (int b = 0; b < B; ++b)
    for (int v = 0; v < NV; ++v) sums[b][v] = V::load(acc + b * 64 + v * V::kWidth);
  for (int64_t pair = 0; pair < pairs; ++pair, w += kPairElements) {
    if (ahead > 0) {
      for (int line = 0; line < NV * V::kWidth * 4; line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + ahead + line);
    }
    V::F even[NV], odd[NV];
    for (int v = 0; v < NV; ++v) V::load_bf16_pairs(w + v * V::kWidth * 2, even[v], odd[v]);
    for (int b = 0; b < B; ++b) {
      const V::F x0 = V::set1(x[b * x_stride + 2 * pair]);
      const V::F x1 = V::set1(x[b * x_stride + 2 * pair + 1]);
      for (int v = 0; v < NV; ++v) sums[b][v] = V::fma(even[v], x0, sums[b][v]);
      for (int v = 0; v < NV; ++v) sums[b][v] = V::fma(odd[v], x1, sums[b][v]);
    }
  }
  for (int b = 0; b < B; ++b)
    for (int v = 0; v < NV; ++v) V::store(acc + b * 64 + v * V::kWidth, sums[b][v]);
}

// Calls tile<B, NV>(first row of x) for a batch: tiles of many rows and few vectors of weights first, since those
// unpack each weight least often, then smaller ones.
template <class Tile>
static inline void for_batch_tiles(int batch, const Tile& tile) {
  int b = 0;
  for (; b + V::kWideTile <= batch; b += V::kWideTile) tile.template run<V::kWideTile, V::kWideVectors>(b);
  for (; b + V::kBatchTile <= batch; b += V::kBatchTile) tile.template run<V::kBatchTile, V::kBatchVectors>(b);
  for (; b < batch; ++b) tile.template run<1, V::kBatchVectors>(b);
}

// y (+)= the sums [batch][64] of one block.
static inline void write_block(const GemvArgs& args, int64_t block, const float* sums) {
  for (int b = 0; b < args.batch; ++b) {
    float* y = args.y + b * args.y_stride + block * 64;
    for (int n = 0; n < 64; n += V::kWidth) {
      V::F value = V::load(sums + b * 64 + n);
      if (args.accumulate) value = V::add(V::load(y + n), value);
      V::store(y + n, value);
    }
  }
}

// One chunk of a block. The first rows of the batch fetch the next chunk, while they compute.
struct Bf16Chunk {
  const GemvArgs& args;
  const uint16_t* w;
  int64_t first_column;
  int64_t pairs;
  float* acc;

  template <int B, int NV>
  void run(int b) const {
    for (int n = 0; n < 64; n += NV * V::kWidth) {
      gemv_tile<B, NV>(w + 2 * n, pairs, args.x + b * args.x_stride + first_column, args.x_stride, acc + b * 64 + n,
                       b == 0 ? kChunkPairs * kPairElements * 2 : 0);
    }
  }
};

static void gemv_bf16(const GemvArgs& args, int64_t block_begin, int64_t block_end) {
  const int64_t padded_cols = (args.cols + 31) / 32 * 32;
  const int64_t pairs = args.cols / 2;
  alignas(64) float acc[kMaxGemvBatch * 64];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const uint16_t* w = args.weights + block * 64 * padded_cols;
    __builtin_memset(acc, 0, sizeof(float) * 64 * static_cast<unsigned>(args.batch));
    if (args.batch == 1) {
      for (int n = 0; n < 64; n += V::kGemvVectors * V::kWidth)
        gemv_tile<1, V::kGemvVectors>(w + 2 * n, pairs, args.x, args.x_stride, acc + n, kPrefetchBytes);
    } else {
      for (int64_t begin = 0; begin < pairs; begin += kChunkPairs) {
        const int64_t count = begin + kChunkPairs < pairs ? kChunkPairs : pairs - begin;
        for_batch_tiles(args.batch, Bf16Chunk{args, w + begin * kPairElements, 2 * begin, count, acc});
      }
    }
    write_block(args, block, acc);
  }
}

// ---- element-wise ----------------------------------------------------------------------------------------
static float sum_magnitudes(const float* x, int64_t size) {
  V::F sums = V::set1(0.0F);
  int64_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) sums = V::add(sums, V::abs(V::load(x + i)));
  float sum = V::reduce_add(sums);
  for (; i < size; ++i) sum += __builtin_fabsf(x[i]);
  return sum;
}

static void rms_norm(const float* x, const float* weight, float epsilon, int64_t size, float* out) {
  V::F squares = V::set1(0.0F);
  int64_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) squares = V::fma(V::load(x + i), V::load(x + i), squares);
  float sum = V::reduce_add(squares);
  for (; i < size; ++i) sum += x[i] * x[i];
  const float scale = 1.0F / __builtin_sqrtf(sum / static_cast<float>(size) + epsilon);
  for (i = 0; i + V::kWidth <= size; i += V::kWidth)
    V::store(out + i, V::mul(V::mul(V::load(x + i), V::set1(scale)), V::load(weight + i)));
  for (; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

static inline V::F vswiglu(V::F gate, V::F up) {
  const V::F denominator = V::add(V::set1(1.0F), vexp(V::mul(gate, V::set1(-1.0F))));
  return V::mul(V::div(gate, denominator), up);
}

static void swiglu(const float* gate, const float* up, int64_t size, float* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) V::store(out + i, vswiglu(V::load(gate + i), V::load(up + i)));
  if (i == size) return;
  float lanes[3][V::kWidth] = {};
  __builtin_memcpy(lanes[0], gate + i, sizeof(float) * static_cast<uint64_t>(size - i));
  __builtin_memcpy(lanes[1], up + i, sizeof(float) * static_cast<uint64_t>(size - i));
  V::store(lanes[2], vswiglu(V::load(lanes[0]), V::load(lanes[1])));
  __builtin_memcpy(out + i, lanes[2], sizeof(float) * static_cast<uint64_t>(size - i));
}

static inline uint16_t scalar_to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

static void to_bf16(const float* x, int64_t size, uint16_t* out) {
  int64_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth) V::store_bf16(out + i, V::load(x + i));
  for (; i < size; ++i) out[i] = scalar_to_bf16(x[i]);
}

static void split_bf16(const float* x, int64_t size, uint16_t* high, uint16_t* low) {
  float rest[V::kWidth];
  for (int64_t i = 0; i < size; i += V::kWidth) {
    const int64_t count = size - i < V::kWidth ? size - i : V::kWidth;
    to_bf16(x + i, count, high + i);
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t bits = static_cast<uint32_t>(high[i + j]) << 16;
      rest[j] = x[i + j] - __builtin_bit_cast(float, bits);
    }
    to_bf16(rest, count, low + i);
  }
}

static uint64_t read_lines(const std::byte* data, int64_t lines) {
  using Words = uint64_t __attribute__((vector_size(4 * V::kWidth)));
  constexpr int kPerLine = 16 / V::kWidth;
  Words totals[4] = {};
  for (int64_t i = 0; i < lines; ++i) {
    __builtin_prefetch(data + i * 64 + kPrefetchBytes);
    for (int part = 0; part < kPerLine; ++part) {
      Words words;
      __builtin_memcpy(&words, data + i * 64 + part * 4 * V::kWidth, sizeof words);
      totals[(i * kPerLine + part) % 4] += words;
    }
  }
  const Words all = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  uint64_t sum = 0;
  for (int i = 0; i < V::kWidth / 2; ++i) sum += all[i];
  return sum;
}

static void widen_block(const uint16_t* block, int64_t cols, float* out, int64_t ld) {
  for (int64_t k = 0; k < cols; k += 2) {
    for (int n = 0; n < 64; n += V::kWidth) {
      V::F even, odd;
      V::load_bf16_pairs(block + k * 64 + 2 * n, even, odd);
      V::store(out + k * ld + n, even);
      V::store(out + (k + 1) * ld + n, odd);
    }
  }
}

#include "kernels/cpu/attention.inl"
#include "kernels/cpu/quantized.inl"
