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

// acc[b][NV * width] += the products of `pairs` column pairs. Sequential in k for each output.
template <int B, int NV>
static inline void gemv_tile(const uint16_t* w, int64_t pairs, const float* x, int64_t x_stride, float* acc,
                             bool prefetch) {
  V::F sums[B][NV];
  for (int b = 0; b < B; ++b)
    for (int v = 0; v < NV; ++v) sums[b][v] = V::load(acc + b * 64 + v * V::kWidth);
  for (int64_t pair = 0; pair < pairs; ++pair, w += kPairElements) {
    if (prefetch) {
      for (int line = 0; line < NV * V::kWidth * 4; line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + line);
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

// All 64 rows of a block for B rows of x, in passes of NV vectors.
template <int B, int NV>
static inline void gemv_passes(const uint16_t* w, int64_t pairs, const float* x, int64_t x_stride, float* acc,
                               bool prefetch) {
  for (int n = 0; n < 64; n += NV * V::kWidth)
    gemv_tile<B, NV>(w + 2 * n, pairs, x, x_stride, acc + n, prefetch);
}

static void gemv_bf16(const GemvArgs& args, int64_t block_begin, int64_t block_end) {
  const int64_t padded_cols = (args.cols + 31) / 32 * 32;
  const int64_t pairs = args.cols / 2;
  alignas(64) float acc[kMaxGemvBatch * 64];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const uint16_t* w = args.weights + block * 64 * padded_cols;
    __builtin_memset(acc, 0, sizeof(float) * 64 * static_cast<unsigned>(args.batch));
    if (args.batch == 1) {
      gemv_passes<1, V::kGemvVectors>(w, pairs, args.x, args.x_stride, acc, true);
    } else {
      for (int64_t begin = 0; begin < pairs; begin += kChunkPairs) {
        const int64_t count = begin + kChunkPairs < pairs ? kChunkPairs : pairs - begin;
        const uint16_t* chunk = w + begin * kPairElements;
        int b = 0;
        for (; b + V::kBatchTile <= args.batch; b += V::kBatchTile) {
          gemv_passes<V::kBatchTile, V::kBatchVectors>(chunk, count, args.x + b * args.x_stride + 2 * begin,
                                                       args.x_stride, acc + b * 64, b == 0);
        }
        for (; b < args.batch; ++b) {
          gemv_passes<1, V::kBatchVectors>(chunk, count, args.x + b * args.x_stride + 2 * begin, args.x_stride,
                                           acc + b * 64, b == 0);
        }
      }
    }
    for (int b = 0; b < args.batch; ++b) {
      float* y = args.y + b * args.y_stride + block * 64;
      for (int n = 0; n < 64; n += V::kWidth) {
        V::F value = V::load(acc + b * 64 + n);
        if (args.accumulate) value = V::add(V::load(y + n), value);
        V::store(y + n, value);
      }
    }
  }
}

// ---- attention -------------------------------------------------------------------------------------------
// c[r][2 * width] (+)= sum_k a[r][k] * b[k][2 * width], b in fp16: the one product of both halves of attention.
template <int R>
static inline void multiply_f16_tile(const float* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int depth,
                                     float* c, int64_t c_stride) {
  V::F sums[R][2];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) sums[r][v] = V::load(c + r * c_stride + v * V::kWidth);
  for (int k = 0; k < depth; ++k) {
    const V::F b0 = V::load_f16(b + k * b_stride);
    const V::F b1 = V::load_f16(b + k * b_stride + V::kWidth);
    for (int r = 0; r < R; ++r) {
      const V::F value = V::set1(a[r * a_stride + k]);
      sums[r][0] = V::fma(value, b0, sums[r][0]);
      sums[r][1] = V::fma(value, b1, sums[r][1]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) V::store(c + r * c_stride + v * V::kWidth, sums[r][v]);
}

// c[rows][cols] += a[rows][depth] * b[depth][cols], cols a multiple of 2 * width.
static void multiply_f16(const float* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int depth, float* c,
                         int64_t c_stride, int rows, int cols) {
  for (int r = 0; r < rows; r += 6) {
    const int count = rows - r < 6 ? rows - r : 6;
    for (int n = 0; n < cols; n += 2 * V::kWidth) {
      const float* a_tile = a + r * a_stride;
      float* c_tile = c + r * c_stride + n;
      switch (count) {
        case 1: multiply_f16_tile<1>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 2: multiply_f16_tile<2>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 3: multiply_f16_tile<3>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 4: multiply_f16_tile<4>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 5: multiply_f16_tile<5>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        default: multiply_f16_tile<6>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
      }
    }
  }
}

// One row's online softmax over a page: scores become probabilities relative to the new maximum, and what was
// summed before is rescaled.
static inline void softmax_page(float* scores, int valid, float* sums, int head_dim, float* maximum,
                                float* denominator) {
  for (int k = valid; k < kPageTokens; ++k) scores[k] = -__builtin_inff();
  V::F peak = V::load(scores);
  for (int k = V::kWidth; k < kPageTokens; k += V::kWidth) peak = V::max(peak, V::load(scores + k));
  const float page_maximum = V::reduce_max(peak);
  if (page_maximum > *maximum) {
    const float scale = exp_or_zero(*maximum - page_maximum);
    for (int d = 0; d < head_dim; d += V::kWidth) V::store(sums + d, V::mul(V::load(sums + d), V::set1(scale)));
    *denominator *= scale;
    *maximum = page_maximum;
  }
  V::F total = V::set1(0.0F);
  for (int k = 0; k < kPageTokens; k += V::kWidth) {
    const V::F p = vexp_or_zero(V::add(V::load(scores + k), V::set1(-*maximum)));
    total = V::add(total, p);
    V::store(scores + k, p);
  }
  *denominator += V::reduce_add(total);
}

static void attention(const AttentionArgs& args) {
  const int rows = args.tokens * args.group;
  const int dim = args.head_dim;
  // Query rows side by side, so that both products see one matrix.
  alignas(64) float q[kMaxAttentionRows * kMaxHeadDim];
  alignas(64) float scores[kMaxAttentionRows * kPageTokens];
  for (int r = 0; r < rows; ++r) {
    const float* source = args.q + r / args.group * args.q_stride + r % args.group * dim;
    __builtin_memcpy(q + r * dim, source, sizeof(float) * static_cast<unsigned>(dim));
    args.maxima[r] = -__builtin_inff();
    args.denominators[r] = 0;
  }
  __builtin_memset(args.sums, 0, sizeof(float) * static_cast<unsigned>(rows) * static_cast<unsigned>(dim));
  for (int64_t start = args.key_begin; start < args.key_end; start += kPageTokens) {
    const uint16_t* page = args.cache + args.pages[start / kPageTokens] * args.page_stride;
    __builtin_memset(scores, 0, sizeof(float) * static_cast<unsigned>(rows) * kPageTokens);
    multiply_f16(q, dim, page, kPageTokens, dim, scores, kPageTokens, rows, kPageTokens);
    int deepest = 0;
    for (int r = 0; r < rows; ++r) {
      int64_t limit = args.first_position + r / args.group + 1;
      if (limit > args.key_end) limit = args.key_end;
      const int64_t left = limit - start;
      const int valid = left <= 0 ? 0 : left > kPageTokens ? kPageTokens : static_cast<int>(left);
      if (valid > deepest) deepest = valid;
      float* row = scores + r * kPageTokens;
      if (valid == 0) {  // a later page than this row's position
        __builtin_memset(row, 0, sizeof(float) * kPageTokens);
        continue;
      }
      softmax_page(row, valid, args.sums + r * dim, dim, args.maxima + r, args.denominators + r);
    }
    multiply_f16(scores, kPageTokens, page + dim * kPageTokens, dim, deepest, args.sums, dim, rows, dim);
  }
}

static void merge_attention(const float* sums, int64_t sums_stride, const float* maxima, const float* denominators,
                            int64_t scalar_stride, int parts, int head_dim, float* out) {
  float maximum = maxima[0];
  for (int p = 1; p < parts; ++p)
    if (maxima[p * scalar_stride] > maximum) maximum = maxima[p * scalar_stride];
  float denominator = 0;
  for (int p = 0; p < parts; ++p)
    denominator += denominators[p * scalar_stride] * exp_or_zero(maxima[p * scalar_stride] - maximum);
  for (int d = 0; d < head_dim; d += V::kWidth) {
    V::F total = V::set1(0.0F);
    for (int p = 0; p < parts; ++p) {
      const V::F weight = V::set1(exp_or_zero(maxima[p * scalar_stride] - maximum) / denominator);
      total = V::fma(weight, V::load(sums + p * sums_stride + d), total);
    }
    V::store(out + d, total);
  }
}

// ---- rope ------------------------------------------------------------------------------------------------
static inline uint16_t saturated_f16(float x) {
  if (x > 65504.0F) x = 65504.0F;
  if (x < -65504.0F) x = -65504.0F;
  return V::to_f16(x);
}

static void rotate_head(float* head, const float* bias, const RopeArgs& args, float scale) {
  const int half = args.head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i] + bias[i];
    const float b = head[i + half] + bias[i + half];
    head[i] = (a * args.cosines[i] - b * args.sines[i]) * scale;
    head[i + half] = (b * args.cosines[i] + a * args.sines[i]) * scale;
  }
}

static void rope(const RopeArgs& args) {
  const int dim = args.head_dim;
  for (int h = 0; h < args.q_heads; ++h) rotate_head(args.qkv + h * dim, args.bias + h * dim, args, args.q_scale);
  float* keys = args.qkv + args.q_heads * dim;
  const float* key_bias = args.bias + args.q_heads * dim;
  const float* values = keys + args.kv_heads * dim;
  const float* value_bias = key_bias + args.kv_heads * dim;
  for (int h = 0; h < args.kv_heads; ++h) {
    uint16_t* page = args.page + h * args.head_stride;
    rotate_head(keys + h * dim, key_bias + h * dim, args, 1.0F);
    for (int d = 0; d < dim; ++d) page[d * kPageTokens + args.slot] = saturated_f16(keys[h * dim + d]);
    uint16_t* value_row = page + dim * kPageTokens + args.slot * dim;
    for (int d = 0; d < dim; ++d) value_row[d] = saturated_f16(values[h * dim + d] + value_bias[h * dim + d]);
  }
}

// ---- element-wise ----------------------------------------------------------------------------------------
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
