// Attention against its slow reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "gpu/gpu_data.h"
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/attention_reference.h"

namespace qwen2::cuda {
namespace {

using namespace test_data;

struct AttentionCase {
  int dim, q_heads, kv_heads, bits, length, pairs;
};

double worst_row(const AttentionCase& c, const Cache& cache, const Bias& bias, const std::vector<float>& q,
                 const std::vector<float>& out, int row, int length) {
  double worst = 0;
  for (int head = 0; head < c.q_heads; ++head) {
    const int kv_head = head / (c.q_heads / c.kv_heads);
    const size_t from = static_cast<size_t>((int64_t{row} * c.q_heads + head) * c.dim);
    const std::vector<double> query(
        q.begin() + static_cast<std::ptrdiff_t>(from),
        q.begin() + static_cast<std::ptrdiff_t>(from + static_cast<size_t>(c.dim)));
    std::vector<double> added;
    for (int k = 0; c.pairs > 0 && k < length; ++k) added.push_back(bias.score(query, kv_head, k));
    const auto begin = static_cast<size_t>(int64_t{kv_head} * cache.length * c.dim);
    const auto count = static_cast<size_t>(int64_t{length} * c.dim);
    const auto expected = reference::attention(query, std::span(cache.keys).subspan(begin, count),
                                               std::span(cache.values).subspan(begin, count), added);
    worst = std::max(worst, error_of(std::span(out).subspan(from, static_cast<size_t>(c.dim)), expected));
  }
  return worst;
}

// A row's result is the same alone and among others, whichever kernel it comes from.
TEST(GpuAttention, SingleRowsOverPages) {
  constexpr int kRows = 16;
  for (const AttentionCase& c : {AttentionCase{128, 12, 2, 16, 1, 0},
                                 {128, 12, 2, 16, 129, 0},
                                 {128, 12, 2, 16, 256, 0},
                                 {128, 12, 2, 8, 200, 4},
                                 {64, 14, 2, 16, 131, 3},
                                 {64, 2, 2, 8, 64, 0},
                                 {128, 12, 2, 8, 257, 0},
                                 {64, 14, 2, 16, 700, 3},
                                 {64, 2, 2, 8, 300, 0},
                                 {128, 12, 1, 16, 90, 2},
                                 {128, 12, 2, 16, 20000, 0},
                                 {128, 12, 2, 8, 700, 4},
                                 {128, 12, 2, 16, 700, 3},
                                 {128, 3, 1, 16, 513, 8}}) {
    const Cache cache(c.dim, c.kv_heads, c.length, c.bits);
    const Bias bias(c.pairs, c.kv_heads, c.dim);
    const std::vector<int> lengths{c.length, std::max(1, c.length / 2), std::max(1, c.length - 1), 1};
    std::vector<Row> rows;
    for (int i = 0; i < kRows; ++i) {
      const int position = lengths[static_cast<size_t>(i % 4)] - 1;
      rows.push_back({0, position, 0, i % 3 == 0 ? 0 : position - position / 3 * (i % 3 - 1)});
    }
    const auto q = test::normal(static_cast<size_t>(int64_t{kRows} * c.q_heads * c.dim), 0.3F);
    const Buffer<std::byte> pages(cache.pages);
    const Buffer<uint32_t> table(cache.table), arrived(static_cast<size_t>(kRows * c.q_heads));
    const Buffer<float> d_q(q), rotations(cache.rotations), first(bias.first), second(bias.second);
    const Buffer<int32_t> index(bias.index);
    const Buffer<Row> info(rows);
    const Buffer<uint16_t> out(static_cast<size_t>(kRows * c.q_heads * c.dim));
    const Buffer<float> sums(static_cast<size_t>(kRows * c.q_heads * kMaxSplits * c.dim));
    const Buffer<float> scalars(static_cast<size_t>(kRows * c.q_heads * kMaxSplits * 2));
    arrived.zero();
    std::vector<float> in_the_largest;
    for (const int count : {kRows, 4, 1}) {
      RowAttentionArgs args;
      args.rows = count;
      args.row_info = info.get();
      args.heads = {c.q_heads, c.kv_heads, c.dim};
      args.cache = {.data = pages.get(),
                    .kv_bits = c.bits,
                    .pages = table.get(),
                    .rotations = rotations.get(),
                    .key_bias = {c.pairs, index.get(), first.get(), second.get()}};
      args.q = d_q.get();
      args.max_splits = split_count(c.length);
      args.out = out.get();
      args.out_stride = c.q_heads * c.dim;
      args.split_sums = sums.get();
      args.split_scalars = scalars.get();
      args.arrived = arrived.get();
      attend_rows(args, nullptr);
      check(cudaGetLastError());
      const auto actual = from_half(out.read());
      if (count == kRows) in_the_largest = actual;
      const auto common = std::ptrdiff_t{count} * c.q_heads * c.dim;
      EXPECT_TRUE(std::equal(actual.begin(), actual.begin() + common, in_the_largest.begin()))
          << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " rows " << count;
      for (int row = 0; row < std::min(count, 4); ++row) {
        EXPECT_LT(worst_row(c, cache, bias, q, actual, row, lengths[static_cast<size_t>(row)]), 1e-3)
            << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " row " << row << " of "
            << count;
      }
      for (const uint32_t left : arrived.read()) EXPECT_EQ(left, 0U);
    }
  }
}

TEST(GpuAttention, ChunksOfPrompts) {
  for (const AttentionCase& c : {AttentionCase{128, 6, 2, 16, 130, 0},
                                 {64, 7, 1, 16, 64, 0},
                                 {128, 2, 2, 8, 200, 0},
                                 {64, 4, 2, 16, 333, 11},
                                 {128, 4, 1, 8, 77, 2}}) {
    for (const int position : {0, 45}) {
      const int tokens = c.length - position;
      const Cache cache(c.dim, c.kv_heads, c.length, c.bits);
      const Bias bias(c.pairs, c.kv_heads, c.dim);
      const auto q = test::normal(static_cast<size_t>(int64_t{tokens} * c.q_heads * c.dim), 0.3F);
      const Buffer<std::byte> pages(cache.pages);
      const Buffer<uint32_t> table(cache.table);
      const Buffer<float> d_q(q), rotations(cache.rotations), first(bias.first), second(bias.second);
      const Buffer<int32_t> index(bias.index);
      const Buffer<uint16_t> out(static_cast<size_t>(tokens * c.q_heads * c.dim));
      ChunkAttentionArgs args;
      args.tokens = tokens;
      args.position = position;
      args.positions = c.length;
      args.heads = {c.q_heads, c.kv_heads, c.dim};
      args.cache = {.data = pages.get(),
                    .kv_bits = c.bits,
                    .pages = nullptr,
                    .rotations = rotations.get(),
                    .key_bias = {c.pairs, index.get(), first.get(), second.get()}};
      args.pages = table.get();
      args.q = d_q.get();
      args.out = out.get();
      args.out_stride = c.q_heads * c.dim;
      attend_chunk(args, nullptr);
      check(cudaGetLastError());
      const auto actual = from_half(out.read());
      for (const int row : {0, tokens / 2, tokens - 1}) {
        EXPECT_LT(worst_row(c, cache, bias, q, actual, row, position + row + 1), 5e-3)
            << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " row " << row;
      }
    }
  }
}

}  // namespace
}  // namespace qwen2::cuda
