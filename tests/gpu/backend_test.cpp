// The CUDA backend against Transformers in float32 (tests/golden) and against the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "backend/backend.h"
#include "backend/cuda/memory.h"
#include "base/gpu_info.h"
#include "base/memory.h"
#include "unit/paths.h"
#include "unit/random_data.h"
#include "unit/run_backend.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using test::difference;
using test::page_table;
using test::run;

std::unique_ptr<Backend> open_cuda(const fs::path& model, const CudaOptions& options, const Limits& limits) {
  // An exception ends the test as failed.
  const auto checkpoint = open_checkpoint(model.string());
  if (!checkpoint) throw std::runtime_error(checkpoint.error().message);
  auto backend = create_cuda_backend(**checkpoint, limits, options);
  if (!backend) throw std::runtime_error(backend.error().message);
  return std::move(*backend);
}

std::unique_ptr<Backend> open_cpu(const fs::path& model, const Precision& precision) {
  const auto checkpoint = open_checkpoint(model.string());
  auto backend = create_cpu_backend(**checkpoint, {}, {.isa = "baseline", .precision = precision});
  EXPECT_TRUE(backend) << backend.error().message;
  return std::move(*backend);
}

struct Case {
  std::vector<TokenId> prompt, greedy;
  std::vector<float> logits;
};

std::vector<Case> cases_of(const fs::path& folder) {
  const json::value golden = json::parse(*read_text_file(folder / "golden.json"));
  std::vector<Case> cases;
  for (const json::value& item : golden.at("cases").as_array()) {
    const auto raw = read_text_file(folder / json::value_to<std::string>(item.at("logits_file")));
    Case& own = cases.emplace_back();
    own.prompt = json::value_to<std::vector<TokenId>>(item.at("prompt"));
    if (item.as_object().contains("greedy"))
      own.greedy = json::value_to<std::vector<TokenId>>(item.at("greedy"));
    own.logits.resize(raw->size() / sizeof(float));
    std::memcpy(own.logits.data(), raw->data(), raw->size());
  }
  return cases;
}

// Model, precision, bits of the KV cache, prompt tokens of one pass.
using Param = std::tuple<std::string, std::string, int, int>;

std::string name_of(const testing::TestParamInfo<Param>& info) {
  const auto& [model, precision, kv_bits, chunk] = info.param;
  return fmt::format("{}_{}_kv{}_chunk{}", model, precision, kv_bits, chunk);
}

class GpuGoldenTest : public testing::TestWithParam<Param> {};

INSTANTIATE_TEST_SUITE_P(Models, GpuGoldenTest,
                         testing::Combine(testing::Values("demo", "hd64_tied", "hd128_untied", "mha_deep",
                                                          "hd128_wide", "gqa6_odd", "trap_keys",
                                                          "trap_swiglu", "trap_residual", "trap_all"),
                                          testing::Values("fp16", "int8", "int4"), testing::Values(16, 8),
                                          testing::Values(16, 256)),
                         name_of);

// Rounding weights makes another model: its logits are what the CPU's slowest kernels say.
TEST_P(GpuGoldenTest, MatchesTheReference) {
  const auto& [model, precision_name, kv_bits, chunk] = GetParam();
  const fs::path folder = test::golden_folder() / model;
  const fs::path files = model == "demo" ? test::demo_model() : folder;
  const Precision precision = *Precision::parse(precision_name, "", 32);
  std::vector<Case> cases = cases_of(folder);
  if (precision_name != "fp16") {
    const auto cpu = open_cpu(files, precision);
    for (Case& c : cases) c.logits = run(*cpu, c.prompt, 0, page_table(*cpu));
  }
  const auto gpu =
      open_cuda(files, {precision, kv_bits}, {.prefill_chunk = chunk, .memory_budget = uint64_t{8} << 30});
  ASSERT_TRUE(gpu);
  double worst = 0;
  for (const Case& c : cases)
    worst = std::max(worst, difference(run(*gpu, c.prompt, 0, page_table(*gpu)), c.logits));
  std::printf("[   error  ] %s %s kv%d chunk%d: %.5f\n", model.c_str(), precision_name.c_str(), kv_bits,
              chunk, worst);
  const bool trap = model.starts_with("trap");
  EXPECT_LE(worst, kv_bits == 8 ? 0.1 : trap || precision_name != "fp16" ? 0.02 : 0.005);
}

// The reference's own continuation, fed token by token and in rows that share a step.
TEST(GpuBackend, ARowsResultIsTheSameInEveryBatch) {
  for (const char* precision : {"fp16", "int8", "int4"}) {
    const auto gpu =
        open_cuda(test::demo_model(), {*Precision::parse(precision, "", 64)},
                  {.max_model_len = 1024, .max_num_seqs = 64, .memory_budget = uint64_t{8} << 30});
    ASSERT_TRUE(gpu);
    const int64_t pages_each = gpu->plan().limits.max_model_len / gpu->page_tokens();
    std::vector<std::vector<TokenId>> tokens(64);
    std::vector<std::vector<uint32_t>> pages(64);
    for (size_t s = 0; s < tokens.size(); ++s) {
      tokens[s].resize(static_cast<size_t>(test::uniform(1, 15)));
      for (TokenId& token : tokens[s])
        token = static_cast<TokenId>(test::uniform(0, gpu->config().vocab_size - 1));
      for (int64_t p = 0; p < pages_each; ++p)
        pages[s].push_back(static_cast<uint32_t>(static_cast<int64_t>(s) * pages_each + p));
    }
    std::vector<Chunk> chunks;
    chunks.reserve(tokens.size());
    for (size_t s = 0; s < tokens.size(); ++s) chunks.push_back({tokens[s], 0, pages[s], true});
    const auto together = gpu->forward(chunks);
    ASSERT_TRUE(together) << together.error().message;
    std::vector<std::vector<float>> expected;
    expected.reserve(tokens.size());
    for (size_t s = 0; s < tokens.size(); ++s)
      expected.emplace_back(together->row(s).begin(), together->row(s).end());
    for (const size_t batch : {size_t{1}, size_t{3}, size_t{7}}) {
      const auto some = gpu->forward(std::span(chunks).first(batch));
      ASSERT_TRUE(some);
      for (size_t s = 0; s < batch; ++s) {
        const std::vector<float> row(some->row(s).begin(), some->row(s).end());
        EXPECT_EQ(row, expected[s]) << precision << ", " << batch << " chunks, row " << s << ", off by "
                                    << difference(row, expected[s]);
      }
    }
  }
}

// The formats that folders come in, against the CPU backend on the same files. (The GGUF fixtures have heads
// of 32, which the CUDA backend does not take.)
class GpuFormatTest : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Fixtures, GpuFormatTest,
                         testing::Values("quantized/gptq4_sym_g128", "quantized/gptq4_asym_g32_act",
                                         "quantized/gptq4_v2_asym_g64", "quantized/gptq8_sym_g64",
                                         "quantized/gptq8_asym_row", "quantized/awq_g64",
                                         "quantized/awq_g128", "quantized/bnb8"));

TEST_P(GpuFormatTest, SaysWhatTheCpuSays) {
  const fs::path model = test::fixture_folder() / GetParam();
  const auto cpu = open_cpu(model, {});
  const auto gpu = open_cuda(model, {}, {.prefill_chunk = 32, .memory_budget = uint64_t{4} << 30});
  ASSERT_TRUE(gpu);
  double worst = 0;
  for (const int64_t length : {int64_t{1}, int64_t{5}, int64_t{16}, test::uniform(17, 60)}) {
    std::vector<TokenId> tokens(static_cast<size_t>(length));
    for (TokenId& token : tokens)
      token = static_cast<TokenId>(test::uniform(0, cpu->config().vocab_size - 1));
    worst = std::max(
        worst, difference(run(*gpu, tokens, 0, page_table(*gpu)), run(*cpu, tokens, 0, page_table(*cpu))));
  }
  std::printf("[   error  ] %s: %.5f\n", GetParam().c_str(), worst);
  EXPECT_LE(worst, 0.03);
}

// What is sampled after a prompt in `steps` more steps, with two steps in flight or one after the other.
std::vector<TokenId> decode(Backend& gpu, const SamplingParams& params, std::span<const TokenId> prompt,
                            std::span<const uint32_t> pages, int64_t steps, bool overlapped) {
  Sampler sampler(params, prompt, gpu.config().vocab_size);
  Sampler* const samplers[] = {&sampler};
  std::vector<TokenId> tokens;
  Chunk chunk{prompt, 0, pages, true};
  const auto begin = [&] {
    const auto begun = gpu.begin(std::span(&chunk, 1), samplers);
    EXPECT_TRUE(begun) << begun.error().message;
    return begun.has_value();
  };
  if (!begin()) return {};
  for (int64_t step = 0; step < steps; ++step) {
    chunk.position = static_cast<int64_t>(prompt.size()) + step;
    TokenId token = -1;
    if (!overlapped) {
      tokens.push_back(gpu.finish()->front());
      token = tokens.back();
    }
    chunk.tokens = std::span(&token, 1);
    chunk.pending = overlapped ? 0 : -1;
    if (!begin()) return {};
    if (overlapped) tokens.push_back(gpu.finish()->front());
  }
  tokens.push_back(gpu.finish()->front());
  return tokens;
}

// The promise about memory: the driver's count stays inside of the budget, and nothing is allocated after the
// start.
TEST(GpuBackend, KeepsItsBudgetAndAllocatesNothingWhileItRuns) {
  const uint64_t budget = uint64_t{1200} << 20;
  const auto gpu =
      open_cuda(test::demo_model(), {{}, 16},
                {.max_model_len = 2048, .max_num_seqs = 64, .prefill_chunk = 256, .memory_budget = budget});
  ASSERT_TRUE(gpu);
  size_t free_before = 0;
  size_t free_after = 0;
  size_t total = 0;
  const int allocations = DeviceBuffer::count;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  const auto pages = page_table(*gpu);
  std::vector<TokenId> tokens(1000);
  for (TokenId& token : tokens) token = static_cast<TokenId>(test::uniform(0, gpu->config().vocab_size - 1));
  for (const size_t length : {size_t{1000}, size_t{1}, size_t{17}, size_t{256}, size_t{3}}) {
    run(*gpu, std::span(tokens).first(length), 0, pages);
    const auto held = gpu->device_memory();
    ASSERT_TRUE(held) << "the driver does not say";
    EXPECT_LE(*held, budget);
  }
  decode(*gpu, {.temperature = 0}, std::span(tokens).first(200), pages, 100, true);
  ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  EXPECT_EQ(DeviceBuffer::count, allocations);
  EXPECT_EQ(free_before, free_after);
  EXPECT_GE(gpu->plan().total(), *gpu->device_memory()) << "the plan counts everything";
}

// The driver and CUDA number GPUs differently; the PCI bus id names the same one.
TEST(GpuInfo, IsOfCudasFirstGpu) {
  std::array<char, 32> expected{};
  ASSERT_EQ(cudaDeviceGetPCIBusId(expected.data(), static_cast<int>(expected.size()), 0), cudaSuccess);
  const auto bus_id = first_gpu_bus_id();
  ASSERT_TRUE(bus_id);
  EXPECT_EQ(*bus_id, expected.data());
  cudaDeviceProp properties{};
  ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
  const auto state = gpu_state(*bus_id);
  ASSERT_TRUE(state);
  EXPECT_EQ(state->name, properties.name);
  EXPECT_GE(state->memory_bytes, properties.totalGlobalMem);
  EXPECT_FALSE(state->driver.empty());
  EXPECT_GT(gpu_memory_in_use(*bus_id).value_or(0), 0U);
  EXPECT_FALSE(gpu_state("00000000:ff:1f.0"));
}

TEST(GpuBackend, RefusesABudgetThatIsTooSmall) {
  const auto checkpoint = open_checkpoint(test::demo_model().string());
  ASSERT_TRUE(checkpoint);
  const auto backend = create_cuda_backend(**checkpoint, {.memory_budget = uint64_t{600} << 20}, {});
  ASSERT_FALSE(backend);
  EXPECT_EQ(backend.error().kind, ErrorKind::kOutOfMemory);
  EXPECT_NE(backend.error().message.find("a budget of at least"), std::string::npos)
      << backend.error().message;
}

// Two steps in flight: what the second feeds is what the first sampled, also under a penalty.
TEST(GpuBackend, OverlappedStepsSampleTheSameTokens) {
  const auto gpu =
      open_cuda(test::demo_model(), {{}, 16}, {.max_num_seqs = 4, .memory_budget = uint64_t{2} << 30});
  ASSERT_TRUE(gpu);
  const auto pages = page_table(*gpu);
  const std::vector<TokenId> prompt{5, 9, 300, 12, 44};
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 0}, SamplingParams{.temperature = 0, .repetition_penalty = 1.5F},
        SamplingParams{
            .temperature = 0.9F, .top_k = 20, .top_p = 0.8F, .repetition_penalty = 1.1F, .seed = 7}}) {
    EXPECT_EQ(decode(*gpu, params, prompt, pages, 40, true), decode(*gpu, params, prompt, pages, 40, false))
        << "temperature " << params.temperature;
  }
}

// Steps of several groups, rows that decode and two prompts: inputs of one group must not take the place of
// another's that the card has not read yet. Rows enough that the host is ahead of the card.
TEST(GpuBackend, OverlappedStepsOfSeveralGroups) {
  constexpr size_t kDecoding = 200;
  constexpr size_t kPrompts = 2;
  constexpr size_t kSteps = 12;
  constexpr size_t kPages = 2;  // of each sequence
  const auto gpu =
      open_cuda(test::demo_model(), {{}, 16}, {.max_num_seqs = 256, .memory_budget = uint64_t{2} << 30});
  ASSERT_TRUE(gpu);
  const int64_t vocab = gpu->config().vocab_size;
  std::vector<uint32_t> pages(kPages * (kDecoding + kPrompts));
  ASSERT_GE(gpu->plan().kv_pages, static_cast<int64_t>(pages.size()));
  std::iota(pages.begin(), pages.end(), 0U);
  const auto text = [&](size_t length) {
    std::vector<TokenId> tokens(length);
    for (TokenId& token : tokens) token = static_cast<TokenId>(test::uniform(0, vocab - 1));
    return tokens;
  };
  std::vector<std::vector<TokenId>> first, prompts;
  for (size_t s = 0; s < kDecoding; ++s) first.push_back(text(3 + s % 3));
  for (size_t i = 0; i < kPrompts * (kSteps + 1); ++i) prompts.push_back(text(17 + i * 13 % 60));

  const auto run_all = [&](bool overlapped) {
    std::vector<Sampler> samplers;
    samplers.reserve(kDecoding + kPrompts);
    for (size_t i = 0; i < kDecoding + kPrompts; ++i)
      samplers.emplace_back(SamplingParams{.temperature = 0}, std::span<const TokenId>{}, vocab);
    std::vector<Sampler*> places;
    places.reserve(samplers.size());
    for (Sampler& sampler : samplers) places.push_back(&sampler);
    std::vector<std::vector<TokenId>> sampled;
    for (size_t step = 0; step <= kSteps; ++step) {
      std::vector<Chunk> chunks;
      for (size_t s = 0; s < kDecoding + kPrompts; ++s) {
        Chunk& chunk = chunks.emplace_back();
        chunk.pages = std::span(pages).subspan(s * kPages, kPages);
        chunk.needs_logits = true;
        if (s >= kDecoding) {
          chunk.tokens = prompts[step * kPrompts + s - kDecoding];
        } else if (step == 0) {
          chunk.tokens = first[s];
        } else {
          chunk.position = static_cast<int64_t>(first[s].size() + step - 1);
          if (overlapped) chunk.pending = static_cast<int64_t>(s);
          static const TokenId unknown = -1;
          chunk.tokens = std::span(overlapped ? &unknown : &sampled.back()[s], 1);
        }
      }
      const auto begun = gpu->begin(chunks, places);
      EXPECT_TRUE(begun) << begun.error().message;
      if (!begun) return sampled;
      if (!overlapped || step > 0) sampled.push_back(*gpu->finish());
    }
    if (overlapped) sampled.push_back(*gpu->finish());
    return sampled;
  };
  const auto expected = run_all(false);
  ASSERT_EQ(expected.size(), kSteps + 1);
  for (int run = 0; run < 3; ++run) EXPECT_EQ(run_all(true), expected);
}

}  // namespace
}  // namespace qwen2
