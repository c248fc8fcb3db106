// The CPU kernels on Qwen2-1.5B's shapes, each with the bytes or operations it must do, for every instruction
// set.
//   build/release/kernel_benchmarks [--benchmark_filter=avx512]
#include <benchmark/benchmark.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "base/memory.h"
#include "base/parallel.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/kernels.h"

namespace {

using namespace qwen2;
using namespace qwen2::cpu;

// Several copies of a matrix, so that a repetition never finds its weights in a cache.
class Matrices {
 public:
  Matrices(int64_t rows, int64_t cols)
      : rows_(rows), cols_(cols), bytes_(PackedMatrix::packed_bytes(rows, cols)) {
    count_ = std::max<size_t>(2, (size_t{512} << 20) / bytes_);
    memory_ = *LargeBuffer::allocate(count_ * bytes_, "benchmark weights");
    std::mt19937 random(0);
    auto* words = memory_.as<uint32_t>();
    // bf16 numbers near one: never zeros, never special.
    for (size_t i = 0; i < memory_.size() / 4; ++i) words[i] = 0x3f803f80U | (random() & 0x807f807fU);
  }
  PackedMatrix next() {
    current_ = (current_ + 1) % count_;
    return {memory_.as<uint16_t>() + current_ * bytes_ / 2, rows_, cols_};
  }
  [[nodiscard]] size_t bytes() const { return bytes_; }

 private:
  int64_t rows_, cols_;
  size_t bytes_, count_, current_ = 0;
  LargeBuffer memory_;
};

std::vector<float> noise(size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

void gemv(benchmark::State& state, Isa isa, int64_t rows, int64_t cols) {
  const auto batch = static_cast<int>(state.range(0));
  const Kernels& kernels = kernels_for(isa);
  Matrices weights(rows, cols);
  const auto x = noise(static_cast<size_t>(batch * cols));
  std::vector<float> y(static_cast<size_t>(batch * round_up(rows, 64)));
  for (auto _ : state) {
    const PackedMatrix w = weights.next();
    const GemvArgs args{w.data, rows, cols, x.data(), cols, batch, y.data(), round_up(rows, 64), false};
    parallel_ranges(w.blocks(), [&](int64_t begin, int64_t end) { kernels.gemv_bf16(args, begin, end); });
    benchmark::DoNotOptimize(y.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weights.bytes()));
}

void read_memory(benchmark::State& state, Isa isa) {
  const Kernels& kernels = kernels_for(isa);
  Matrices memory(17920, 1536);
  for (auto _ : state) {
    const auto* data = reinterpret_cast<const std::byte*>(memory.next().data);
    parallel_ranges(static_cast<int64_t>(memory.bytes() / 64), [&](int64_t begin, int64_t end) {
      benchmark::DoNotOptimize(kernels.read_lines(data + begin * 64, end - begin));
    });
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(memory.bytes()));
}

void dense(benchmark::State& state, Isa isa, int64_t rows, int64_t cols) {
  const int64_t m = state.range(0);
  Matrices weights(rows, cols);
  auto product = *Dense::create(kernels_for(isa), m, cols);
  const auto x = noise(static_cast<size_t>(m * cols));
  std::vector<float> y(static_cast<size_t>(round_up(m, 16) * round_up(rows, 64)));
  for (auto _ : state) {
    const auto status = product->run(WeightMatrix::of(weights.next()), x.data(), cols, m, y.data(),
                                     round_up(rows, 64), false, Rounding::kOneBf16);
    if (!status) state.SkipWithError(status.error().message.c_str());
  }
  state.counters["FLOP/s"] = benchmark::Counter(2.0 * static_cast<double>(m * rows * cols),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

// One decode row of one KV head with six query heads over `depth` keys.
void attention(benchmark::State& state, Isa isa, int kv_bits) {
  constexpr int kDim = 128;
  constexpr int kGroup = 6;
  const int64_t depth = state.range(0);
  const int64_t pages = depth / kPageTokens;
  const std::vector<uint16_t> cache(static_cast<size_t>(pages * kv_page_bytes(kv_bits, kDim) / 2), 0x3555);
  std::vector<uint32_t> table(static_cast<size_t>(pages));
  std::iota(table.begin(), table.end(), 0U);
  const auto q = noise(kGroup * kDim);
  std::vector<float> sums(kGroup * kDim), maxima(kGroup), denominators(kGroup);
  for (auto _ : state) {
    kernels_for(isa).attention({q.data(), kGroup * kDim, 1, kGroup, kDim, depth - 1, 0, depth,
                                reinterpret_cast<const std::byte*>(cache.data()),
                                kv_page_bytes(kv_bits, kDim), table.data(), sums.data(), maxima.data(),
                                denominators.data(), kv_bits});
    benchmark::DoNotOptimize(sums.data());
  }
  state.SetBytesProcessed(state.iterations() * pages * kv_page_bytes(kv_bits, kDim));
}

}  // namespace

int main(int argc, char** argv) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > detect_isa()) continue;
    const auto name = [&](const char* what) { return std::string(isa_name(isa)) + "/" + what; };
    benchmark::RegisterBenchmark(name("read").c_str(), read_memory, isa)->UseRealTime();
    benchmark::RegisterBenchmark(name("gemv_gate_up").c_str(), gemv, isa, 17920, 1536)
        ->Arg(1)
        ->Arg(2)
        ->Arg(4)
        ->Arg(8)
        ->Arg(16)
        ->UseRealTime();
    benchmark::RegisterBenchmark(name("gemv_down").c_str(), gemv, isa, 1536, 8960)
        ->Arg(1)
        ->Arg(8)
        ->UseRealTime();
    benchmark::RegisterBenchmark(name("dense_gate_up").c_str(), dense, isa, 17920, 1536)
        ->Arg(64)
        ->Arg(256)
        ->UseRealTime();
    for (const int kv_bits : {16, 8}) {
      benchmark::RegisterBenchmark(name(kv_bits == 8 ? "attention_int8" : "attention").c_str(), attention,
                                   isa, kv_bits)
          ->Arg(2048)
          ->Arg(30720)
          ->UseRealTime();
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
