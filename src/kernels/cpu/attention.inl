// Attention over the paged KV cache and what fills it, included by kernels.inl.

// One row of K or V, in either type.
static inline V::F load_kv(const uint16_t* p) { return V::load_f16(p); }
static inline V::F load_kv(const int8_t* p) { return V::to_float(V::load_i8(p)); }

// ---- attention -------------------------------------------------------------------------------------------
// c[r][2 * width] (+)= sum_k a[r][k] * b[k][2 * width]: the one product of both halves of attention.
template <int R, class T>
static inline void multiply_tile(const float* a, int64_t a_stride, const T* b, int64_t b_stride, int depth,
                                     float* c, int64_t c_stride) {
  V::F sums[R][2];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) sums[r][v] = V::load(c + r * c_stride + v * V::kWidth);
  for (int k = 0; k < depth; ++k) {
    const V::F b0 = load_kv(b + k * b_stride);
    const V::F b1 = load_kv(b + k * b_stride + V::kWidth);
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
template <class T>
static void multiply(const float* a, int64_t a_stride, const T* b, int64_t b_stride, int depth, float* c,
                         int64_t c_stride, int rows, int cols) {
  for (int r = 0; r < rows; r += 6) {
    const int count = rows - r < 6 ? rows - r : 6;
    for (int n = 0; n < cols; n += 2 * V::kWidth) {
      const float* a_tile = a + r * a_stride;
      float* c_tile = c + r * c_stride + n;
      switch (count) {
        case 1: multiply_tile<1>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 2: multiply_tile<2>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 3: multiply_tile<3>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 4: multiply_tile<4>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        case 5: multiply_tile<5>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
        default: multiply_tile<6>(a_tile, a_stride, b + n, b_stride, depth, c_tile, c_stride); break;
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

// Rows of scores times a scale for each of the page's tokens.
static void scale_columns(float* scores, int rows, const uint16_t* scales) {
  V::F factors[kPageTokens / V::kWidth];
  for (int v = 0; v < kPageTokens / V::kWidth; ++v) factors[v] = V::load_f16(scales + v * V::kWidth);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kPageTokens / V::kWidth; ++v) {
      float* at = scores + r * kPageTokens + v * V::kWidth;
      V::store(at, V::mul(V::load(at), factors[v]));
    }
  }
}

// q . R_p b for a pair of dimensions (q0, q1), (b0, b1) that position p rotates is cos(p) (q0 b0 + q1 b1) + sin(p) (q1
// b0 - q0 b1): the two coefficients of each pair and row.
static void key_bias_coefficients(const AttentionArgs& args, const float* q, int rows, float* coefficients) {
  const int dim = args.head_dim;
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < args.key_bias->pairs; ++j) {
      const int pair = args.key_bias->index[j];
      const float q0 = q[r * dim + pair];
      const float q1 = q[r * dim + pair + dim / 2];
      const float b0 = args.key_bias->first[j];
      const float b1 = args.key_bias->second[j];
      coefficients[(r * kMaxBiasPairs + j) * 2] = q0 * b0 + q1 * b1;
      coefficients[(r * kMaxBiasPairs + j) * 2 + 1] = q1 * b0 - q0 * b1;
    }
  }
}

static void add_key_bias(const AttentionArgs& args, int64_t start, const float* coefficients, float* scores, int rows) {
  const float* angles = args.angles + start * args.head_dim;  // [head_dim / 2][2][kPageTokens]
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < kPageTokens; k += V::kWidth) {
      V::F sum = V::load(scores + r * kPageTokens + k);
      for (int j = 0; j < args.key_bias->pairs; ++j) {
        const float* own = coefficients + (r * kMaxBiasPairs + j) * 2;
        const float* row = angles + args.key_bias->index[j] * 2 * kPageTokens + k;
        sum = V::fma(V::set1(own[0]), V::load(row), sum);
        sum = V::fma(V::set1(own[1]), V::load(row + kPageTokens), sum);
      }
      V::store(scores + r * kPageTokens + k, sum);
    }
  }
}

// Softmax of every row over a page, of which row r sees what its position allows; returns how many tokens any sees.
static int softmax_rows(const AttentionArgs& args, int64_t start, float* scores, int rows) {
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
    softmax_page(row, valid, args.sums + r * args.head_dim, args.head_dim, args.maxima + r, args.denominators + r);
  }
  return deepest;
}

template <class T>
static void attend(const AttentionArgs& args, const float* q, int rows) {
  constexpr bool kScaled = sizeof(T) == 1;
  const int dim = args.head_dim;
  alignas(64) float scores[kMaxAttentionRows * kPageTokens];
  float coefficients[kMaxAttentionRows * kMaxBiasPairs * 2];
  if (args.key_bias != nullptr) key_bias_coefficients(args, q, rows, coefficients);
  for (int64_t start = args.key_begin; start < args.key_end; start += kPageTokens) {
    const std::byte* page = args.cache + args.pages[start / kPageTokens] * args.page_stride;
    const auto* keys = reinterpret_cast<const T*>(page);
    const T* values = keys + dim * kPageTokens;
    const auto* scales = reinterpret_cast<const uint16_t*>(values + dim * kPageTokens);
    __builtin_memset(scores, 0, sizeof(float) * static_cast<unsigned>(rows) * kPageTokens);
    multiply(q, dim, keys, kPageTokens, dim, scores, kPageTokens, rows, kPageTokens);
    if (kScaled) scale_columns(scores, rows, scales);
    if (args.key_bias != nullptr) add_key_bias(args, start, coefficients, scores, rows);
    const int deepest = softmax_rows(args, start, scores, rows);
    if (kScaled) scale_columns(scores, rows, scales + kPageTokens);
    multiply(scores, kPageTokens, values, dim, deepest, args.sums, dim, rows, dim);
  }
}

static void attention(const AttentionArgs& args) {
  const int rows = args.tokens * args.group;
  const int dim = args.head_dim;
  // Query rows side by side, so that both products see one matrix.
  alignas(64) float q[kMaxAttentionRows * kMaxHeadDim];
  for (int r = 0; r < rows; ++r) {
    const float* source = args.q + r / args.group * args.q_stride + r % args.group * dim;
    __builtin_memcpy(q + r * dim, source, sizeof(float) * static_cast<unsigned>(dim));
    args.maxima[r] = -__builtin_inff();
    args.denominators[r] = 0;
  }
  __builtin_memset(args.sums, 0, sizeof(float) * static_cast<unsigned>(rows) * static_cast<unsigned>(dim));
  if (args.kv_bits == 8) return attend<int8_t>(args, q, rows);
  attend<uint16_t>(args, q, rows);
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

// Codes of one token's key or value, `stride` apart, and their scale: fp16, rounded up so that no code exceeds 127.
static void store_int8(const float* x, int size, int8_t* out, int stride, uint16_t* scale) {
  float largest = 0;
  for (int d = 0; d < size; ++d) largest = __builtin_fabsf(x[d]) > largest ? __builtin_fabsf(x[d]) : largest;
  *scale = saturated_f16(largest * (1.001F / 127.0F));
  const float unit = V::load_scale(*scale);
  const float inverse = unit > 0 ? 1.0F / unit : 0.0F;
  for (int d = 0; d < size; ++d) {
    float code = __builtin_rintf(x[d] * inverse);
    code = code < -127.0F ? -127.0F : code > 127.0F ? 127.0F : code;
    out[d * stride] = static_cast<int8_t>(code);
  }
}

static void store_token(const RopeArgs& args, const float* key, const float* value, std::byte* page) {
  const int dim = args.head_dim;
  if (args.kv_bits == 8) {
    auto* codes = reinterpret_cast<int8_t*>(page);
    auto* scales = reinterpret_cast<uint16_t*>(codes + 2 * dim * kPageTokens);
    store_int8(key, dim, codes + args.slot, kPageTokens, scales + args.slot);
    store_int8(value, dim, codes + (kPageTokens + args.slot) * dim, 1, scales + kPageTokens + args.slot);
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(page);
  for (int d = 0; d < dim; ++d) halves[d * kPageTokens + args.slot] = saturated_f16(key[d]);
  for (int d = 0; d < dim; ++d) halves[(kPageTokens + args.slot) * dim + d] = saturated_f16(value[d]);
}

static void rope(const RopeArgs& args) {
  const int dim = args.head_dim;
  for (int h = 0; h < args.q_heads; ++h) rotate_head(args.qkv + h * dim, args.bias + h * dim, args, args.q_scale);
  float* keys = args.qkv + args.q_heads * dim;
  const float* key_bias = args.bias + args.q_heads * dim;
  float* values = keys + args.kv_heads * dim;
  const float* value_bias = key_bias + args.kv_heads * dim;
  for (int h = 0; h < args.kv_heads; ++h) {
    rotate_head(keys + h * dim, key_bias + h * dim, args, 1.0F);
    for (int d = 0; d < dim; ++d) values[h * dim + d] += value_bias[h * dim + d];
    store_token(args, keys + h * dim, values + h * dim, args.page + h * args.head_stride);
  }
}
