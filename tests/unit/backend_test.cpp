// The forward pass against Transformers in float32 (tests/golden, made by tools/make_goldens.py).
#include "backend/backend.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>
#include <numeric>

#include "base/memory.h"
#include "kernels/cpu/kernels.h"
#include "paths.h"
#include "random_data.h"
#include "run_backend.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using test::difference;
using test::page_table;
using test::run;

// The project's bound: relative error of a row of logits.
constexpr double kBound = 1e-2;

std::unique_ptr<Backend> open_backend(const fs::path& model, const std::string& isa, Limits limits = {}) {
  auto checkpoint = open_checkpoint(model.string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  auto backend = create_cpu_backend(**checkpoint, limits, {.isa = isa});
  EXPECT_TRUE(backend) << backend.error().message;
  return std::move(*backend);
}

struct GoldenParam {
  std::string model;
  std::string isa;

  friend std::ostream& operator<<(std::ostream& out, const GoldenParam& p) {
    return out << p.model << " " << p.isa;
  }
};

class GoldenTest : public testing::TestWithParam<GoldenParam> {};

std::vector<GoldenParam> golden_params() {
  std::vector<GoldenParam> params;
  for (const char* model : {"demo", "hd64_tied", "hd128_untied", "mha_deep", "hd128_wide", "gqa6_odd"}) {
    for (const char* isa : {"baseline", "avx2", "avx512"}) params.push_back({model, isa});
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest, testing::ValuesIn(golden_params()),
                         [](const auto& param) { return param.param.model + "_" + param.param.isa; });

TEST_P(GoldenTest, MatchesTransformers) {
  const auto& [model, isa] = GetParam();
  if (cpu::parse_isa(isa) > cpu::detect_isa()) GTEST_SKIP() << "this processor has no " << isa;
  const fs::path folder = test::golden_folder() / model;
  const auto backend = open_backend(model == "demo" ? test::demo_model() : folder, isa);
  const auto pages = page_table(*backend);
  const auto text = read_text_file(folder / "golden.json");
  ASSERT_TRUE(text) << text.error().message;
  const json::value golden = json::parse(*text);
  int compared = 0;
  for (const json::value& item : golden.at("cases").as_array()) {
    const auto prompt = json::value_to<std::vector<TokenId>>(item.at("prompt"));
    const auto greedy = json::value_to<std::vector<TokenId>>(item.at("greedy"));
    const auto margins = json::value_to<std::vector<double>>(item.at("margins"));
    const auto max_abs = json::value_to<std::vector<double>>(item.at("max_abs"));
    const auto raw = read_text_file(folder / json::value_to<std::string>(item.at("logits_file")));
    ASSERT_TRUE(raw);
    std::vector<float> expected(raw->size() / sizeof(float));
    std::memcpy(expected.data(), raw->data(), raw->size());
    std::vector<float> logits = run(*backend, prompt, 0, pages);
    ASSERT_EQ(logits.size(), expected.size());
    EXPECT_LE(test::relative_error(logits, expected), kBound) << "prompt of " << prompt.size();
    // The reference's own continuation is fed back, so that every step is compared.
    int64_t position = static_cast<int64_t>(prompt.size());
    for (size_t step = 0; step < greedy.size(); ++step) {
      const auto best = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (margins[step] > kBound * max_abs[step]) {
        ++compared;
        EXPECT_EQ(best, greedy[step]) << "prompt of " << prompt.size() << ", step " << step;
      }
      logits = run(*backend, std::span(greedy).subspan(step, 1), position++, pages);
    }
  }
  EXPECT_GT(compared, 64) << "too few steps have a margin to say anything";
}

// The family's numeric traps (tests/golden/README.md), in every precision and type of the KV cache.
struct TrapParam {
  std::string model;
  std::string isa;
  std::string precision;
  int kv_bits = 16;
  bool int8_activations = false;

  friend std::ostream& operator<<(std::ostream& out, const TrapParam& p) {
    return out << p.model << " " << p.isa << " " << p.precision << " kv" << p.kv_bits
               << (p.int8_activations ? " a8" : "");
  }
};

class TrapTest : public testing::TestWithParam<TrapParam> {};

std::vector<TrapParam> trap_params() {
  std::vector<TrapParam> params;
  for (const char* model : {"trap_keys", "trap_swiglu", "trap_residual", "trap_all"}) {
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
      for (const char* precision : {"bf16", "int8", "int4"}) {
        for (const int kv_bits : {16, 8}) {
          params.push_back({model, isa, precision, kv_bits});
          if (precision != std::string_view("bf16")) params.push_back({model, isa, precision, kv_bits, true});
        }
      }
    }
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Models, TrapTest, testing::ValuesIn(trap_params()), [](const auto& param) {
  const TrapParam& p = param.param;
  return fmt::format("{}_{}_{}_kv{}{}", p.model, p.isa, p.precision, p.kv_bits,
                     p.int8_activations ? "_a8" : "");
});

std::unique_ptr<Backend> open_trap(const TrapParam& p, KeyBiasPlace key_bias) {
  CpuOptions options{
      .isa = p.isa, .kv_bits = p.kv_bits, .key_bias = key_bias, .int8_activations = p.int8_activations};
  options.precision = *Precision::parse(p.precision, "", 128);
  const auto checkpoint = open_checkpoint((test::golden_folder() / p.model).string());
  EXPECT_TRUE(checkpoint) << checkpoint.error().message;
  auto backend = create_cpu_backend(**checkpoint, {}, options);
  EXPECT_TRUE(backend) << backend.error().message;
  return std::move(*backend);
}

struct TrapCase {
  std::vector<TokenId> prompt;
  std::vector<float> logits;
};

std::vector<TrapCase> trap_cases(const fs::path& folder, const json::value& golden) {
  std::vector<TrapCase> cases;
  for (const json::value& item : golden.at("cases").as_array()) {
    const auto raw = read_text_file(folder / json::value_to<std::string>(item.at("logits_file")));
    TrapCase& own = cases.emplace_back(json::value_to<std::vector<TokenId>>(item.at("prompt")),
                                       std::vector<float>(raw->size() / sizeof(float)));
    std::memcpy(own.logits.data(), raw->data(), raw->size());
  }
  return cases;
}

double worst_difference(Backend& backend, const std::vector<TrapCase>& cases) {
  double worst = 0;
  for (const TrapCase& c : cases)
    worst = std::max(worst, difference(run(backend, c.prompt, 0, page_table(backend)), c.logits));
  return worst;
}

// The better of Transformers' two ways to attend in bf16, by its worst case.
double transformers_in_bf16(const json::value& golden) {
  double best = INFINITY;
  for (const char* mode : {"bf16_eager", "bf16_sdpa"}) {
    double worst = 0;
    for (const json::value& error : golden.at("transformers_errors").at(mode).as_array())
      worst = std::max(worst, error.is_null() ? INFINITY : error.to_number<double>());
    best = std::min(best, worst);
  }
  return best;
}

TEST_P(TrapTest, StaysCloseWhereOthersOverflow) {
  const TrapParam& p = GetParam();
  if (cpu::parse_isa(p.isa) > cpu::detect_isa()) GTEST_SKIP() << "this processor has no " << p.isa;
  const fs::path folder = test::golden_folder() / p.model;
  const json::value golden = json::parse(*read_text_file(folder / "golden.json"));
  std::vector<TrapCase> cases = trap_cases(folder, golden);
  const auto backend = open_trap(p, KeyBiasPlace::kScores);
  if (p.precision != "bf16") {
    // Rounding such weights makes another model: its logits are what the slowest kernels say.
    const auto plain = open_trap({p.model, "baseline", p.precision, 16}, KeyBiasPlace::kScores);
    for (TrapCase& c : cases) c.logits = run(*plain, c.prompt, 0, page_table(*plain));
  }
  const double error = worst_difference(*backend, cases);
  RecordProperty("error", fmt::format("{:.4f}", error));
  const double rounded = p.int8_activations ? 0.15 : 0.1;
  EXPECT_LE(error, p.kv_bits == 16 && p.precision == "bf16" ? transformers_in_bf16(golden) : rounded);
}

// Mean KL divergence of what `backend` predicts behind every token from what `reference` does.
double mean_kl(Backend& backend, Backend& reference, std::span<const TokenId> tokens) {
  const auto log_probabilities = [&](Backend& own) {
    std::vector<std::vector<double>> rows(tokens.size());
    const auto pages = page_table(own);
    const auto sink = [&](int64_t row, std::span<const float> logits) {
      const double peak = *std::max_element(logits.begin(), logits.end());
      double total = 0;
      for (const float value : logits) total += std::exp(value - peak);
      for (const float value : logits)
        rows[static_cast<size_t>(row)].push_back(value - peak - std::log(total));
    };
    EXPECT_TRUE(own.forward_all({tokens, 0, pages, true}, sink));
    return rows;
  };
  const auto own = log_probabilities(backend);
  const auto expected = log_probabilities(reference);
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (size_t v = 0; v < expected[i].size(); ++v)
      sum += std::exp(expected[i][v]) * (expected[i][v] - own[i][v]);
  }
  return sum / static_cast<double>(tokens.size());
}

// A golden model with RoPE scaled by YaRN, against a pass in float64
// (tests/tools/float64_logits.py). The second model's key biases go through the scores.
TEST(Yarn, MatchesFloat64) {
  for (const char* model : {"hd64_tied", "trap_keys"}) {
    const json::value expected =
        json::parse(*read_text_file(test::fixture_folder() / "yarn" / (std::string(model) + ".json")));
    const fs::path folder = fs::temp_directory_path() / fmt::format("yarn_{}_{}", model, ::getpid());
    fs::create_directories(folder);
    fs::create_symlink(test::golden_folder() / model / "model.safetensors", folder / "model.safetensors");
    json::object config =
        json::parse(*read_text_file(test::golden_folder() / model / "config.json")).as_object();
    config["rope_scaling"] = expected.at_pointer("/config/rope_scaling");
    ASSERT_TRUE(write_file(folder / "config.json", json::serialize(config)));
    for (const char* isa : {"baseline", "auto"}) {
      const auto backend = open_backend(folder, isa);
      for (const json::value& golden : expected.at("cases").as_array()) {
        const auto prompt = json::value_to<std::vector<TokenId>>(golden.at("prompt"));
        const auto logits = json::value_to<std::vector<float>>(golden.at("logits"));
        EXPECT_LE(difference(run(*backend, prompt, 0, page_table(*backend)), logits), kBound)
            << model << " " << isa;
      }
    }
    fs::remove_all(folder);
  }
}

// With the whole bias in the keys, a scale of eight bits has nothing left for the tokens.
TEST(KeyBias, OutsideOfTheKeysIsWhatMakesEightBitsEnough) {
  const TrapParam p{"trap_keys", "auto", "bf16", 8};
  const fs::path folder = test::golden_folder() / p.model;
  const auto cases = trap_cases(folder, json::parse(*read_text_file(folder / "golden.json")));
  const double with = worst_difference(*open_trap(p, KeyBiasPlace::kScores), cases);
  const double without = worst_difference(*open_trap(p, KeyBiasPlace::kKeys), cases);
  EXPECT_LT(with, 0.05);
  EXPECT_GT(without, 5 * with);
  RecordProperty("errors", fmt::format("{:.4f} {:.4f}", with, without));
}

TEST(KeyBias, OutsideOfTheKeysKeepsTheDistribution) {
  const auto sixteen = open_trap({"trap_keys", "auto", "bf16", 16}, KeyBiasPlace::kScores);
  const TrapParam p{"trap_keys", "auto", "bf16", 8};
  const auto scores = open_trap(p, KeyBiasPlace::kScores);
  const auto keys = open_trap(p, KeyBiasPlace::kKeys);
  std::vector<TokenId> tokens(200);
  for (TokenId& token : tokens)
    token = static_cast<TokenId>(test::uniform(0, scores->config().vocab_size - 1));
  const double with = mean_kl(*scores, *sixteen, tokens);
  const double without = mean_kl(*keys, *sixteen, tokens);
  EXPECT_GT(without, 20 * with);
  RecordProperty("mean_kl", fmt::format("{:.6f} {:.6f}", with, without));
}

// A quantised model and its twin in float (see the fixtures' writers in tests/tools).
struct TwinParam {
  std::string model;
  std::string twin;

  friend std::ostream& operator<<(std::ostream& out, const TwinParam& p) { return out << p.model; }
};

class TwinTest : public testing::TestWithParam<TwinParam> {};

INSTANTIATE_TEST_SUITE_P(
    Fixtures, TwinTest,
    testing::Values(TwinParam{"gguf/mixed.gguf", "gguf/mixed"}, TwinParam{"gguf/tied.gguf", "gguf/tied"},
                    TwinParam{"gguf/small_blocks.gguf", "gguf/small_blocks"},
                    TwinParam{"gguf/super_blocks.gguf", "gguf/super_blocks"},
                    TwinParam{"quantized/gptq4_sym_g128", "quantized/gptq4_sym_g128_twin"},
                    TwinParam{"quantized/gptq4_asym_g32_act", "quantized/gptq4_asym_g32_act_twin"},
                    TwinParam{"quantized/gptq4_v2_asym_g64", "quantized/awq_g64_twin"},
                    TwinParam{"quantized/gptq8_sym_g64", "quantized/gptq8_sym_g64_twin"},
                    TwinParam{"quantized/gptq8_asym_row", "quantized/gptq8_asym_row_twin"},
                    TwinParam{"quantized/awq_g64", "quantized/awq_g64_twin"},
                    TwinParam{"quantized/awq_g128", "quantized/gptq4_sym_g128_twin"},
                    TwinParam{"quantized/bnb8", "quantized/bnb8_twin"}));

TEST_P(TwinTest, SaysWhatItsExpandedTwinSays) {
  const auto model = open_backend(test::fixture_folder() / GetParam().model, "auto");
  const auto twin = open_backend(test::fixture_folder() / GetParam().twin, "auto");
  const auto pages = page_table(*model);
  int compared = 0;
  for (const int64_t length : {int64_t{1}, int64_t{5}, test::uniform(17, 60)}) {
    std::vector<TokenId> tokens(static_cast<size_t>(length));
    for (TokenId& token : tokens)
      token = static_cast<TokenId>(test::uniform(0, twin->config().vocab_size - 1));
    auto expected = run(*twin, tokens, 0, pages);
    auto actual = run(*model, tokens, 0, pages);
    for (int64_t step = 0; step < 32; ++step) {
      ASSERT_LE(difference(actual, expected), 0.05) << length << " tokens, step " << step;
      const auto best = std::max_element(expected.begin(), expected.end());
      const auto token = static_cast<TokenId>(best - expected.begin());
      std::vector<float> others(expected);
      others[static_cast<size_t>(token)] = -INFINITY;
      const float margin = *best - *std::max_element(others.begin(), others.end());
      if (margin > 0.1F * std::abs(*best)) {
        ++compared;
        EXPECT_EQ(std::max_element(actual.begin(), actual.end()) - actual.begin(), token);
      }
      expected = run(*twin, std::span(&token, 1), length + step, pages);
      actual = run(*model, std::span(&token, 1), length + step, pages);
    }
  }
  EXPECT_GT(compared, 0);
}

class BackendTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (cpu::parse_isa(GetParam()) > cpu::detect_isa())
      GTEST_SKIP() << "this processor has no " << GetParam();
  }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, BackendTest, testing::Values("baseline", "avx2", "avx512"),
                         [](const auto& param) { return param.param; });

// Rows of a step share their reads of the weights, but not their arithmetic.
TEST_P(BackendTest, AChunkDoesNotDependOnItsNeighbours) {
  Limits limits;
  limits.max_num_seqs = 24;
  limits.max_model_len = 640;
  const auto backend = open_backend(test::golden_folder() / "hd64_tied", GetParam(), limits);
  const int64_t vocabulary = backend->config().vocab_size;
  const int64_t pages_each = limits.max_model_len / backend->page_tokens();
  std::vector<std::vector<TokenId>> prompts;
  std::vector<std::vector<uint32_t>> pages;
  std::vector<std::vector<float>> alone;
  for (int64_t i = 0; i < limits.max_num_seqs; ++i) {
    auto& prompt =
        prompts.emplace_back(static_cast<size_t>(i % 3 == 0 ? test::uniform(17, 250) : test::uniform(1, 16)));
    for (TokenId& token : prompt) token = static_cast<TokenId>(test::uniform(0, vocabulary - 1));
    auto& own = pages.emplace_back(static_cast<size_t>(pages_each));
    std::iota(own.begin(), own.end(), static_cast<uint32_t>(i * pages_each));
    alone.push_back(run(*backend, prompt, 0, own));
  }
  std::vector<Chunk> chunks;
  chunks.reserve(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) chunks.push_back({prompts[i], 0, pages[i], true});
  const auto together = backend->forward(chunks);
  ASSERT_TRUE(together);
  // The logits come in the order of the chunks.
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto row = together->row(i);
    ASSERT_TRUE(std::equal(row.begin(), row.end(), alone[i].begin()))
        << "chunk " << i << " of " << prompts[i].size();
  }
}

TEST_P(BackendTest, LongContextsUseEverySplit) {
  Limits limits;
  limits.max_num_seqs = 1;
  limits.max_model_len = 1344;
  const auto backend = open_backend(test::golden_folder() / "gqa6_odd", GetParam(), limits);
  const auto pages = page_table(*backend);
  std::vector<TokenId> prompt(1300);
  for (TokenId& token : prompt)
    token = static_cast<TokenId>(test::uniform(0, backend->config().vocab_size - 1));
  // The last token through the dense path, and alone through the decode path over three parts of keys.
  const auto dense = run(*backend, prompt, 0, pages);
  const auto decoded = run(*backend, std::span(prompt).last(1), 1299, pages);
  EXPECT_LT(test::relative_error(decoded, dense), kBound);
  EXPECT_GT(test::relative_error(decoded, std::vector<float>(dense.size(), 1.0F)), kBound);
}

TEST(MemoryPlan, RefusesWhatDoesNotFitAndSaysWhatWould) {
  const auto checkpoint = open_checkpoint(test::demo_model().string());
  ASSERT_TRUE(checkpoint);
  const auto config =
      parse_qwen2_config((*checkpoint)->config_json(), (*checkpoint)->generation_config_json());
  ASSERT_TRUE(config);
  Limits limits;
  limits.memory_budget = uint64_t{210} << 20;
  limits.max_model_len = 4096;
  const auto refused = plan_cpu_backend(**checkpoint, *config, limits, {});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kOutOfMemory);
  const size_t at = refused.error().message.find("--max-model-len ");
  ASSERT_NE(at, std::string::npos) << refused.error().message;
  limits.max_model_len = std::stoll(refused.error().message.substr(at + 16));
  const auto accepted = plan_cpu_backend(**checkpoint, *config, limits, {});
  ASSERT_TRUE(accepted) << accepted.error().message;
  EXPECT_LE(accepted->total(), limits.memory_budget);
  limits.max_model_len = 5000;
  EXPECT_FALSE(plan_cpu_backend(**checkpoint, *config, limits, {}));
}

}  // namespace
}  // namespace qwen2
