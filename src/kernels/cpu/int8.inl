// Products of 8-bit activations with unpacked codes, included by instruction sets that multiply bytes
// (V::dot_bytes: unsigned codes times signed activations, four columns at a time).

constexpr int kInt8Tokens = 4;      // 16 sums, 4 weights and an input in registers; 6 were no faster
constexpr int64_t kInt8Chunks = 4;  // that are unpacked together, so that they and a tile's y stay in L1

// Nibbles unpack to the columns 0 4 1 5, then 2 6 3 7 of eight; bytes to their own order.
static void order_for_int8(const int16_t* x, int64_t cols, int bits, int8_t* out) {
  const int order[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 4, 1, 5, 2, 6, 3, 7}};
  const int* own = order[bits == 4 ? 1 : 0];
  for (int64_t k = 0; k < cols; k += 8)
    for (int i = 0; i < 8; ++i) out[k + i] = static_cast<int8_t>(x[k + own[i]]);
}

// One chunk of a block as unsigned bytes [columns / 4][64 rows][4].
static void unpack_chunk(const QuantizedMatrix& w, int64_t block, int64_t begin, int64_t columns, uint8_t* out) {
  const uint8_t* codes = w.codes + (block * w.cols + begin) * 64 * w.format.bits / 8;
  for (int64_t k = 0; k < columns; k += 8, out += 512) {
    if (w.format.bits == 4) {
      for (int n = 0; n < 64; n += V::kWidth) V::unpack_nibbles(codes + k * 32 + 4 * n, out + 4 * n, out + 256 + 4 * n);
    } else {
      for (int half = 0; half < 2; ++half) {
        const uint8_t* lines = codes + (k + 4 * half) * 64;
        for (int n = 0; n < 64; n += 2 * V::kWidth) V::interleave_pairs(lines + 2 * n, lines + 128 + 2 * n, out + 256 * half + 4 * n);
      }
    }
  }
}

// sums[t][64 rows] += codes * x over `columns` columns.
template <int T, int NV>
static inline void add_bytes(const uint8_t* codes, int64_t columns, const int8_t* x, int64_t x_stride, V::I sums[T][NV]) {
  for (int64_t k = 0; k < columns; k += 4, codes += 256) {
    V::I weights[NV];
    for (int v = 0; v < NV; ++v) weights[v] = V::load_bytes(codes + 4 * v * V::kWidth);
    for (int t = 0; t < T; ++t) {
      const V::I quad = V::set_quad(x + t * x_stride + k);
      for (int v = 0; v < NV; ++v) sums[t][v] = V::dot_bytes(sums[t][v], weights[v], quad);
    }
  }
}

// The zero of every unpacked code: signed codes were moved up by 128.
static inline int32_t common_zero(const QuantizedMatrix& w) {
  if (w.format.bits == 8) return 128;
  return w.format.offset == OffsetForm::kNone ? 8 : 0;
}

// y[T][64] += the products of one chunk with T tokens.
template <int T>
static void int8_tile(const Int8GemmArgs& args, const uint8_t* codes, int64_t block, int64_t chunk, int64_t columns,
                      int64_t token) {
  constexpr int kVectors = 64 / V::kWidth;
  const QuantizedMatrix& w = *args.w;
  const int64_t begin = chunk * args.chunk_columns;
  const int8_t* x = args.x + token * w.cols + begin;
  V::I sums[T][kVectors];
  for (int t = 0; t < T; ++t) {
    const int32_t x_sum = args.x_sums[(token + t) * args.chunks + chunk];
    for (int v = 0; v < kVectors; ++v) sums[t][v] = V::set1_i32(-x_sum * common_zero(w));
  }
  if (w.format.offset == OffsetForm::kZero) {
    for (int v = 0; v < kVectors; ++v) {
      const V::I zero = group_zero(w, block, v * V::kWidth, begin);
      for (int t = 0; t < T; ++t) {
        const V::I share = V::mul_i32(zero, V::set1_i32(-args.x_sums[(token + t) * args.chunks + chunk]));
        sums[t][v] = V::add_i32(sums[t][v], share);
      }
    }
  }
  add_bytes<T, kVectors>(codes, columns, x, w.cols, sums);
  const bool has_minimum = w.format.offset == OffsetForm::kMinimum;
  for (int v = 0; v < kVectors; ++v) {
    const V::F scale = group_scale(w, block, v * V::kWidth, begin);
    const V::F minimum = has_minimum ? group_minimum(w, block, v * V::kWidth, begin) : V::set1(0.0F);
    for (int t = 0; t < T; ++t) {
      const int64_t at = (token + t) * args.chunks + chunk;
      float* y = args.y + (token + t) * args.y_stride + block * 64 + v * V::kWidth;
      V::F sum = V::mul(scale, V::to_float(sums[t][v]));
      if (has_minimum) sum = V::fma(minimum, V::set1(-static_cast<float>(args.x_sums[at])), sum);
      V::store(y, V::fma(sum, V::set1(args.x_scales[at]), V::load(y)));
    }
  }
}

static void gemm_int8(const Int8GemmArgs& args, int64_t block_begin, int64_t block_end) {
  alignas(64) uint8_t codes[kInt8Chunks][kMaxChunk * 64];
  const auto columns_of = [&](int64_t chunk) {
    const int64_t left = args.w->cols - chunk * args.chunk_columns;
    return left < args.chunk_columns ? left : args.chunk_columns;
  };
  for (int64_t block = block_begin; block < block_end; ++block) {
    if (!args.accumulate) {
      for (int64_t i = 0; i < args.m; ++i)
        __builtin_memset(args.y + i * args.y_stride + block * 64, 0, 64 * sizeof(float));
    }
    for (int64_t first = 0; first < args.chunks; first += kInt8Chunks) {
      const int64_t end = first + kInt8Chunks < args.chunks ? first + kInt8Chunks : args.chunks;
      for (int64_t c = first; c < end; ++c)
        unpack_chunk(*args.w, block, c * args.chunk_columns, columns_of(c), codes[c - first]);
      int64_t token = 0;
      for (; token + kInt8Tokens <= args.m; token += kInt8Tokens) {
        for (int64_t c = first; c < end; ++c)
          int8_tile<kInt8Tokens>(args, codes[c - first], block, c, columns_of(c), token);
      }
      for (; token < args.m; ++token) {
        for (int64_t c = first; c < end; ++c) int8_tile<1>(args, codes[c - first], block, c, columns_of(c), token);
      }
    }
  }
}
