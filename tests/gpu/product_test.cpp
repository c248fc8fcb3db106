// Products against their slow reference, on fresh random inputs and awkward sizes.
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

TEST(GpuProduct, EveryFormGroupAndNumberOfRows) {
  using enum MatrixForm;
  for (const auto& [form, group] : {FormAndGroup{kF16, 0},
                                    {kInt8, 16},
                                    {kInt8, 32},
                                    {kInt8, 64},
                                    {kInt8, 128},
                                    {kInt8, -1},
                                    {kInt4, 16},
                                    {kInt4, 32},
                                    {kInt4, 64},
                                    {kInt4, 128},
                                    {kInt4, -1},
                                    {kInt8General, 16},
                                    {kInt8General, 128},
                                    {kInt4General, 16},
                                    {kInt4General, 32},
                                    {kInt4General, 128}}) {
    for (const auto& [n, k] : {std::pair{48, 128}, {131, 384}, {2128, 384}, {96, 8960}}) {
      const RandomMatrix w(form, n, k, group < 0 ? k : std::max(group, 1));
      const auto x = rounded(test::normal(size_t{kMaxRows} * static_cast<size_t>(k)));
      const auto all = reference::product(w.host, x, kMaxRows);
      for (const int rows : {1, 2, 8, 16, 32, 64}) {
        for (const int split : {1, 2}) {
          const ProductRows in(w.device, x, rows);
          const Buffer<float> y(static_cast<size_t>(split * rows * n));
          ProductArgs args;
          args.w = w.device;
          args.rows = rows;
          args.input = in.input();
          args.out_rows = n;
          args.y = y.get();
          args.y_stride = n;
          args.split_k = split;
          product(args, nullptr);
          check(cudaGetLastError());
          auto actual = y.read();
          for (size_t i = 0; split == 2 && i < static_cast<size_t>(int64_t{rows} * n); ++i)
            actual[i] += actual[i + static_cast<size_t>(rows * n)];
          std::vector<double> expected;
          for (int64_t m = 0; m < rows; ++m)
            expected.insert(expected.end(), all.begin() + m * w.host.rows, all.begin() + m * w.host.rows + n);
          // SplitInt8 round a group of activations to an even grid.
          EXPECT_LT(error_of(actual, expected), uses_split_int8(w.device) ? 5e-5 : 2e-5)
              << "form " << static_cast<int>(form) << " group " << group << " " << n << "x" << k << " rows "
              << rows << " split " << split;
        }
      }
    }
  }
}

// Every number of rows gives each row the same bits, whatever the tiles that a block takes.
TEST(GpuProduct, ManyRowsGiveWhatFewGive) {
  using enum MatrixForm;
  // The longest ones have more tiles for a team than are added up at once.
  for (const auto& [form, group, n, k, split] : {std::tuple{kF16, 0, 17300, 224, 1},
                                                 {kF16, 0, 40000, 64, 1},
                                                 {kInt8, 128, 40000, 128, 1},
                                                 {kF16, 0, 2030, 416, 1},
                                                 {kF16, 0, 1570, 1568, 4},
                                                 {kInt8, 224, 17300, 224, 1},
                                                 {kInt8, 64, 1570, 1600, 4},
                                                 {kInt8, 32, 2030, 416, 1},
                                                 {kInt4, 128, 17300, 256, 1},
                                                 {kInt4, 1568, 1570, 1568, 4},
                                                 {kInt4, 32, 2030, 416, 1}}) {
    const RandomMatrix w(form, n, k, std::max(group, 1));
    const auto x = rounded(test::normal(size_t{kMaxRows} * static_cast<size_t>(k)));
    std::vector<float> few;
    for (const int rows : {1, 2, 8, 16, 32, 64}) {
      const auto count = static_cast<size_t>(int64_t{rows} * n);
      const ProductRows in(w.device, x, rows);
      const Buffer<float> y(static_cast<size_t>(split) * count);
      ProductArgs args;
      args.w = w.device;
      args.rows = rows;
      args.input = in.input();
      args.out_rows = n;
      args.y = y.get();
      args.y_stride = n;
      args.split_k = split;
      product(args, nullptr);
      check(cudaGetLastError());
      const auto partials = y.read();
      std::vector<float> sums(partials.begin(), partials.begin() + static_cast<std::ptrdiff_t>(count));
      for (size_t i = count; i < partials.size(); ++i) sums[i % count] += partials[i];
      for (size_t i = 0; i < few.size(); ++i) {
        ASSERT_EQ(sums[i], few[i]) << "form " << static_cast<int>(form) << ", " << rows << " rows, element "
                                   << i;
      }
      few = sums;
    }
  }
}

// In one load of a thread and in two; and the same bits where norm and product are kernels of their own.
TEST(GpuProduct, NormsItsInputAndKeepsTheSum) {
  using enum MatrixForm;
  for (const auto& [form, cols] :
       {std::pair{kF16, 1536}, {kF16, 2048}, {kInt8, 1536}, {kInt4, 1536}, {kInt4, 2048}, {kInt4, 400}}) {
    const auto count = static_cast<size_t>(cols);
    const RandomMatrix w(form, 80, cols, cols);
    const auto hidden = test::normal(count, 3);
    const auto partials = test::normal(2 * count, 3);
    const auto norm = test::normal(count);
    const Buffer<float> d_hidden(hidden), d_partials(partials), d_norm(norm), sum(count), y(80),
        again(2 * 80);
    ProductArgs args;
    args.w = w.device;
    args.rows = 1;
    args.input = {.hidden = d_hidden.get(),
                  .partials = d_partials.get(),
                  .splits = 2,
                  .norm = d_norm.get(),
                  .epsilon = 1e-6F,
                  .hidden_out = sum.get()};
    args.out_rows = 80;
    args.y = y.get();
    args.y_stride = 80;
    product(args, nullptr);
    std::vector<double> added(count);
    for (size_t i = 0; i < count; ++i) added[i] = double{hidden[i]} + partials[i] + partials[i + count];
    EXPECT_LT(error_of(sum.read(), added), 1e-6);
    const auto normed = reference::rms_norm(added, norm, 1e-6);
    const auto expected = reference::product(w.host, std::vector<float>(normed.begin(), normed.end()), 1);
    // The activations are rounded to fp16 or split int8.
    EXPECT_LT(error_of(y.read(), expected), form == kF16 ? 1e-3 : 1e-4) << static_cast<int>(form);

    const int64_t stride = round_up(cols, 128);
    const Buffer<uint16_t> x(static_cast<size_t>(8 * stride));
    const Buffer<float> scales(static_cast<size_t>(stride / kActivationGroup * kMaxRows)), factors(2);
    // A row of zeros besides.
    std::vector<float> two(2 * count), two_parts(4 * count);
    std::copy(hidden.begin(), hidden.end(), two.begin());
    for (size_t p = 0; p < 2; ++p) {
      std::copy_n(partials.begin() + static_cast<std::ptrdiff_t>(p * count), count,
                  two_parts.begin() + static_cast<std::ptrdiff_t>(2 * p * count));
    }
    const Buffer<float> d_two(two), d_parts(two_parts);
    const RowsOut out{x.get(), stride, activation_layout(w.device), scales.get()};
    add_norm({.rows = 2,
              .cols = cols,
              .hidden = d_two.get(),
              .partials = d_parts.get(),
              .splits = 2,
              .norm = d_norm.get(),
              .epsilon = 1e-6F,
              .out = out,
              .factors = factors.get()},
             nullptr);
    args.rows = 2;
    args.input = {.x = x.get(), .scales = scales.get(), .stride = stride, .layout = out.layout};
    if (out.layout == ActivationLayout::kSplitInt8) args.input.factors = factors.get();
    args.y = again.get();
    product(args, nullptr);
    const auto one = y.read();
    const auto several = again.read();
    for (size_t i = 0; i < 80; ++i) {
      ASSERT_EQ(several[i], one[i]) << static_cast<int>(form) << " " << cols << " element " << i;
      ASSERT_EQ(several[80 + i], 0.0F);
    }
  }
}

// Beyond fp16's range: products of gate and up of 2e5 and more.
TEST(GpuProduct, SwigluAndDownSurviveLargeValues) {
  for (const float size : {1.0F, 700.0F}) {
    for (const auto& [rows, split_int8] : {std::pair{1, false}, {8, false}, {1, true}, {8, true}}) {
      const RandomMatrix gate_up(MatrixForm::kF16, 64, 256, 0);
      const RandomMatrix down(split_int8 ? MatrixForm::kInt8 : MatrixForm::kF16, 48, 32, 32);
      const auto x = rounded(test::normal(static_cast<size_t>(int64_t{rows} * 256), size));
      const ProductRows in(gate_up.device, x, rows);
      const Buffer<float> products(static_cast<size_t>(rows * 32)), y(static_cast<size_t>(rows * 48));
      const Buffer<uint32_t> row_max(kMaxRows);
      row_max.zero();
      ProductArgs args;
      args.w = gate_up.device;
      args.rows = rows;
      args.input = in.input();
      args.output = ProductOutput::kSwiglu;
      args.y = products.get();
      args.y_stride = 32;
      args.row_max = row_max.get();
      product(args, nullptr);
      const auto both = reference::product(gate_up.host, x, rows);
      std::vector<float> expected(static_cast<size_t>(rows * 32));
      for (size_t i = 0; i < expected.size(); ++i) {
        const size_t from = i / 32 * 64 + i % 32 / 8 * 16 + i % 8;  // alternating eights
        expected[i] = static_cast<float>(reference::silu(both[from]) * both[from + 8]);
      }
      EXPECT_LT(error_of(products.read(), expected), 1e-4);
      for (int64_t m = 0; m < rows; ++m) {
        float largest = 0;
        for (int64_t i = 0; i < 32; ++i)
          largest = std::max(largest, std::abs(products.read()[static_cast<size_t>(m * 32 + i)]));
        EXPECT_EQ(std::bit_cast<float>(row_max.read()[static_cast<size_t>(m)]), largest);
      }
      ProductArgs second;
      second.w = down.device;
      second.rows = rows;
      const Buffer<uint16_t> scaled(static_cast<size_t>(kMaxRows * 128));
      const Buffer<float> scales(kMaxRows);
      second.input.row_max = row_max.get();
      if (rows == 1) {
        second.input.values = products.get();
      } else {
        if (split_int8) second.input.row_max = nullptr;
        repack({.rows = rows,
                .cols = 32,
                .values = products.get(),
                .row_max = second.input.row_max,
                .out = {scaled.get(), 128, activation_layout(down.device), scales.get()}},
               nullptr);
        second.input.x = scaled.get();
        second.input.stride = 128;
        second.input.scales = scales.get();
      }
      second.out_rows = 48;
      second.y = y.get();
      second.y_stride = 48;
      product(second, nullptr);
      EXPECT_LT(error_of(y.read(), reference::product(down.host, expected, rows)), 2e-3) << size;
    }
  }
}

TEST(GpuExpand, EveryFormGivesItsValues) {
  using enum MatrixForm;
  for (const auto& [form, group] :
       {FormAndGroup{kInt8, 64}, {kInt4, 32}, {kInt8General, 128}, {kInt4General, 16}}) {
    for (const bool permuted : {false, true}) {
      const RandomMatrix w(form, 40, 384, group, permuted);
      const Buffer<uint16_t> out(static_cast<size_t>(w.host.rows) * 384);
      expand(w.device, out.get(), 384, nullptr);
      const auto actual = from_half(out.read());
      for (int64_t n = 0; n < 40; ++n) {
        for (int64_t k = 0; k < 384; ++k) {
          const int64_t to = permuted ? w.order[static_cast<size_t>(k)] : k;
          const double expected = reference::element(w.host, n, k);
          EXPECT_NEAR(actual[static_cast<size_t>(n * 384 + to)], expected, 1e-3 * std::abs(expected) + 1e-6);
        }
      }
    }
  }
}

}  // namespace
}  // namespace qwen2::cuda
