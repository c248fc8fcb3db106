// Quantised folders against twins with the same weights in float32; both are written by
// tests/tools/make_quantized_fixtures.py.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <tuple>

#include "model/weights.h"
#include "quantized_folder.h"

namespace qwen2 {
namespace {

using namespace test;

// Everything in bf16, whatever the checkpoint has.
constexpr Precision kExpanded{.bits = 16, .head_bits = 16};

struct Fixture {
  const char* name;
  const char* twin;
  QuantizedFormat format;  // a group of 0 stands for whole rows
};

// GoogleTest prints it in the tests' names.
void PrintTo(const Fixture& fixture, std::ostream* out) {
  *out << fixture.name;
}

const std::vector<Fixture>& fixtures() {
  using enum OffsetForm;
  static const std::vector<Fixture> kFixtures{
      {"gptq4_sym_g128", "gptq4_sym_g128_twin", {4, 128, ScaleForm::kF16, kNone, false}},
      {"gptq4_asym_g32_act", "gptq4_asym_g32_act_twin", {4, 32, ScaleForm::kF16, kZero, true}},
      {"gptq4_v2_asym_g64", "awq_g64_twin", {4, 64, ScaleForm::kF16, kZero, false}},
      {"gptq8_sym_g64", "gptq8_sym_g64_twin", {8, 64, ScaleForm::kF16, kNone, false}},
      {"gptq8_asym_row", "gptq8_asym_row_twin", {8, 0, ScaleForm::kF16, kZero, false}},
      {"awq_g128", "gptq4_sym_g128_twin", {4, 128, ScaleForm::kF16, kZero, false}},
      {"awq_g64", "awq_g64_twin", {4, 64, ScaleForm::kF16, kZero, false}},
      {"bnb8", "bnb8_twin", {8, 0, ScaleForm::kF32, kNone, false}}};
  return kFixtures;
}

class QuantizedFolder : public testing::TestWithParam<Fixture> {
 protected:
  void SetUp() override {
    auto opened = open_folder(quantized_folder(GetParam().name));
    ASSERT_TRUE(opened) << opened.error().message;
    model_ = std::move(*opened);
  }

  Opened model_;
  File twin_{quantized_folder(GetParam().twin) / "model.safetensors"};
};

INSTANTIATE_TEST_SUITE_P(Fixtures, QuantizedFolder, testing::ValuesIn(fixtures()),
                         [](const auto& param) { return std::string(param.param.name); });

TEST_P(QuantizedFolder, HasTheTwinsValues) {
  for (const Shape& shape : quantized_matrices(model_.config)) {
    SCOPED_TRACE(shape.name);
    EXPECT_TRUE(model_.checkpoint->has(shape.name));
    const auto storage = load_one(*model_.checkpoint, shape);
    ASSERT_TRUE(storage) << storage.error().message;
    QuantizedFormat expected = GetParam().format;
    if (expected.group == 0) expected.group = shape.cols;
    EXPECT_EQ(storage->matrix().format, expected);
    expect_rows(storage->matrix(), 0, shape.rows, twin_.tensors.at(shape.name).bytes);
  }
}

// Matrices below each other, also where one ends inside of a block of 64 rows.
TEST_P(QuantizedFolder, StacksMatricesWithTheSameInput) {
  const auto shapes = quantized_matrices(model_.config);
  for (const std::vector<size_t>& stack : {std::vector<size_t>{0, 1, 2}, std::vector<size_t>{4, 5}}) {
    int64_t rows = 0;
    for (const size_t i : stack) rows += shapes[i].rows;
    const auto format =
        model_.checkpoint->matrix_format(shapes[stack[0]].name, shapes[stack[0]].rows, shapes[stack[0]].cols);
    ASSERT_TRUE(format) << format.error().message;
    const QuantizedStorage storage(**format, rows, shapes[stack[0]].cols);
    int64_t first = 0;
    for (const size_t i : stack) {
      const auto status =
          model_.checkpoint->load_quantized(shapes[i].name, shapes[i].rows, storage.matrix(), first);
      ASSERT_TRUE(status) << status.error().message;
      first += shapes[i].rows;
    }
    first = 0;
    for (const size_t i : stack) {
      SCOPED_TRACE(shapes[i].name);
      expect_rows(storage.matrix(), first, shapes[i].rows, twin_.tensors.at(shapes[i].name).bytes);
      first += shapes[i].rows;
    }
  }
}

TEST_P(QuantizedFolder, LoadsMatricesAsRoundedTwins) {
  for (const Shape& shape : quantized_matrices(model_.config)) {
    std::vector<uint16_t> data(PackedMatrix::packed_bytes(shape.rows, shape.cols) / 2);
    const PackedMatrix matrix{data.data(), shape.rows, shape.cols};
    const auto status = read_expanded(*model_.checkpoint, shape.name, shape.rows, shape.cols,
                                      [&](int64_t n, const float* values) { matrix.set_row(n, values); });
    ASSERT_TRUE(status) << status.error().message;
    const std::string& expected = twin_.tensors.at(shape.name).bytes;
    std::vector<float> row(static_cast<size_t>(shape.cols));
    for (int64_t n = 0; n < shape.rows; ++n) {
      matrix.get_row(n, row.data());
      for (int64_t k = 0; k < shape.cols; ++k) {
        float value = 0;
        std::memcpy(&value, expected.data() + static_cast<size_t>(n * shape.cols + k) * sizeof value,
                    sizeof value);
        ASSERT_EQ(row[static_cast<size_t>(k)], bf16_to_float(float_to_bf16(value))) << shape.name << " " << n;
      }
    }
  }
}

TEST_P(QuantizedFolder, LeavesTheRestAsItWas) {
  const auto twin = open_folder(quantized_folder(GetParam().twin));
  ASSERT_TRUE(twin) << twin.error().message;
  const std::string table = "model.embed_tokens.weight";
  const auto format =
      model_.checkpoint->matrix_format(table, model_.config.vocab_size, model_.config.hidden_size);
  ASSERT_TRUE(format) << format.error().message;
  EXPECT_FALSE(format->has_value());
  const auto quantized =
      load_weights(*model_.checkpoint, model_.config, kExpanded, cpu::kernels_for(cpu::Isa::kBaseline));
  const auto expected =
      load_weights(*twin->checkpoint, twin->config, kExpanded, cpu::kernels_for(cpu::Isa::kBaseline));
  ASSERT_TRUE(quantized) << quantized.error().message;
  ASSERT_TRUE(expected) << expected.error().message;
  // The twin rounds the same values to bf16, so that whole models must agree.
  ASSERT_EQ(quantized->storage.size(), expected->storage.size());
  EXPECT_EQ(std::memcmp(quantized->storage.data(), expected->storage.data(), expected->storage.size()), 0);
}

TEST(QuantizedDamage, NamesTheFieldOfTheConfiguration) {
  const std::string file = "config.json";
  expect_errors({
      {"method", "awq_g64", setting("quant_method", "hqq"), {file, "quant_method", "\"hqq\"", "\"awq\""}},
      {"exl2", "awq_g64", setting("quant_method", "exl2"), {file, "\"exl2\"", "as GGUF, or in 16 bits"}},
      {"no method", "awq_g64", setting("quant_method", nullptr), {file, "quant_method", "a string"}},
      {"3 bits", "gptq4_sym_g128", setting("bits", 3), {file, "bits", "is 3; 4 or 8", "GGUF"}},
      {"bits as text", "gptq4_sym_g128", setting("bits", "4"), {file, "bits", "an integer"}},
      {"group 7", "gptq4_sym_g128", setting("group_size", 7), {file, "group_size", "is 7; 16, 32"}},
      {"group 0", "gptq4_sym_g128", setting("group_size", 0), {file, "group_size", "is 0; 16, 32"}},
      {"group as text", "awq_g64", setting("group_size", "64"), {file, "group_size", "an integer"}},
      {"sym", "gptq4_sym_g128", setting("sym", 1), {file, "sym", "true or false"}},
      {"layout",
       "gptq4_sym_g128",
       setting("checkpoint_format", "marlin"),
       {file, "checkpoint_format", "\"gptq_v2\""}},
      {"marlin",
       "gptq4_sym_g128",
       setting("is_marlin_format", true),
       {file, "checkpoint_format", "\"marlin\""}},
      {"AWQ's bits", "awq_g64", setting("bits", 8), {file, "bits", "is 8; 4"}},
      {"version", "awq_g64", setting("version", "gemv"), {file, "version", "\"gemv\"; \"gemm\""}},
      {"no zeros", "awq_g64", setting("zero_point", false), {file, "zero_point", "true was expected"}},
  });
}

TEST(QuantizedDamage, NamesTheTensorOfGptq) {
  const std::string file = "model.safetensors";
  const std::string idx = kModule + ".g_idx";
  expect_errors({
      {"truncated",
       "gptq4_sym_g128",
       [](const Copy& copy) { fs::resize_file(copy.weights(), fs::file_size(copy.weights()) - 1); },
       {file, "truncated"}},
      {"no qweight", "gptq4_sym_g128", without(".qweight"), {kModule + ".weight", "missing"}},
      {"no qzeros", "gptq4_sym_g128", without(".qzeros"), {kModule + ".qzeros", "missing"}},
      {"no scales", "gptq8_sym_g64", without(".scales"), {kModule + ".scales", "missing"}},
      {"no g_idx", "gptq4_asym_g32_act", without(".g_idx"), {idx, "missing"}},
      {"dtype", "gptq4_sym_g128", with_dtype(".qweight", "U32"), {file, kModule + ".qweight", "U32; I32"}},
      {"zeros' dtype",
       "gptq4_sym_g128",
       with_dtype(".qzeros", "F32"),
       {file, kModule + ".qzeros", "F32; I32"}},
      {"scales' dtype",
       "gptq4_sym_g128",
       with_dtype(".scales", "I16"),
       {file, kModule + ".scales", "I16; BF16, F16 or F32"}},
      {"shape",
       "gptq4_sym_g128",
       with_shape(".qweight", {128, 16}),
       {file, kModule + ".qweight", "[128, 16]", "[16, 128]"}},
      {"zeros' shape",
       "gptq8_asym_row",
       with_shape(".qzeros", {16, 1}),
       {file, kModule + ".qzeros", "[1, 16]"}},
      {"scales' shape",
       "gptq4_sym_g128",
       with_shape(".scales", {128}),
       {file, kModule + ".scales", "[1, 128]"}},
      {"3 bits",
       "gptq4_sym_g128",
       changed(".qweight",
               [](File::Tensor& t) {
                 t.shape = {12, 128};
                 t.bytes.resize(size_t{12} * 128 * 4);
               }),
       {file, kModule + ".qweight", "codes of 3 bits; 4 or 8"}},
      {"groups and columns",
       "gptq8_asym_row",
       changed(".scales",
               [](File::Tensor& t) {
                 t.shape = {3, 64};
                 t.bytes.resize(size_t{3} * 64 * 2);
               }),
       {kModule, "80 columns and 3 groups"}},
      {"g_idx too large",
       "gptq4_asym_g32_act",
       with_element(".g_idx", 5, 3),
       {file, idx, "holds 3 at [5]", "0 to 2"}},
      {"g_idx negative", "gptq4_sym_g128", with_element(".g_idx", 0, -1), {file, idx, "holds -1 at [0]"}},
      {"uneven groups",
       "gptq8_sym_g64",
       [](const Copy& copy) {
         copy.edit([](File& f) { f.tensors.at("model.layers.0.self_attn.q_proj.g_idx").set(0, int32_t{1}); });
       },
       {file, "q_proj.g_idx", "equal groups"}},
      {"NaN",
       "gptq4_sym_g128",
       with_element(".scales", 7, uint16_t{0x7e00}),
       {file, kModule + ".scales", "NaN", "[0, 7]"}},
      {"infinity",
       "gptq8_sym_g64",
       with_element(".scales", 64, uint16_t{0xfc00}),
       {file, kModule + ".scales", "infinite"}},
  });
}

TEST(QuantizedDamage, NamesTheTensorOfAwqAndBitsandbytes) {
  const std::string file = "model.safetensors";
  const float infinity = std::numeric_limits<float>::infinity();
  expect_errors({
      {"no qweight", "awq_g64", without(".qweight"), {kModule + ".weight", "missing"}},
      {"no qzeros", "awq_g64", without(".qzeros"), {kModule + ".qzeros", "missing"}},
      {"no scales", "awq_g64", without(".scales"), {kModule + ".scales", "missing"}},
      {"dtype", "awq_g64", with_dtype(".qweight", "F32"), {file, kModule + ".qweight", "F32; I32"}},
      {"shape", "awq_g64", with_shape(".qweight", {16, 64}), {file, kModule + ".qweight", "[64, 16]"}},
      {"zeros' shape", "awq_g64", with_shape(".qzeros", {16}), {file, kModule + ".qzeros", "[1, 16]"}},
      {"NaN",
       "awq_g64",
       with_element(".scales", 127, uint16_t{0x7c01}),
       {file, kModule + ".scales", "[0, 127]"}},
      {"no SCB", "bnb8", without(".SCB"), {kModule + ".SCB", "missing"}},
      {"no weight", "bnb8", without(".weight"), {kModule + ".weight", "missing"}},
      {"dtype", "bnb8", with_dtype(".weight", "U8"), {file, kModule + ".weight", "U8"}},
      {"SCB's dtype", "bnb8", with_dtype(".SCB", "I32"), {file, kModule + ".SCB", "I32; F32"}},
      {"shape", "bnb8", with_shape(".weight", {80, 64}), {file, kModule + ".weight", "[64, 80]"}},
      {"SCB's shape", "bnb8", with_shape(".SCB", {64, 1}), {file, kModule + ".SCB", "[64]"}},
      {"infinity", "bnb8", with_element(".SCB", 3, infinity), {file, kModule + ".SCB", "infinite", "[3]"}},
      {"layout", "bnb8", with_element(".weight_format", 0, uint8_t{2}), {file, "weight_format", "rows"}},
  });
}

// Settings say nothing that shapes do not.
TEST(QuantizedFolders, LoadByTheirShapes) {
  for (const auto& [fixture, field, value] : std::vector<std::tuple<const char*, const char*, json::value>>{
           {"gptq4_sym_g128", "bits", 8},
           {"gptq4_sym_g128", "bits", nullptr},
           {"gptq4_sym_g128", "group_size", 32},
           {"gptq8_asym_row", "group_size", 128},
           {"gptq8_asym_row", "group_size", nullptr},
           {"awq_g64", "group_size", 256},
           {"awq_g64", "bits", nullptr}}) {
    const Copy copy(fixture);
    copy.set(field, value);
    EXPECT_EQ(copy.error(), "") << fixture << ", " << field;
  }
}

TEST(QuantizedDamage, RefusesToStackOtherOrders) {
  const Copy copy("gptq4_asym_g32_act");
  copy.edit([](File& file) {
    // Swaps two groups' names: still even, but another order than that of the gate.
    File::Tensor& g_idx = file.tensors.at("model.layers.0.mlp.up_proj.g_idx");
    for (size_t k = 0; k < g_idx.bytes.size(); k += 4) {
      char& group = g_idx.bytes[k];
      if (group < 2) group = static_cast<char>(1 - group);
    }
  });
  const auto opened = open_folder(copy.weights().parent_path());
  ASSERT_TRUE(opened) << opened.error().message;
  const auto shapes = quantized_matrices(opened->config);
  const auto format = opened->checkpoint->matrix_format(shapes[4].name, shapes[4].rows, shapes[4].cols);
  ASSERT_TRUE(format) << format.error().message;
  const QuantizedStorage storage(**format, 2 * shapes[4].rows, shapes[4].cols);
  ASSERT_TRUE(opened->checkpoint->load_quantized(shapes[4].name, shapes[4].rows, storage.matrix(), 0));
  const auto status =
      opened->checkpoint->load_quantized(shapes[5].name, shapes[5].rows, storage.matrix(), shapes[4].rows);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("up_proj.g_idx"), std::string::npos) << status.error().message;
}

}  // namespace
}  // namespace qwen2
