// Kernels on rows of activations against their slow references.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "gpu/gpu_data.h"
#include "kernels/cuda/product/product_reference.h"
#include "kernels/cuda/rows/rows_reference.h"

namespace qwen2::cuda {
namespace {

using namespace test_data;

TEST(GpuRows, AddNormScalesAndPads) {
  constexpr int kRows = 3;
  constexpr int kCols = 400;
  const auto hidden = test::normal(kRows * kCols), partials = test::normal(2 * kRows * kCols),
             norm = test::normal(kCols);
  const Buffer<float> d_hidden(hidden), d_partials(partials), d_norm(norm);
  const Buffer<uint16_t> x(kRows * 512);
  add_norm({.rows = kRows,
            .cols = kCols,
            .hidden = d_hidden.get(),
            .partials = d_partials.get(),
            .splits = 2,
            .norm = d_norm.get(),
            .epsilon = 1e-5F,
            .out = {x.get(), 512}},
           nullptr);
  const auto sums = d_hidden.read();
  const auto actual = from_half(x.read());
  for (size_t m = 0; m < kRows; ++m) {
    std::vector<double> added(kCols);
    for (size_t i = 0; i < kCols; ++i)
      added[i] = double{hidden[m * kCols + i]} + partials[m * kCols + i] + partials[(kRows + m) * kCols + i];
    EXPECT_LT(error_of(std::span(sums).subspan(m * kCols, kCols), added), 1e-6);
    EXPECT_LT(error_of(std::span(actual).subspan(m * 512, kCols), reference::rms_norm(added, norm, 1e-5)),
              1e-3);
    for (size_t i = kCols; i < 512; ++i) EXPECT_EQ(actual[m * 512 + i], 0.0F);
  }
}

TEST(GpuRows, EveryOrderOfActivations) {
  constexpr int kRows = 11;
  constexpr int kCols = 200;
  constexpr int kStride = 256;
  std::vector<uint16_t> x(size_t{kRows} * kStride);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i + 1);
  std::vector<int32_t> order(kCols);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), test::generator());
  const Buffer<uint16_t> d_x(x);
  const Buffer<int32_t> d_order(order);
  for (const ActivationLayout to : {ActivationLayout::kRows, ActivationLayout::kBlocks,
                                    ActivationLayout::kLaneBlocks, ActivationLayout::kSplitInt8}) {
    for (const bool permuted : {false, true}) {
      const Buffer<uint16_t> out(size_t{16} * kStride);
      const Buffer<float> scales(size_t{kStride / kActivationGroup} * kMaxRows);
      repack({.rows = kRows,
              .cols = kCols,
              .halves = d_x.get(),
              .order = permuted ? d_order.get() : nullptr,
              .out = {out.get(), kStride, to, scales.get()}},
             nullptr);
      const auto actual = out.read();
      const auto* bytes = reinterpret_cast<const int8_t*>(actual.data());
      const auto of_group = scales.read();
      for (int row = 0; row < kRows; ++row) {
        for (int k = 0; k < kStride; ++k) {
          const int from = permuted && k < kCols ? order[static_cast<size_t>(k)] : k;
          const uint16_t expected =
              k < kCols ? x[static_cast<size_t>(row) * kStride + static_cast<size_t>(from)] : 0;
          if (to == ActivationLayout::kSplitInt8) {
            const int64_t at = split_int8_offset(kStride, row, k);
            const float scale =
                of_group[static_cast<size_t>(k / kActivationGroup) * kMaxRows + static_cast<size_t>(row)];
            const int value = 256 * bytes[at] + bytes[at + kLowTermOffset];
            EXPECT_NEAR(static_cast<float>(value) * scale, f16_to_float(expected), 0.51F * scale);
          } else {
            EXPECT_EQ(actual[static_cast<size_t>(activation_offset(to, kStride, row, k))], expected);
          }
        }
      }
    }
  }
}

// What a step begins with: its inputs come from the host's memory, where the rows to embed are read as well.
TEST(GpuRows, FetchesAndEmbedsEveryForm) {
  using enum MatrixForm;
  constexpr int kRows = kMaxRows + 3;
  constexpr int kCols = 320;
  constexpr size_t kBytes = 300'000;
  const auto pinned = PinnedBuffer::allocate(kBytes, "inputs");
  ASSERT_TRUE(pinned);
  std::vector<Row> rows;
  std::vector<int64_t> tokens;
  for (int m = 0; m < kRows; ++m) {
    const int32_t own = m * 7 % 70;
    rows.push_back({m % 3 == 1 ? -1 - m % 5 : own, 0, 0, 0});
    tokens.push_back(m % 3 == 1 ? 60 + m % 5 : own);
  }
  std::generate_n(pinned->data(), kBytes, [] { return static_cast<std::byte>(test::uniform(0, 255)); });
  std::memcpy(pinned->data(), rows.data(), kRows * sizeof(Row));
  for (const auto& [form, group] : {FormAndGroup{kF16, 0}, {kInt8, 320}, {kInt4, 32}, {kInt4General, 64}}) {
    const RandomMatrix w(form, 70, kCols, std::max(group, 1));
    const Buffer<int32_t> sampled(std::vector<int32_t>{60, 61, 62, 63, 64});
    const Buffer<float> hidden(kRows * kCols);
    const Buffer<uint32_t> clear(10);
    const Buffer<std::byte> fetched(kBytes);
    fetched.zero();
    FetchArgs args{
        pinned->data(), fetched.get(), {{0, kRows * sizeof(Row)}, {2048, 200'000}, {299'008, 990}}, {}};
    args.embed.embedding = w.device;
    args.embed.rows = kRows;
    for (int m = 0; m < kMaxRows; ++m) args.embed.first_tokens[m] = rows[static_cast<size_t>(m)].token;
    args.embed.row_info = reinterpret_cast<const Row*>(pinned->data());
    args.embed.sampled = sampled.get();
    args.embed.hidden = hidden.get();
    args.embed.clear = clear.get();
    args.embed.clear_count = 10;
    fetch(args, nullptr);
    const auto actual = hidden.read();
    for (size_t m = 0; m < kRows; ++m) {
      for (int64_t k = 0; k < kCols; ++k) {
        EXPECT_NEAR(actual[m * kCols + static_cast<size_t>(k)], reference::element(w.host, tokens[m], k),
                    1e-6);
      }
    }
    for (const uint32_t value : clear.read()) EXPECT_EQ(value, 0U);
    const auto copied = fetched.read();
    for (size_t i = 0; i < kBytes; ++i) {
      const bool wanted = i < kRows * sizeof(Row) || (i >= 2048 && i < 202'048) || i >= 299'008;
      ASSERT_EQ(copied[i], wanted ? pinned->data()[i] : std::byte{0}) << "byte " << i;
    }
  }
}

}  // namespace
}  // namespace qwen2::cuda
