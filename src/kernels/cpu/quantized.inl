// Kernels for QuantizedMatrix, included by kernels.inl.
//
// Activations are 16-bit integers with a scale for each chunk of columns, so that a chunk's products are exact
// integers: 8-bit or 4-bit codes times 16 bits, at most 128 of them, fit 32 bits. Every instruction set gives the
// same sums, and a row's do not depend on the batch.

// The scales of kWidth rows from row `n` of `block`, for the group that holds column `k`.
static inline V::F group_scale(const QuantizedMatrix& w, int64_t block, int n, int64_t k) {
  const int64_t group = w.format.group;
  const int64_t at = (block * (w.cols / group) + k / group) * 64 + n;
  if (w.format.scale == ScaleForm::kF32) return V::load(reinterpret_cast<const float*>(w.scales) + at);
  const auto* halves = reinterpret_cast<const uint16_t*>(w.scales);
  if (w.format.scale == ScaleForm::kF16) return V::load_f16(halves + at);
  const int64_t super = (block * (w.cols / kSuperBlock) + k / kSuperBlock) * 64 + n;
  return V::mul(V::load_f16(halves + super), V::to_float(V::load_i8(w.sub_scales + at)));
}

static inline V::F group_minimum(const QuantizedMatrix& w, int64_t block, int n, int64_t k) {
  const int64_t group = w.format.group;
  const int64_t at = (block * (w.cols / group) + k / group) * 64 + n;
  const auto* halves = reinterpret_cast<const uint16_t*>(w.offsets);
  if (w.format.scale != ScaleForm::kF16TimesI8) return V::load_f16(halves + at);
  const int64_t super = (block * (w.cols / kSuperBlock) + k / kSuperBlock) * 64 + n;
  return V::mul(V::load_f16(halves + super), V::to_float(V::load_i8(w.sub_offsets + at)));
}

// The zero points of kWidth rows; not for kMinimum, whose codes count from 0.
static inline V::I group_zero(const QuantizedMatrix& w, int64_t block, int n, int64_t k) {
  if (w.format.offset == OffsetForm::kMinimum) return V::set1_i32(0);
  if (w.format.offset == OffsetForm::kNone) return V::set1_i32(w.format.bits == 4 ? 8 : 0);
  const int64_t at = (block * (w.cols / w.format.group) + k / w.format.group) * 64 + n;
  return V::load_i16(reinterpret_cast<const int16_t*>(w.offsets) + at);
}

// Four pairs of columns of 4-bit codes: sums += codes * x. `pair_stride` leads to the next pair of x.
template <int J, int B, int NV>
static inline void add_nibbles(const V::I words[NV], const int16_t* x, int64_t pair_stride, V::I sums[B][NV]) {
  V::I w[NV];
  for (int v = 0; v < NV; ++v) w[v] = V::nibbles<J>(words[v]);
  for (int b = 0; b < B; ++b) {
    const V::I pair = V::set_pair(x + 2 * b);
    for (int v = 0; v < NV; ++v) sums[b][v] = V::dot(sums[b][v], w[v], pair);
  }
  if constexpr (J < 3) add_nibbles<J + 1, B, NV>(words, x + pair_stride, pair_stride, sums);
}

// sums[b][NV * width] += codes * x over `columns` columns, for NV vectors of rows. Fetches the codes `ahead` bytes
// further; 0 for none.
template <int Bits, int B, int NV>
static inline void add_chunk(const uint8_t* line, int64_t columns, const int16_t* x, int64_t pair_stride, int64_t ahead,
                             V::I sums[B][NV]) {
  constexpr int kColumns = Bits == 8 ? 2 : 8;   // that one line of 64 rows holds
  constexpr int kRowBytes = Bits == 8 ? 2 : 4;  // of a row in it
  for (int64_t k = 0; k < columns; k += kColumns, line += 64 * kRowBytes, x += kColumns / 2 * pair_stride) {
    if (ahead > 0) {
      for (int byte = 0; byte < NV * V::kWidth * kRowBytes; byte += 64) __builtin_prefetch(line + ahead + byte);
    }
    V::I w[NV];
    if constexpr (Bits == 8) {
      for (int v = 0; v < NV; ++v) w[v] = V::load_codes8(line + kRowBytes * v * V::kWidth);
      for (int b = 0; b < B; ++b) {
        const V::I pair = V::set_pair(x + 2 * b);
        for (int v = 0; v < NV; ++v) sums[b][v] = V::dot(sums[b][v], w[v], pair);
      }
    } else {
      for (int v = 0; v < NV; ++v) w[v] = V::load_words(line + kRowBytes * v * V::kWidth);
      add_nibbles<0, B, NV>(w, x, pair_stride, sums);
    }
  }
}

// totals[b][64] += the products of one chunk of one block with rows of x.
template <int Bits>
struct QuantizedChunk {
  const QuantizedGemvArgs& args;
  const uint8_t* codes;
  int64_t block;
  int64_t chunk;
  float* totals;

  template <int B, int NV>
  void run(int b) const {
    const int64_t begin = chunk * args.chunk_columns;
    const int64_t end = begin + args.chunk_columns < args.w->cols ? begin + args.chunk_columns : args.w->cols;
    const int64_t bytes = args.chunk_columns * 64 * Bits / 8;
    const int64_t ahead = b > 0 ? 0 : bytes > kPrefetchBytes ? bytes : kPrefetchBytes;
    for (int n = 0; n < 64; n += NV * V::kWidth) {
      V::I sums[B][NV];
      start_sums<B, NV>(b, n, begin, sums);
      add_chunk<Bits, B, NV>(codes + begin * 64 * Bits / 8 + n * (Bits == 8 ? 2 : 4), end - begin,
                             args.x + begin * args.batch + 2 * b, 2 * args.batch, ahead, sums);
      for (int v = 0; v < NV; ++v) add_scaled<B, NV>(b, n, v, begin, sums);
    }
  }

 private:
  // Minus the zero's share.
  template <int B, int NV>
  void start_sums(int b0, int n, int64_t begin, V::I sums[B][NV]) const {
    for (int v = 0; v < NV; ++v) {
      const V::I zero = group_zero(*args.w, block, n + v * V::kWidth, begin);
      for (int b = 0; b < B; ++b)
        sums[b][v] = V::mul_i32(zero, V::set1_i32(-args.x_sums[(b0 + b) * args.chunks + chunk]));
    }
  }

  template <int B, int NV>
  void add_scaled(int b0, int n, int v, int64_t begin, V::I sums[B][NV]) const {
    const QuantizedMatrix& w = *args.w;
    const V::F scale = group_scale(w, block, n + v * V::kWidth, begin);
    const bool has_minimum = w.format.offset == OffsetForm::kMinimum;
    const V::F minimum = has_minimum ? group_minimum(w, block, n + v * V::kWidth, begin) : V::set1(0.0F);
    for (int b = 0; b < B; ++b) {
      const int64_t at = (b0 + b) * args.chunks + chunk;
      V::F sum = V::mul(scale, V::to_float(sums[b][v]));
      if (has_minimum) sum = V::fma(minimum, V::set1(-static_cast<float>(args.x_sums[at])), sum);
      float* total = totals + (b0 + b) * 64 + n + v * V::kWidth;
      V::store(total, V::fma(sum, V::set1(args.x_scales[at]), V::load(total)));
    }
  }
};

template <int Bits>
static void gemv_codes(const QuantizedGemvArgs& args, int64_t block_begin, int64_t block_end) {
  const QuantizedMatrix& w = *args.w;
  alignas(64) float totals[kMaxGemvBatch * 64];
  for (int64_t block = block_begin; block < block_end; ++block) {
    const uint8_t* codes = w.codes + block * 64 * w.cols * Bits / 8;
    for (int b = 0; b < args.batch; ++b) {
      const float* y = args.y + b * args.y_stride + block * 64;
      for (int n = 0; n < 64; ++n) totals[b * 64 + n] = args.accumulate ? y[n] : 0.0F;
    }
    for (int64_t chunk = 0; chunk < args.chunks; ++chunk)
      for_batch_tiles(args.batch, QuantizedChunk<Bits>{args, codes, block, chunk, totals});
    for (int b = 0; b < args.batch; ++b)
      __builtin_memcpy(args.y + b * args.y_stride + block * 64, totals + b * 64, 64 * sizeof(float));
  }
}

static void gemv_quantized(const QuantizedGemvArgs& args, int64_t block_begin, int64_t block_end) {
  if (args.w->format.bits == 8) return gemv_codes<8>(args, block_begin, block_end);
  gemv_codes<4>(args, block_begin, block_end);
}

static float largest_magnitude(const float* x, int64_t size) {
  V::F peak = V::set1(0.0F);
  int64_t k = 0;
  for (; k + V::kWidth <= size; k += V::kWidth) peak = V::max(peak, V::abs(V::load(x + k)));
  float largest = V::reduce_max(peak);
  for (; k < size; ++k) largest = __builtin_fabsf(x[k]) > largest ? __builtin_fabsf(x[k]) : largest;
  return largest;
}

static void quantize_activations(const float* x, int64_t cols, int64_t chunk, int levels, int16_t* out, float* scales,
                                 int32_t* sums) {
  for (int64_t begin = 0; begin < cols; begin += chunk) {
    const int64_t end = begin + chunk < cols ? begin + chunk : cols;
    const float largest = largest_magnitude(x + begin, end - begin);
    const float inverse = largest > 0 ? static_cast<float>(levels) / largest : 0.0F;
    int32_t sum = 0;
    int64_t k = begin;
    for (; k + V::kWidth <= end; k += V::kWidth) sum += V::store_rounded(out + k, V::mul(V::load(x + k), V::set1(inverse)));
    for (; k < end; ++k) {
      out[k] = static_cast<int16_t>(__builtin_rintf(x[k] * inverse));
      sum += out[k];
    }
    scales[begin / chunk] = largest / static_cast<float>(levels);
    sums[begin / chunk] = sum;
  }
}

// Four pairs of columns from column `k` on (a multiple of 8), of kWidth rows from row `n` of a block's codes.
static inline void load_pairs(const QuantizedMatrix& w, const uint8_t* codes, int64_t k, int n, V::I pairs[4]) {
  if (w.format.bits == 4) {
    const V::I words = V::load_words(codes + k * 32 + 4 * n);
    pairs[0] = V::nibbles<0>(words);
    pairs[1] = V::nibbles<1>(words);
    pairs[2] = V::nibbles<2>(words);
    pairs[3] = V::nibbles<3>(words);
  } else {
    for (int j = 0; j < 4; ++j) pairs[j] = V::load_codes8(codes + (k + 2 * j) * 64 + 2 * n);
  }
}

// What is taken off scale * code.
static inline V::F group_shift(const QuantizedMatrix& w, int64_t block, int n, int64_t k, V::F scale) {
  if (w.format.offset == OffsetForm::kMinimum) return group_minimum(w, block, n, k);
  return V::mul(scale, V::to_float(group_zero(w, block, n, k)));
}

static void dequantize_block(const QuantizedMatrix& w, int64_t block, uint16_t* out) {
  const uint8_t* codes = w.codes + block * 64 * w.cols * w.format.bits / 8;
  for (int n = 0; n < 64; n += V::kWidth) {
    for (int64_t group = 0; group < w.cols; group += w.format.group) {
      const V::F scale = group_scale(w, block, n, group);
      const V::F shift = group_shift(w, block, n, group, scale);
      for (int64_t k = group; k < group + w.format.group; k += 8) {
        V::I pairs[4];
        load_pairs(w, codes, k, n, pairs);
        for (int j = 0; j < 4; ++j) {
          const V::F even = V::sub(V::mul(scale, V::to_float(V::low_half(pairs[j]))), shift);
          const V::F odd = V::sub(V::mul(scale, V::to_float(V::high_half(pairs[j]))), shift);
          V::store_bf16_pairs(out + (k / 2 + j) * 128 + 2 * n, even, odd);
        }
      }
    }
  }
  const int64_t padded = (w.cols + 31) / 32 * 32;
  __builtin_memset(out + w.cols * 64, 0, static_cast<uint64_t>(padded - w.cols) * 64 * sizeof(uint16_t));
}

static void dequantize_column(const QuantizedMatrix& w, int64_t block, int64_t k, float* out) {
  const uint8_t* codes = w.codes + block * 64 * w.cols * w.format.bits / 8;
  for (int n = 0; n < 64; n += V::kWidth) {
    const V::F scale = group_scale(w, block, n, k);
    V::I pairs[4];
    load_pairs(w, codes, k / 8 * 8, n, pairs);
    const V::I pair = pairs[k % 8 / 2];
    const V::F code = V::to_float(k % 2 == 0 ? V::low_half(pair) : V::high_half(pair));
    V::store(out + n, V::sub(V::mul(scale, code), group_shift(w, block, n, k, scale)));
  }
}

static void add_scaled(const float* x, float factor, int64_t size, float* y) {
  int64_t i = 0;
  for (; i + V::kWidth <= size; i += V::kWidth)
    V::store(y + i, V::fma(V::load(x + i), V::set1(factor), V::load(y + i)));
  for (; i < size; ++i) y[i] += x[i] * factor;
}

// Squared error of a group that is rounded with the scale `scale`.
static float rounding_error(const float* weights, int64_t size, float scale, float low, float high) {
  const V::F inverse = V::set1(1.0F / scale);
  V::F total = V::set1(0.0F);
  for (int64_t k = 0; k + V::kWidth <= size; k += V::kWidth) {
    const V::F w = V::load(weights + k);
    const V::F code = V::max(V::min(V::round(V::mul(w, inverse)), V::set1(high)), V::set1(low));
    const V::F error = V::fma(code, V::set1(-scale), w);
    total = V::fma(error, error, total);
  }
  return V::reduce_add(total);
}

static uint16_t quantize_group(const float* weights, int64_t size, int bits, int8_t* codes) {
  const float low = bits == 4 ? -8.0F : -127.0F;
  const float high = bits == 4 ? 7.0F : 127.0F;
  float largest = 0;  // in magnitude, with its sign
  for (int64_t k = 0; k < size; ++k)
    if (__builtin_fabsf(weights[k]) > __builtin_fabsf(largest)) largest = weights[k];
  // Four bits reach one step further down than up: the scale takes the sign that gives the largest weight that step.
  const float full = bits == 4 ? largest / low : __builtin_fabsf(largest) / high;
  float best = V::load_scale(V::to_f16(full));
  if (best == 0.0F) {  // all zero, or below what a scale can say
    __builtin_memset(codes, 0, static_cast<uint64_t>(size));
    return 0;
  }
  float best_error = __builtin_inff();
  const float step = bits == 4 ? 0.04F : 0.01F;
  for (int i = -2; i < 8; ++i) {
    const float scale = V::load_scale(V::to_f16(full * (1.0F - step * static_cast<float>(i))));
    if (scale == 0.0F) continue;
    const float error = rounding_error(weights, size, scale, low, high);
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  const float inverse = 1.0F / best;
  for (int64_t k = 0; k < size; ++k) {
    float code = __builtin_rintf(weights[k] * inverse);
    code = code < low ? low : code > high ? high : code;
    codes[k] = static_cast<int8_t>(code);
  }
  return V::to_f16(best);
}
