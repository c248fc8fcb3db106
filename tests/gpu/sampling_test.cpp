// Sampling against the probabilities that it must follow.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "gpu/gpu_data.h"
#include "kernels/cuda/sampling/sampling.h"
#include "kernels/cuda/sampling/sampling_reference.h"

namespace qwen2::cuda {
namespace {

using namespace test_data;

// Each draw must be possible, and the shares of many must follow the probabilities.
TEST(GpuSampling, FollowsTheProbabilities) {
  constexpr int kVocab = 3000;
  constexpr int kDraws = 4032;  // of 64 rows each
  const auto logits = test::normal(kVocab, 2);
  std::vector<int32_t> seen{5, 77, 2999};
  for (const auto& [k, p, penalty] : {std::tuple{0, 1.0F, 1.0F},
                                      {20, 1.0F, 1.0F},
                                      {0, 0.5F, 1.0F},
                                      {40, 0.8F, 1.3F},
                                      {1, 1.0F, 1.0F},
                                      {0, 0.01F, 2.0F}}) {
    SampleRow row{0, 0, 0.7F, p, k, penalty, 0, penalty == 1 ? 0 : 3, -1, 0, 0};
    const auto probabilities =
        reference::sampling_probabilities(logits, row, std::span(seen).first(penalty == 1 ? 0 : 3));
    std::vector<int> counts(kVocab);
    const Buffer<int32_t> d_seen(seen), tokens(64);
    const Buffer<unsigned long long> best(64);
    const Buffer<uint32_t> arrived(64);
    best.zero();
    arrived.zero();
    std::vector<float> copies;
    for (int i = 0; i < 64; ++i) copies.insert(copies.end(), logits.begin(), logits.end());
    for (int draw = 0; draw < kDraws; draw += 64) {
      std::vector<SampleRow> rows;
      for (int i = 0; i < 64; ++i) {
        row.logits_row = row.place = i;
        row.uniform = (draw + i + 0.5) / kDraws;
        rows.push_back(row);
      }
      const Buffer<SampleRow> d_rows(rows);
      const Buffer<float> d_logits(copies);
      sample({64, d_rows.get(), d_logits.get(), kVocab, kVocab, d_seen.get(), tokens.get(), nullptr, false,
              best.get(), arrived.get()},
             {penalty != 1, false, true}, nullptr);
      for (const int32_t token : tokens.read()) {
        ASSERT_TRUE(token >= 0 && token < kVocab);
        ++counts[static_cast<size_t>(token)];
      }
    }
    double distance = 0;
    for (size_t i = 0; i < kVocab; ++i) {
      if (counts[i] > 0) {
        EXPECT_GT(probabilities[i], 0) << "top_k " << k << " top_p " << p << " token " << i;
      }
      distance += std::abs(counts[i] / double{kDraws} - probabilities[i]) / 2;
    }
    // The numbers are spread evenly, so that each token is off by two draws at most.
    EXPECT_LT(distance, 2.0 *
                            static_cast<double>(std::count_if(probabilities.begin(), probabilities.end(),
                                                              [](double x) { return x > 0; })) /
                            kDraws)
        << "top_k " << k << " top_p " << p;
  }
}

// The third row is not the step's to take.
TEST(GpuSampling, GreedyTakesTheFirstOfTheLargest) {
  constexpr int kVocab = 152061;
  constexpr int kStride = 152064;
  auto logits = test::normal(2 * kStride);
  for (const size_t place : {size_t{70000}, size_t{150001}}) logits[place] = 100;
  logits[kStride + 3] = 50;
  for (const size_t row : {size_t{1}, size_t{2}}) logits[row * kStride - 3] = 200;  // no token
  const Buffer<float> d_logits(logits);
  const Buffer<SampleRow> rows(std::vector<SampleRow>{{0, 1, 0, 1, 0, 1, 0, 0, -1, 1, 0},
                                                      {1, 0, 0, 1, 0, 1, 0, 0, -1, 1, 0},
                                                      {1, 2, 0, 1, 0, 1, 0, 0, -1, 0, 0}});
  const Buffer<int32_t> tokens(3), host_tokens(3), seen(1);
  const Buffer<unsigned long long> best(3);
  const Buffer<uint32_t> arrived(3);
  best.zero();
  arrived.zero();
  SampleArgs args;
  args.count = 3;
  args.rows = rows.get();
  args.logits = d_logits.get();
  args.stride = kStride;
  args.vocab = kVocab;
  args.seen = seen.get();
  args.tokens = tokens.get();
  args.host_tokens = host_tokens.get();
  args.best = best.get();
  args.arrived = arrived.get();
  for (int repeat = 0; repeat < 3; ++repeat) {
    tokens.zero();
    args.in_step = true;
    sample(args, {false, true, false}, nullptr);
    EXPECT_EQ(tokens.read(), (std::vector<int32_t>{3, 70000, 0}));
    args.in_step = false;
    sample(args, {false, true, false}, nullptr);
    EXPECT_EQ(tokens.read(), (std::vector<int32_t>{3, 70000, 3}));
    EXPECT_EQ(host_tokens.read(), tokens.read());
  }
}

}  // namespace
}  // namespace qwen2::cuda
