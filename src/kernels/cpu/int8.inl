// Products of 8-bit activations with unpacked codes, included by instruction sets that multiply bytes
// (V::dot_bytes: unsigned codes times signed activations, four columns at a time).

constexpr int kInt8Tokens = 4;      // 16 sums, 4 weights and an input in registers; 6 were no faster
constexpr int64_t kDirectTokens = 16;  // up to which codes are unpacked again for every tile of tokens
constexpr int64_t kDirectAhead = 16384;  // bytes of codes that are then fetched ahead
constexpr int64_t kInt8Chunks = 4;  // that are unpacked together, so that they and a tile's y stay in L1

// Nibbles unpack to the columns 0 4 1 5, then 2 6 3 7 of eight; bytes to their own order.
static void order_for_int8(const int16_t* x, int64_t cols, int bits, int8_t* out) {
  const int order[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 4, 1, 5, 2, 6, 3, 7}};
  const int* own = order[bits == 4 ? 1 : 0];
  for (int64_t k = 0; k < cols; k += 8)
    for (int i = 0; i < 8; ++i) out[k + i] = static_cast<int8_t>(x[k + own[i]]);
}

// Eight columns of NV vectors of rows as unsigned bytes: columns 0 to 3 of add_bytes' order, then the others.
template <int Bits, int NV>
static inline void unpack_eight(const uint8_t* line, V::I first[NV], V::I second[NV]) {
  if constexpr (Bits == 4) {
    for (int v = 0; v < NV; ++v) V::nibble_bytes(line + 4 * v * V::kWidth, first[v], second[v]);
  } else {
    for (int v = 0; v < NV; v += 2) {
      const uint8_t* pairs = line + 2 * v * V::kWidth;
      V::quads(pairs, pairs + 128, first[v], first[v + 1]);
      V::quads(pairs + 256, pairs + 384, second[v], second[v + 1]);
    }
  }
}

// One chunk of a block as unsigned bytes [columns / 4][64 rows][4].
static void unpack_chunk(const QuantizedMatrix& w, int64_t block, int64_t begin, int64_t columns, uint8_t* out) {
  constexpr int kVectors = 64 / V::kWidth;
  const uint8_t* codes = w.codes + (block * w.cols + begin) * 64 * w.format.bits / 8;
  for (int64_t k = 0; k < columns; k += 8, out += 512) {
    V::I quads[2][kVectors];
    if (w.format.bits == 4) {
      unpack_eight<4, kVectors>(codes + k * 32, quads[0], quads[1]);
    } else {
      unpack_eight<8, kVectors>(codes + k * 64, quads[0], quads[1]);
    }
    for (int v = 0; v < kVectors; ++v) {
      V::store_bytes(out + 4 * v * V::kWidth, quads[0][v]);
      V::store_bytes(out + 256 + 4 * v * V::kWidth, quads[1][v]);
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

// Minus the zero's share of one chunk, for NV vectors of rows from row `n` of a block.
template <int T, int NV>
static inline void start_bytes(const Int8GemmArgs& args, int64_t block, int n, int64_t chunk, int64_t token,
                               V::I sums[T][NV]) {
  const QuantizedMatrix& w = *args.w;
  for (int v = 0; v < NV; ++v) {
    V::I zero = V::set1_i32(common_zero(w));
    if (w.format.offset == OffsetForm::kZero)
      zero = V::add_i32(zero, group_zero(w, block, n + v * V::kWidth, chunk * args.chunk_columns));
    for (int t = 0; t < T; ++t)
      sums[t][v] = V::mul_i32(zero, V::set1_i32(-args.x_sums[(token + t) * args.chunks + chunk]));
  }
}

// y[T][NV * width] += the scaled sums of one chunk.
template <int T, int NV>
static inline void add_scaled_bytes(const Int8GemmArgs& args, int64_t block, int n, int64_t chunk, int64_t token,
                                    const V::I sums[T][NV]) {
  const QuantizedMatrix& w = *args.w;
  const int64_t begin = chunk * args.chunk_columns;
  const bool has_minimum = w.format.offset == OffsetForm::kMinimum;
#pragma GCC unroll 4  // the sums stay in registers
  for (int v = 0; v < NV; ++v) {
    const int row = n + v * V::kWidth;
    const V::F scale = group_scale(w, block, row, begin);
    const V::F minimum = has_minimum ? group_minimum(w, block, row, begin) : V::set1(0.0F);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const int64_t at = (token + t) * args.chunks + chunk;
      float* y = args.y + (token + t) * args.y_stride + block * 64 + row;
      V::F sum = V::mul(scale, V::to_float(sums[t][v]));
      if (has_minimum) sum = V::fma(minimum, V::set1(-static_cast<float>(args.x_sums[at])), sum);
      V::store(y, V::fma(sum, V::set1(args.x_scales[at]), V::load(y)));
    }
  }
}

// y[T][64] += the products of one unpacked chunk with T tokens.
template <int T>
static void int8_tile(const Int8GemmArgs& args, const uint8_t* codes, int64_t block, int64_t chunk, int64_t columns,
                      int64_t token) {
  constexpr int kVectors = 64 / V::kWidth;
  const int8_t* x = args.x + token * args.w->cols + chunk * args.chunk_columns;
  V::I sums[T][kVectors];
  start_bytes<T, kVectors>(args, block, 0, chunk, token, sums);
  add_bytes<T, kVectors>(codes, columns, x, args.w->cols, sums);
  add_scaled_bytes<T, kVectors>(args, block, 0, chunk, token, sums);
}

// y[batch][64] += the products of one chunk that is unpacked on the way, for few tokens. The first of them fetch the
// codes that follow.
template <int Bits>
struct DirectChunk {
  const Int8GemmArgs& args;
  int64_t block;
  int64_t chunk;
  int64_t columns;

  template <int T, int NV>
  void run(int token) const {
    const int64_t begin = chunk * args.chunk_columns;
    const uint8_t* codes = args.w->codes + (block * args.w->cols + begin) * 64 * Bits / 8;
    for (int n = 0; n < 64; n += NV * V::kWidth) {
      V::I sums[T][NV];
      start_bytes<T, NV>(args, block, n, chunk, token, sums);
      add_codes<T, NV>(codes + n * (Bits == 8 ? 2 : 4), args.x + token * args.w->cols + begin, token == 0, sums);
      add_scaled_bytes<T, NV>(args, block, n, chunk, token, sums);
    }
  }

 private:
  template <int T, int NV>
  void add_codes(const uint8_t* line, const int8_t* x, bool fetch, V::I sums[T][NV]) const {
    constexpr int64_t kLine = 64 * Bits;  // bytes of eight columns
    for (int64_t k = 0; k < columns; k += 8, line += kLine) {
      if (fetch) {
        for (int pairs = 0; pairs < (Bits == 8 ? 4 : 1); ++pairs)
          for (int byte = 0; byte < NV * V::kWidth * (Bits == 8 ? 2 : 4); byte += 64)
            __builtin_prefetch(line + kDirectAhead + pairs * 128 + byte);
      }
      V::I first[NV], second[NV];
      unpack_eight<Bits, NV>(line, first, second);
      for (int t = 0; t < T; ++t) {
        const V::I quad = V::set_quad(x + t * args.w->cols + k);
        for (int v = 0; v < NV; ++v) sums[t][v] = V::dot_bytes(sums[t][v], first[v], quad);
      }
      for (int t = 0; t < T; ++t) {
        const V::I quad = V::set_quad(x + t * args.w->cols + k + 4);
        for (int v = 0; v < NV; ++v) sums[t][v] = V::dot_bytes(sums[t][v], second[v], quad);
      }
    }
  }
};

static void int8_block(const Int8GemmArgs& args, int64_t block) {
  alignas(64) uint8_t codes[kInt8Chunks][kMaxChunk * 64];
  const auto columns_of = [&](int64_t chunk) {
    const int64_t left = args.w->cols - chunk * args.chunk_columns;
    return left < args.chunk_columns ? left : args.chunk_columns;
  };
  if (args.m <= kDirectTokens) {
    const int batch = static_cast<int>(args.m);
    for (int64_t c = 0; c < args.chunks; ++c) {
      if (args.w->format.bits == 4) {
        for_batch_tiles(batch, DirectChunk<4>{args, block, c, columns_of(c)});
      } else {
        for_batch_tiles(batch, DirectChunk<8>{args, block, c, columns_of(c)});
      }
    }
    return;
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

static void gemm_int8(const Int8GemmArgs& args, int64_t block_begin, int64_t block_end) {
  for (int64_t block = block_begin; block < block_end; ++block) {
    if (!args.accumulate) {
      for (int64_t i = 0; i < args.m; ++i)
        __builtin_memset(args.y + i * args.y_stride + block * 64, 0, 64 * sizeof(float));
    }
    int8_block(args, block);
  }
}
