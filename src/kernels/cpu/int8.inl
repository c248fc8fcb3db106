// Products of 8-bit activations with unpacked codes, included by instruction sets that multiply bytes
// (V::dot_bytes: unsigned codes times signed activations, four columns at a time).

constexpr int kInt8Tokens = 6;  // 24 sums, 4 weights and what is left of 32 registers

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

// y[T][64] += the products of one chunk with T tokens.
template <int T>
static void int8_tile(const Int8GemmArgs& args, const uint8_t* codes, int64_t block, int64_t chunk, int64_t columns,
                      int64_t token) {
  constexpr int kVectors = 64 / V::kWidth;
  const QuantizedMatrix& w = *args.w;
  const int64_t begin = chunk * args.chunk_columns;
  const int8_t* x = args.x + token * w.cols + begin;
  V::I sums[T][kVectors];
  for (int v = 0; v < kVectors; ++v) {
    // Signed codes were moved up by 128.
    const V::I zero = V::add_i32(group_zero(w, block, v * V::kWidth, begin), V::set1_i32(w.format.bits == 8 ? 128 : 0));
    for (int t = 0; t < T; ++t)
      sums[t][v] = V::mul_i32(zero, V::set1_i32(-args.x_sums[(token + t) * args.chunks + chunk]));
  }
  for (int64_t k = 0; k < columns; k += 4, codes += 256) {
    V::I weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = V::load_bytes(codes + 4 * v * V::kWidth);
    for (int t = 0; t < T; ++t) {
      const V::I quad = V::set_quad(x + t * w.cols + k);
      for (int v = 0; v < kVectors; ++v) sums[t][v] = V::dot_bytes(sums[t][v], weights[v], quad);
    }
  }
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
  alignas(64) uint8_t codes[kMaxChunk * 64];
  for (int64_t block = block_begin; block < block_end; ++block) {
    if (!args.accumulate) {
      for (int64_t i = 0; i < args.m; ++i) __builtin_memset(args.y + i * args.y_stride + block * 64, 0, 64 * sizeof(float));
    }
    for (int64_t chunk = 0; chunk < args.chunks; ++chunk) {
      const int64_t begin = chunk * args.chunk_columns;
      const int64_t columns = begin + args.chunk_columns < args.w->cols ? args.chunk_columns : args.w->cols - begin;
      unpack_chunk(*args.w, block, begin, columns, codes);
      int64_t token = 0;
      for (; token + kInt8Tokens <= args.m; token += kInt8Tokens)
        int8_tile<kInt8Tokens>(args, codes, block, chunk, columns, token);
      for (; token < args.m; ++token) int8_tile<1>(args, codes, block, chunk, columns, token);
    }
  }
}
