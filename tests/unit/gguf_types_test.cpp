// The weights of GGUF files, against twins that an independent writer made, tests/tools/make_gguf_fixtures.py,
// and against logits of an independent forward pass.
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <boost/json.hpp>
#include <cstring>
#include <fstream>

#include "backend/cpu/cpu_backend.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "gguf_bytes.h"
#include "run_backend.h"
#include "tensor/quantized_storage.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
using test::Bytes;
using test::expect_error;
using test::message_of;
using test::read;

std::string path_of(const std::string& fixture) {
  return (test::gguf_fixtures() / (fixture + ".gguf")).string();
}

struct TemporaryFile {
  fs::path path = fs::temp_directory_path() / fmt::format("qwen2-types-{}.gguf", ::getpid());

  explicit TemporaryFile(const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { fs::remove(path); }
};

// Bit by bit, but for the sign of zero: 8 * d - 8 * d is +0 where ggml has 0 * d.
uint32_t bits(float value) {
  return std::bit_cast<uint32_t>(value + 0.0F);
}

void expect_matrix(const Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols,
                   const float* expected) {
  const auto format = checkpoint.matrix_format(name, rows, cols);
  ASSERT_TRUE(format) << format.error().message;
  // Other tensors' rows come before it.
  constexpr int64_t kFirstRow = 70;
  std::vector<float> row(static_cast<size_t>(cols));
  if (*format) {
    const QuantizedStorage storage(**format, kFirstRow + rows, cols);
    const auto status = checkpoint.load_quantized(name, rows, storage.matrix(), kFirstRow);
    ASSERT_TRUE(status) << status.error().message;
    for (int64_t i = 0; i < rows; ++i) {
      storage.matrix().get_row(kFirstRow + i, row.data());
      for (int64_t k = 0; k < cols; ++k) {
        ASSERT_EQ(bits(row[static_cast<size_t>(k)]), bits(expected[i * cols + k])) << i << " " << k;
      }
    }
  }
  std::vector<uint16_t> memory(PackedMatrix::packed_bytes(kFirstRow + rows, cols) / 2, 0);
  const PackedMatrix packed{memory.data(), kFirstRow + rows, cols};
  const auto status = read_expanded(checkpoint, name, rows, cols, [&](int64_t i, const float* values) {
    packed.set_row(kFirstRow + i, values);
  });
  ASSERT_TRUE(status) << status.error().message;
  for (int64_t i = 0; i < rows; ++i) {
    packed.get_row(kFirstRow + i, row.data());
    for (int64_t k = 0; k < cols; ++k) {
      const float rounded = bf16_to_float(float_to_bf16(expected[i * cols + k]));
      ASSERT_EQ(bits(row[static_cast<size_t>(k)]), bits(rounded)) << i << " " << k;
    }
  }
}

// Fixtures beside their twins.
class GgufWeights : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Fixtures, GgufWeights,
                         testing::Values("mixed", "tied", "small_blocks", "super_blocks"),
                         [](const auto& fixture) { return std::string(fixture.param); });

TEST_P(GgufWeights, AreTheTwins) {
  const auto checkpoint = open_checkpoint(path_of(GetParam()));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto file = MappedFile::open(test::gguf_fixtures() / GetParam() / "model.safetensors");
  ASSERT_TRUE(file);
  const auto header = parse_safetensors(file->bytes());
  ASSERT_TRUE(header);
  for (const auto& [name, entry] : header->tensors) {
    SCOPED_TRACE(name);
    EXPECT_TRUE((*checkpoint)->has(name));
    std::vector<float> expected((entry.end - entry.begin) / sizeof(float));
    std::memcpy(expected.data(), file->bytes().data() + header->data_start + entry.begin,
                entry.end - entry.begin);
    if (entry.shape.size() == 2) {
      expect_matrix(**checkpoint, name, entry.shape[0], entry.shape[1], expected.data());
      continue;
    }
    std::vector<float> actual(expected.size());
    const auto status = (*checkpoint)->load_vector(name, entry.shape[0], actual.data());
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(actual, expected);
  }
}

struct StoredAs {
  const char* fixture;
  const char* name;
  int64_t rows;
  int64_t cols;
  std::optional<QuantizedFormat> format;
};

TEST(GgufFormats, AreKeptAsStored) {
  constexpr auto kF16 = ScaleForm::kF16;
  constexpr auto kTwoLevel = ScaleForm::kF16TimesI8;
  constexpr auto kNone = OffsetForm::kNone;
  constexpr auto kMinimum = OffsetForm::kMinimum;
  const auto layer = [](const char* name) { return std::string("model.layers.0.") + name + "_proj.weight"; };
  for (const auto& [fixture, name, rows, cols, format] : std::vector<StoredAs>{
           {"mixed", "lm_head.weight", 280, 256, QuantizedFormat{8, 32, kF16, kNone}},
           {"mixed", "model.embed_tokens.weight", 280, 256, QuantizedFormat{8, 16, kTwoLevel, kNone}},
           {"mixed", "self_attn.q", 256, 256, QuantizedFormat{4, 32, kTwoLevel, kMinimum}},
           {"mixed", "self_attn.k", 32, 256, std::nullopt},
           {"mixed", "self_attn.v", 32, 256, std::nullopt},
           {"mixed", "self_attn.o", 256, 256, QuantizedFormat{8, 32, kTwoLevel, kMinimum}},
           {"mixed", "mlp.gate", 256, 256, QuantizedFormat{4, 32, kF16, kNone}},
           {"mixed", "mlp.up", 256, 256, QuantizedFormat{4, 32, kF16, kMinimum}},
           {"mixed", "mlp.down", 256, 256, std::nullopt},
           {"small_blocks", "self_attn.q", 96, 96, QuantizedFormat{8, 32, kF16, kMinimum}},
           {"small_blocks", "self_attn.k", 32, 96, QuantizedFormat{8, 32, kF16, kNone}},
           {"small_blocks", "mlp.gate", 160, 96, QuantizedFormat{8, 32, kF16, kNone}},
           {"super_blocks", "self_attn.q", 256, 256, QuantizedFormat{4, 16, kTwoLevel, kMinimum}},
           {"super_blocks", "self_attn.k", 64, 256, QuantizedFormat{8, 32, kTwoLevel, kNone}},
           {"super_blocks", "self_attn.v", 64, 256, QuantizedFormat{4, 16, kTwoLevel, kNone}},
       }) {
    const auto checkpoint = open_checkpoint(path_of(fixture));
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    const bool is_whole = std::string_view(name).ends_with(".weight");
    const auto actual = (*checkpoint)->matrix_format(is_whole ? name : layer(name), rows, cols);
    ASSERT_TRUE(actual) << actual.error().message;
    EXPECT_EQ(*actual, format) << fixture << " " << name;
  }
}

// A scale or a minimum that is not finite would spread over every answer.
TEST(GgufFormats, RefuseScalesThatAreNotFinite) {
  struct Case {
    const char* fixture;
    const char* tensor;  // with "blk.0." and ".weight" around it
    const char* name;
    int64_t cols;
    size_t block;
    size_t scale;                   // place in a block
    std::optional<size_t> minimum;  // the same
  };
  for (const auto& c : std::vector<Case>{{"small_blocks", "attn_k", "self_attn.k", 96, 22, 0, {}},
                                         {"small_blocks", "attn_v", "self_attn.v", 96, 24, 0, 2},
                                         {"super_blocks", "attn_k", "self_attn.k", 256, 136, 0, {}},
                                         {"super_blocks", "attn_v", "self_attn.v", 256, 110, 108, {}},
                                         {"super_blocks", "ffn_gate", "mlp.gate", 256, 84, 80, 82},
                                         {"mixed", "attn_q", "self_attn.q", 256, 144, 0, 2},
                                         {"mixed", "attn_output", "self_attn.o", 256, 176, 0, 2},
                                         {"mixed", "ffn_gate", "mlp.gate", 256, 18, 0, {}}}) {
    const std::string tensor = std::string("blk.0.") + c.tensor + ".weight";
    SCOPED_TRACE(c.fixture + tensor);
    const Bytes good{read(path_of(c.fixture))};
    const auto file = good.parse();
    ASSERT_TRUE(file);
    const GgufTensor& stored = file->tensors.find(tensor)->second;
    constexpr size_t kRow = 3;
    const size_t row = stored.begin + kRow * stored.bytes / static_cast<size_t>(stored.shape[1]);
    for (const size_t place : {c.scale, c.minimum.value_or(c.scale)}) {
      for (const auto bad : std::vector<uint16_t>{0x7c00, 0xfc00, 0x7e01}) {
        const TemporaryFile damaged(good.with(row + place, bad).text);
        const auto checkpoint = open_checkpoint(damaged.path.string());
        ASSERT_TRUE(checkpoint) << checkpoint.error().message;
        const std::string name = std::string("model.layers.0.") + c.name + "_proj.weight";
        const auto format = (*checkpoint)->matrix_format(name, stored.shape[1], c.cols);
        ASSERT_TRUE(format) << format.error().message;
        const QuantizedStorage storage(**format, stored.shape[1], c.cols);
        const auto message =
            message_of((*checkpoint)->load_quantized(name, stored.shape[1], storage.matrix(), 0));
        expect_error(message, "tensor '" + tensor + "' holds an infinite or NaN scale in row 3");
        expect_error(message, damaged.path.string());
      }
    }
  }
}

// Files as people have them, against a float64 pass over the values that their bytes mean.
class GgufLogits : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Files, GgufLogits, testing::Values("05b_q4_k_m", "15b_q5_0"),
                         [](const auto& file) { return "m" + std::string(file.param); });

TEST_P(GgufLogits, AreThoseOfAFloat64Pass) {
  const fs::path folder = test::fixture_folder() / "checkpoints" / GetParam();
  // The folder stands for the one GGUF file in it.
  const auto checkpoint = open_checkpoint(folder.string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto backend = create_cpu_backend(**checkpoint, {}, {.isa = "auto"});
  ASSERT_TRUE(backend) << backend.error().message;
  const auto expected = boost::json::parse(read(folder / "expected.json"));
  double worst = 0;
  for (const auto& item : expected.at("cases").as_array()) {
    const auto prompt = boost::json::value_to<std::vector<TokenId>>(item.at("prompt"));
    const auto logits = boost::json::value_to<std::vector<float>>(item.at("logits"));
    const auto actual = test::run(**backend, prompt, 0, test::page_table(**backend));
    worst = std::max(worst, test::difference(actual, logits));
  }
  EXPECT_LE(worst, 1e-2);
  RecordProperty("difference", fmt::format("{:.5f}", worst));
}

}  // namespace
}  // namespace qwen2
