// Every kernel of every instruction set against its slow reference, on random inputs and awkward sizes.
#include <gtest/gtest.h>

#include <numeric>
#include <span>

#include "kernels/cpu/dense.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/reference.h"
#include "random_data.h"

namespace qwen2::cpu {
namespace {

using test::normal;
using test::relative_error;
using test::uniform;

// Sums in float of products that are exact in float: far under 1e-5 at these sizes.
constexpr double kFloatError = 1e-5;

class KernelTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > detect_isa()) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
  }
  [[nodiscard]] const Kernels& kernels() const { return kernels_for(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, KernelTest, testing::Values(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& param) { return std::string(isa_name(param.param)); });

struct OwnedMatrix {
  std::vector<uint16_t> storage;
  PackedMatrix view;

  OwnedMatrix(int64_t rows, int64_t cols) : storage(PackedMatrix::packed_bytes(rows, cols) / 2) {
    view = {storage.data(), rows, cols};
    for (int64_t row = 0; row < rows; ++row) {
      const auto values = normal(static_cast<size_t>(cols));
      view.set_row(row, values.data());
    }
  }
};

// sum |W| |x|: what rounding errors are proportional to, also where the products cancel.
std::vector<double> absolute_products(const PackedMatrix& w, const float* x) {
  std::vector<double> sums(static_cast<size_t>(w.rows));
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t n = 0; n < w.rows; ++n) {
    w.get_row(n, row.data());
    for (int64_t k = 0; k < w.cols; ++k) {
      sums[static_cast<size_t>(n)] += std::abs(double{row[static_cast<size_t>(k)]} * x[k]);
    }
  }
  return sums;
}

TEST_P(KernelTest, GemvMatchesReference) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 16}, {63, 32}, {64, 48}, {65, 1536}, {200, 544}, {uniform(1, 300), 16 * uniform(1, 60)}}) {
    const OwnedMatrix w(rows, cols);
    for (const int batch : {1, 2, 3, 5, 8, 17, kMaxGemvBatch}) {
      const int64_t x_stride = cols + 8;
      const int64_t y_stride = round_up(rows, kBlockRows) + 16;
      const auto x = normal(static_cast<size_t>(batch * x_stride));
      const auto before = normal(static_cast<size_t>(batch * y_stride));
      for (const bool accumulate : {false, true}) {
        auto y = before;
        kernels().gemv_bf16(
            {w.view.data, rows, cols, x.data(), x_stride, batch, y.data(), y_stride, accumulate}, 0,
            w.view.blocks());
        for (int b = 0; b < batch; ++b) {
          const auto products = reference::matrix_vector(w.view, x.data() + b * x_stride);
          const auto magnitudes = absolute_products(w.view, x.data() + b * x_stride);
          for (size_t n = 0; n < products.size(); ++n) {
            const size_t at = static_cast<size_t>(b * y_stride) + n;
            const double expected = products[n] + (accumulate ? double{before[at]} : 0.0);
            EXPECT_NEAR(y[at], expected, 1e-6 * (magnitudes[n] + 1))
                << rows << "x" << cols << " batch " << batch << " row " << b;
          }
        }
      }
    }
  }
}

TEST_P(KernelTest, GemvDoesNotDependOnTheBatch) {
  const int64_t rows = 130;
  const int64_t cols = 1056;
  const OwnedMatrix w(rows, cols);
  const int64_t y_stride = round_up(rows, kBlockRows);
  const auto x = normal(static_cast<size_t>(kMaxGemvBatch * cols));
  std::vector<float> together(static_cast<size_t>(kMaxGemvBatch * y_stride));
  kernels().gemv_bf16(
      {w.view.data, rows, cols, x.data(), cols, kMaxGemvBatch, together.data(), y_stride, false}, 0,
      w.view.blocks());
  for (int b = 0; b < kMaxGemvBatch; ++b) {
    std::vector<float> alone(static_cast<size_t>(y_stride));
    kernels().gemv_bf16(
        {w.view.data, rows, cols, x.data() + b * cols, cols, 1, alone.data(), y_stride, false}, 0,
        w.view.blocks());
    for (int64_t n = 0; n < rows; ++n) {
      ASSERT_EQ(alone[static_cast<size_t>(n)], together[static_cast<size_t>(b * y_stride + n)])
          << b << " " << n;
    }
  }
}

TEST_P(KernelTest, DenseMatchesReference) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
           {64, 64}, {200, 176}, {705, 352}, {uniform(1, 600), 16 * uniform(1, 40)}}) {
    const OwnedMatrix w(rows, cols);
    auto dense = Dense::create(kernels(), 100, cols);
    ASSERT_TRUE(dense) << dense.error().message;
    for (const int64_t m : {int64_t{17}, int64_t{33}, int64_t{100}, uniform(1, 100)}) {
      for (const Rounding rounding : {Rounding::kOneBf16, Rounding::kTwoBf16}) {
        const int64_t x_stride = cols + 16;
        const int64_t y_stride = round_up(rows, kBlockRows);
        const int64_t y_rows = round_up(m, 16);
        const auto x = normal(static_cast<size_t>(m * x_stride));
        std::vector<float> y(static_cast<size_t>(y_rows * y_stride), 0.5F);
        const Status status = (*dense)->run(WeightMatrix::of(w.view), x.data(), x_stride, m, y.data(),
                                            y_stride, true, rounding);
        ASSERT_TRUE(status) << status.error().message;
        // One bf16 term rounds each activation by at most 2^-9.
        const bool exact = GetParam() != Isa::kAvx512 || rounding == Rounding::kTwoBf16;
        const double bound = exact ? 2e-5 : 4e-3;
        // Of a few sums all may lie near zero by chance: then the rows of activations are taken together.
        const bool few = rows < 16;
        std::vector<float> all;
        std::vector<double> all_expected;
        for (int64_t i = 0; i < m; ++i) {
          auto expected = reference::matrix_vector(w.view, x.data() + i * x_stride);
          for (double& value : expected) value += 0.5;
          const auto actual =
              std::span(y).subspan(static_cast<size_t>(i * y_stride), static_cast<size_t>(rows));
          if (!few) {
            EXPECT_LT(relative_error(actual, expected), bound) << rows << "x" << cols << " m " << m;
          }
          all.insert(all.end(), actual.begin(), actual.end());
          all_expected.insert(all_expected.end(), expected.begin(), expected.end());
        }
        if (all.size() >= 16) {
          EXPECT_LT(relative_error(all, all_expected), bound) << rows << "x" << cols << " m " << m;
        }
      }
    }
  }
}

// A paged cache with random keys and values, filled as the rope kernel fills it.
struct Cache {
  int dim;
  std::vector<uint32_t> pages;
  std::vector<uint16_t> memory;
  std::vector<std::vector<float>> keys, values;

  Cache(int dim_, int64_t tokens) : dim(dim_) {
    const int64_t count = (tokens + kPageTokens - 1) / kPageTokens;
    pages.resize(static_cast<size_t>(count));
    std::iota(pages.begin(), pages.end(), 3U);
    std::shuffle(pages.begin(), pages.end(), test::generator());
    // What was in the pages before must not matter, as long as it is finite.
    memory.resize(static_cast<size_t>((count + 3) * page_elements()), float_to_f16(60000.0F));
    for (int64_t t = 0; t < tokens; ++t) {
      keys.push_back(rounded(normal(static_cast<size_t>(dim))));
      values.push_back(rounded(normal(static_cast<size_t>(dim))));
      uint16_t* page = memory.data() + pages[static_cast<size_t>(t / kPageTokens)] * page_elements();
      const int64_t slot = t % kPageTokens;
      for (int d = 0; d < dim; ++d) {
        page[d * kPageTokens + slot] = float_to_f16(keys.back()[static_cast<size_t>(d)]);
        page[dim * kPageTokens + slot * dim + d] = float_to_f16(values.back()[static_cast<size_t>(d)]);
      }
    }
  }
  [[nodiscard]] const std::byte* bytes() const { return reinterpret_cast<const std::byte*>(memory.data()); }
  [[nodiscard]] int64_t page_bytes() const { return kv_page_bytes(16, dim); }
  [[nodiscard]] int64_t page_elements() const { return int64_t{2} * kPageTokens * dim; }
  static std::vector<float> rounded(std::vector<float> x) {
    for (float& value : x) value = f16_to_float(float_to_f16(value));
    return x;
  }
};

TEST_P(KernelTest, AttentionMatchesReference) {
  for (const int dim : {32, 64, 96, 128, 256}) {
    for (const int group : {1, 2, 6, 7}) {
      const int64_t length = uniform(1, 150);
      const Cache cache(dim, length);
      const auto tokens = static_cast<int>(std::min<int64_t>(uniform(1, kMaxAttentionRows / group), length));
      const int64_t first = length - tokens;
      const int64_t q_stride = int64_t{group} * dim + 8;
      const auto q =
          normal(static_cast<size_t>(tokens * q_stride), 1.0F / std::sqrt(static_cast<float>(dim)));
      const int rows = tokens * group;
      std::vector<float> sums(static_cast<size_t>(rows * dim));
      std::vector<float> maxima(static_cast<size_t>(rows)), denominators(maxima);
      kernels().attention({q.data(), q_stride, tokens, group, dim, first, 0, length, cache.bytes(),
                           cache.page_bytes(), cache.pages.data(), sums.data(), maxima.data(),
                           denominators.data()});
      for (int r = 0; r < rows; ++r) {
        std::vector<float> out(static_cast<size_t>(dim));
        kernels().merge_attention(sums.data() + r * dim, 0, &maxima[static_cast<size_t>(r)],
                                  &denominators[static_cast<size_t>(r)], 0, 1, dim, out.data());
        const auto expected = reference::attention(q.data() + r / group * q_stride + r % group * dim,
                                                   cache.keys, cache.values, first + r / group + 1);
        EXPECT_LT(relative_error(out, expected), kFloatError)
            << "dim " << dim << " group " << group << " row " << r;
      }
    }
  }
}

TEST_P(KernelTest, AttentionPartsMerge) {
  constexpr int kDim = 64;
  constexpr int kGroup = 3;
  const int64_t length = 7 * kPageTokens + 5;
  const Cache cache(kDim, length);
  const auto q = normal(kGroup * kDim, 0.125F);
  const int64_t split = 2 * kPageTokens;
  const auto parts = static_cast<int>((length + split - 1) / split);
  std::vector<float> sums(static_cast<size_t>(parts * kGroup * kDim));
  std::vector<float> maxima(static_cast<size_t>(parts * kGroup)), denominators(maxima);
  for (int p = 0; p < parts; ++p) {
    kernels().attention({q.data(), kGroup * kDim, 1, kGroup, kDim, length - 1, p * split,
                         std::min((p + 1) * split, length), cache.bytes(), cache.page_bytes(),
                         cache.pages.data(), sums.data() + p * kGroup * kDim, maxima.data() + p * kGroup,
                         denominators.data() + p * kGroup});
  }
  for (int g = 0; g < kGroup; ++g) {
    std::vector<float> out(kDim);
    kernels().merge_attention(sums.data() + g * kDim, kGroup * kDim, maxima.data() + g,
                              denominators.data() + g, kGroup, parts, kDim, out.data());
    EXPECT_LT(
        relative_error(out, reference::attention(q.data() + g * kDim, cache.keys, cache.values, length)),
        kFloatError);
  }
}

// Scores far beyond what fp16 holds (Qwen2's key biases are huge) stay finite.
TEST_P(KernelTest, AttentionSurvivesHugeScores) {
  constexpr int kDim = 64;
  Cache cache(kDim, 40);
  for (int t = 0; t < 40; ++t) {
    uint16_t* page =
        cache.memory.data() + cache.pages[static_cast<size_t>(t / kPageTokens)] * cache.page_elements();
    for (int d = 0; d < kDim; ++d) {
      float& key = cache.keys[static_cast<size_t>(t)][static_cast<size_t>(d)];
      key = f16_to_float(float_to_f16(key + 800.0F));
      page[d * kPageTokens + t % kPageTokens] = float_to_f16(key);
    }
  }
  const auto q = normal(kDim, 20.0F);
  std::vector<float> sums(kDim), out(kDim);
  float maximum = 0;
  float denominator = 0;
  kernels().attention({q.data(), kDim, 1, 1, kDim, 39, 0, 40, cache.bytes(), cache.page_bytes(),
                       cache.pages.data(), sums.data(), &maximum, &denominator});
  kernels().merge_attention(sums.data(), 0, &maximum, &denominator, 0, 1, kDim, out.data());
  // Scores near 1e5 carry an absolute rounding error near 1e-2 in float.
  EXPECT_LT(relative_error(out, reference::attention(q.data(), cache.keys, cache.values, 40)), 0.1);
}

TEST_P(KernelTest, RopeRotatesAndStores) {
  constexpr double kTheta = 1e6;
  for (const int dim : {64, 128}) {
    constexpr int64_t q_heads = 6;
    constexpr int64_t kv_heads = 2;
    const int64_t position = uniform(0, 30000);
    const auto slot = static_cast<int>(position % kPageTokens);
    const auto size = static_cast<size_t>((q_heads + 2 * kv_heads) * dim);
    auto qkv = normal(size);
    const auto bias = normal(size);
    std::vector<float> sum(size), cosines, sines;
    for (size_t i = 0; i < size; ++i) sum[i] = qkv[i] + bias[i];
    for (int i = 0; i < dim / 2; ++i) {
      const double angle = static_cast<double>(position) * std::pow(kTheta, -2.0 * i / dim);
      cosines.push_back(static_cast<float>(std::cos(angle)));
      sines.push_back(static_cast<float>(std::sin(angle)));
    }
    const int64_t head_stride = int64_t{2} * kPageTokens * dim;
    std::vector<uint16_t> page(static_cast<size_t>(kv_heads * head_stride));
    kernels().rope({qkv.data(), bias.data(), cosines.data(), sines.data(), q_heads, kv_heads, dim, 0.125F,
                    reinterpret_cast<std::byte*>(page.data()), kv_page_bytes(16, dim), slot});
    for (int h = 0; h < q_heads; ++h) {
      auto expected = reference::rope(sum.data() + h * dim, position, kTheta, dim);
      for (double& value : expected) value *= 0.125;
      EXPECT_LT(relative_error(std::span(qkv).subspan(static_cast<size_t>(h * dim)), expected), 1e-6);
    }
    for (int h = 0; h < kv_heads; ++h) {
      const auto key = reference::rope(sum.data() + (q_heads + h) * dim, position, kTheta, dim);
      std::vector<float> stored_key, stored_value;
      std::vector<double> value;
      for (int d = 0; d < dim; ++d) {
        stored_key.push_back(
            f16_to_float(page[static_cast<size_t>(h * head_stride + d * kPageTokens + slot)]));
        stored_value.push_back(
            f16_to_float(page[static_cast<size_t>(h * head_stride + dim * kPageTokens + slot * dim + d)]));
        value.push_back(sum[static_cast<size_t>((q_heads + kv_heads + h) * dim + d)]);
      }
      EXPECT_LT(relative_error(stored_key, key), 5e-4);  // fp16's half unit is 2^-12
      EXPECT_LT(relative_error(stored_value, value), 5e-4);
    }
  }
}

TEST_P(KernelTest, RopeSaturatesInsteadOfOverflowing) {
  constexpr int kDim = 32;
  std::vector<float> qkv(3 * kDim, 1e6F);
  qkv[2 * kDim + 1] = -1e6F;
  const std::vector<float> bias(3 * kDim), cosines(kDim / 2, 1.0F), sines(kDim / 2);
  std::vector<uint16_t> page(size_t{2} * kPageTokens * kDim);
  kernels().rope({qkv.data(), bias.data(), cosines.data(), sines.data(), 1, 1, kDim, 1.0F,
                  reinterpret_cast<std::byte*>(page.data()), kv_page_bytes(16, kDim), 0});
  EXPECT_EQ(f16_to_float(page[0]), 65504.0F);
  EXPECT_EQ(f16_to_float(page[size_t{kDim} * kPageTokens + 1]), -65504.0F);
}

// 8-bit keys and values, and a large part of the key bias outside of the keys, as one token after the other
// is stored.
TEST_P(KernelTest, EightBitCacheAndKeyBiasMatchReference) {
  constexpr double kTheta = 1e6;
  for (const int dim : {64, 128}) {
    const int half = dim / 2;
    const int64_t length = uniform(1, 100);
    const int64_t page_bytes = kv_page_bytes(8, dim);
    const auto pages = static_cast<size_t>((length + kPageTokens - 1) / kPageTokens);
    std::vector<std::byte> cache(pages * static_cast<size_t>(page_bytes));
    std::vector<uint32_t> table(pages);
    std::iota(table.begin(), table.end(), 0U);
    std::vector<float> angles(pages * static_cast<size_t>(kPageTokens * dim));
    KeyBias bias;
    bias.pairs = static_cast<int>(uniform(1, kMaxBiasPairs));
    std::vector<float> key_bias(static_cast<size_t>(dim));
    for (int j = 0; j < bias.pairs; ++j) {
      bias.index[j] = half - 1 - j;
      key_bias[static_cast<size_t>(half - 1 - j)] = bias.first[j] = normal(1)[0] * 300.0F;
      key_bias[static_cast<size_t>(dim - 1 - j)] = bias.second[j] = normal(1)[0] * 300.0F;
    }
    std::vector<std::vector<float>> keys, values;
    for (int64_t t = 0; t < length; ++t) {
      std::vector<float> qkv = normal(size_t{3} * static_cast<size_t>(dim));
      std::vector<float> whole_key(qkv.begin() + dim, qkv.begin() + 2 * dim);
      for (size_t d = 0; d < whole_key.size(); ++d) whole_key[d] += key_bias[d];
      const auto rotated = reference::rope(whole_key.data(), t, kTheta, dim);
      keys.emplace_back(rotated.begin(), rotated.end());
      values.emplace_back(qkv.begin() + 2 * dim, qkv.end());
      std::vector<float> cosines, sines;
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<double>(t) * std::pow(kTheta, -2.0 * i / dim);
        cosines.push_back(static_cast<float>(std::cos(angle)));
        sines.push_back(static_cast<float>(std::sin(angle)));
        float* row = angles.data() + t / kPageTokens * kPageTokens * dim + int64_t{i} * 2 * kPageTokens +
                     t % kPageTokens;
        row[0] = cosines.back();
        row[kPageTokens] = sines.back();
      }
      const std::vector<float> zeros(qkv.size());
      kernels().rope({qkv.data(), zeros.data(), cosines.data(), sines.data(), 1, 1, dim, 1.0F,
                      cache.data() + t / kPageTokens * page_bytes, page_bytes,
                      static_cast<int>(t % kPageTokens), 8});
    }
    const auto q = normal(static_cast<size_t>(dim), 1.0F / std::sqrt(static_cast<float>(dim)));
    std::vector<float> sums(static_cast<size_t>(dim)), out(sums);
    float maximum = 0;
    float denominator = 0;
    kernels().attention({q.data(), dim, 1, 1, dim, length - 1, 0, length, cache.data(), page_bytes,
                         table.data(), sums.data(), &maximum, &denominator, 8, &bias, angles.data()});
    kernels().merge_attention(sums.data(), 0, &maximum, &denominator, 0, 1, dim, out.data());
    // A key's codes are within 1/254 of its largest element, about 3; so is a value's.
    EXPECT_LT(relative_error(out, reference::attention(q.data(), keys, values, length)), 0.05) << dim;
  }
}

TEST_P(KernelTest, NormAndActivationMatchReference) {
  for (const int64_t size : {16, 48, 100, 1536, 8960}) {
    const auto x = normal(static_cast<size_t>(size), 3.0F);
    const auto weight = normal(static_cast<size_t>(size));
    std::vector<float> out(static_cast<size_t>(size));
    kernels().rms_norm(x.data(), weight.data(), 1e-6F, size, out.data());
    EXPECT_LT(relative_error(out, reference::rms_norm(x.data(), weight.data(), 1e-6, size)), 1e-6);
    const auto gate = normal(static_cast<size_t>(size), 20.0F);
    kernels().swiglu(gate.data(), x.data(), size, out.data());
    std::vector<double> expected;
    expected.reserve(gate.size());
    for (size_t i = 0; i < gate.size(); ++i) expected.push_back(reference::swiglu(gate[i], x[i]));
    EXPECT_LT(relative_error(out, expected), 1e-6);
  }
}

TEST_P(KernelTest, ActivationIsRightAtTheEdges) {
  const std::vector<float> gate{-200.0F, -88.0F, -20.0F, 0.0F, 20.0F, 88.0F, 200.0F, 3e5F};
  const std::vector<float> up(gate.size(), 2.0F);
  std::vector<float> out(gate.size());
  kernels().swiglu(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    EXPECT_NEAR(out[i], reference::swiglu(gate[i], 2.0), std::abs(2.0 * gate[i]) * 1e-6 + 1e-30) << gate[i];
  }
}

TEST_P(KernelTest, Bf16ConversionsRoundToNearestEven) {
  auto x = normal(1003, 100.0F);
  x[0] = 0.0F, x[1] = -0.0F, x[2] = INFINITY, x[3] = -INFINITY, x[4] = NAN, x[5] = 3.4e38F;
  x[6] = std::bit_cast<float>(0x3f808000U), x[7] = std::bit_cast<float>(0x3f818000U);  // ties
  std::vector<uint16_t> out(x.size()), high(x.size()), low(x.size());
  kernels().to_bf16(x.data(), static_cast<int64_t>(x.size()), out.data());
  kernels().split_bf16(x.data() + 8, static_cast<int64_t>(x.size()) - 8, high.data() + 8, low.data() + 8);
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(bf16_to_float(out[i])));
    } else {
      EXPECT_EQ(out[i], float_to_bf16(x[i])) << x[i];
    }
    if (i < 8) continue;
    EXPECT_EQ(high[i], out[i]);
    EXPECT_NEAR(bf16_to_float(high[i]) + bf16_to_float(low[i]), x[i], std::abs(x[i]) * 0x1p-16);
  }
}

TEST_P(KernelTest, WidenGivesBackTheWeights) {
  const OwnedMatrix w(130, 96);
  std::vector<float> out(static_cast<size_t>(96 * 70)), row(96);
  for (int64_t block = 0; block < w.view.blocks(); ++block) {
    kernels().widen_block(w.view.block(block), 96, out.data(), 70);
    for (int64_t n = block * 64; n < std::min<int64_t>(130, block * 64 + 64); ++n) {
      w.view.get_row(n, row.data());
      for (int64_t k = 0; k < 96; ++k) {
        ASSERT_EQ(out[static_cast<size_t>(k * 70 + n % 64)], row[static_cast<size_t>(k)]);
      }
    }
  }
}

TEST_P(KernelTest, ReadLinesReadsEveryWord) {
  std::vector<uint64_t> words(64 * 8 * 3);
  for (uint64_t& word : words) word = test::generator()();
  const uint64_t expected = std::accumulate(words.begin(), words.end(), uint64_t{0});
  EXPECT_EQ(kernels().read_lines(reinterpret_cast<const std::byte*>(words.data()),
                                 static_cast<int64_t>(words.size() / 8)),
            expected);
}

}  // namespace
}  // namespace qwen2::cpu
