// Folders of bitsandbytes in 4 bits, compressed-tensors, FP8, MLX and mixed GPTQ against twins with the same
// weights in float32; both are written by tests/tools/make_folder_fixtures.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "model/weights.h"
#include "quantized_folder.h"

namespace qwen2 {
namespace {

using namespace test;
using enum OffsetForm;

using Format = std::optional<QuantizedFormat>;  // nothing: expanded or plain; a group of 0: whole rows

struct Fixture {
  std::string name;
  std::string twin;
  Format format;
  // Module, such as "mlp.down_proj" -> its format. NOLINTNEXTLINE(readability-redundant-member-init): may be left out
  std::map<std::string, Format> exceptions = {};
};

// GoogleTest prints it in the tests' names.
void PrintTo(const Fixture& fixture, std::ostream* out) {
  *out << fixture.name;
}

Format of(int bits, int64_t group, OffsetForm offset, bool permuted = false) {
  return QuantizedFormat{bits, group, ScaleForm::kF32, offset, permuted};
}

const std::vector<Fixture>& fixtures() {
  static const std::vector<Fixture> kFixtures{
      {"bnb4_nf4_nested", "bnb4_nf4_nested_twin", {}},
      {"bnb4_fp4", "bnb4_fp4_twin", {}},
      {"ct4_sym_g16", "ct4_sym_g16_twin", of(4, 16, kNone)},
      {"ct4_sym_g16_2024", "ct4_sym_g16_twin", of(4, 16, kNone)},
      {"ct4_asym_g16_act", "ct4_asym_g16_act_twin", of(4, 16, kZero, true)},
      {"ct4_asym_g32_2024", "ct4_asym_g32_2024_twin", of(4, 32, kZero)},
      {"ct8_sym_row", "ct8_sym_row_twin", of(8, 0, kNone), {{"down_proj", {}}}},
      {"ct_int8", "ct8_sym_row_twin", of(8, 0, kNone), {{"down_proj", {}}}},
      {"ct8_asym_g16", "ct8_asym_g16_twin", of(8, 16, kZero), {{"down_proj", {}}}},
      {"fp8_tensor", "fp8_tensor_twin", {}},
      {"ct_fp8_tensor", "fp8_tensor_twin", {}},
      {"ct_fp8_row", "ct_fp8_row_twin", {}},
      {"fp8_block", "fp8_block_twin", {}},
      {"mlx4_g32", "mlx4_g32_twin", of(4, 32, kMinimum), {{"down_proj", {}}, {"v_proj", {}}}},
      {"mlx_mixed", "mlx_mixed_twin", {}},
      {"gptq_dynamic",
       "gptq_dynamic_twin",
       of(4, 16, kZero),
       {{"down_proj", of(8, 256, kZero)}, {"v_proj", {}}}},
  };
  return kFixtures;
}

Format expected_format(const Fixture& fixture, const Shape& shape) {
  Format format = fixture.format;
  for (const auto& [module, own] : fixture.exceptions) {
    if (shape.name.find(module) != std::string::npos) format = own;
  }
  if (format && format->group == 0) format->group = shape.cols;
  return format;
}

std::vector<float> floats_of(const File::Tensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

Result<std::vector<float>> expanded(const Checkpoint& checkpoint, const Shape& shape) {
  std::vector<float> values(static_cast<size_t>(shape.rows * shape.cols));
  QWEN2_CHECK(read_expanded(checkpoint, shape.name, shape.rows, shape.cols, [&](int64_t row, const float* v) {
    std::copy_n(v, shape.cols, values.begin() + row * shape.cols);
  }));
  return values;
}

class FolderFormats : public testing::TestWithParam<Fixture> {
 protected:
  void SetUp() override {
    auto opened = open_folder(quantized_folder(GetParam().name));
    ASSERT_TRUE(opened) << opened.error().message;
    model_ = std::move(*opened);
  }

  [[nodiscard]] std::vector<float> twin(const std::string& name) const {
    return floats_of(twin_.tensors.at(name));
  }

  Opened model_;
  File twin_{quantized_folder(GetParam().twin) / "model.safetensors"};
};

INSTANTIATE_TEST_SUITE_P(Fixtures, FolderFormats, testing::ValuesIn(fixtures()),
                         [](const auto& param) { return param.param.name; });

TEST_P(FolderFormats, HasTheTwinsValues) {
  for (const Shape& shape : quantized_matrices(model_.config)) {
    SCOPED_TRACE(shape.name);
    EXPECT_TRUE(model_.checkpoint->has(shape.name));
    const auto format = model_.checkpoint->matrix_format(shape.name, shape.rows, shape.cols);
    ASSERT_TRUE(format) << format.error().message;
    EXPECT_EQ(*format, expected_format(GetParam(), shape));
    const auto values = expanded(*model_.checkpoint, shape);
    ASSERT_TRUE(values) << values.error().message;
    EXPECT_EQ(*values, twin(shape.name));
  }
}

const WeightPart& part_of(const WeightMatrix& matrix, int64_t row) {
  return *std::find_if(matrix.parts.rbegin(), matrix.parts.rend(),
                       [&](const WeightPart& part) { return part.first_row <= row; });
}

// What is quantised keeps its values, the rest is rounded to bf16; also where rows share a matrix whose parts
// end inside of a block of 64 rows.
TEST_P(FolderFormats, LoadsAsItIsStored) {
  const auto weights =
      load_weights(*model_.checkpoint, model_.config, {}, cpu::kernels_for(cpu::Isa::kBaseline));
  ASSERT_TRUE(weights) << weights.error().message;
  const LayerWeights& layer = weights->layers[0];
  const std::vector<const WeightMatrix*> matrices{
      &layer.qkv,     &layer.qkv,     &layer.qkv, &layer.attention_output,
      &layer.gate_up, &layer.gate_up, &layer.down};
  const auto shapes = quantized_matrices(model_.config);
  int64_t first = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(shapes[i].name);
    if (i > 0) first = matrices[i] == matrices[i - 1] ? first + shapes[i - 1].rows : 0;
    const bool exact = part_of(*matrices[i], first).is_quantized;
    const std::vector<float> expected = twin(shapes[i].name);
    std::vector<float> row(static_cast<size_t>(shapes[i].cols));
    for (int64_t n = 0; n < shapes[i].rows; ++n) {
      matrices[i]->get_row(first + n, row.data());
      for (size_t k = 0; k < row.size(); ++k) {
        const float value = expected[static_cast<size_t>(n) * row.size() + k];
        ASSERT_EQ(row[k], exact ? value : bf16_to_float(float_to_bf16(value))) << n << ", " << k;
      }
    }
  }
}

TEST_P(FolderFormats, IsItsTwinIn16Bits) {
  const auto other = open_folder(quantized_folder(GetParam().twin));
  ASSERT_TRUE(other) << other.error().message;
  const Precision bf16{.bits = 16, .head_bits = 16};
  const auto& kernels = cpu::kernels_for(cpu::Isa::kBaseline);
  const auto own = load_weights(*model_.checkpoint, model_.config, bf16, kernels);
  const auto expected = load_weights(*other->checkpoint, other->config, bf16, kernels);
  ASSERT_TRUE(own) << own.error().message;
  ASSERT_TRUE(expected) << expected.error().message;
  ASSERT_EQ(own->storage.size(), expected->storage.size());
  EXPECT_EQ(std::memcmp(own->storage.data(), expected->storage.data(), expected->storage.size()), 0);
}

// What is expanded counts as 16 bits for the quantiser and for --precision.
TEST(ExpandedFolder, IsRoundedOnLoad) {
  const auto model = open_folder(quantized_folder("bnb4_nf4_nested"));
  ASSERT_TRUE(model) << model.error().message;
  const auto weights = load_weights(*model->checkpoint, model->config, {.bits = 4, .head_bits = 8},
                                    cpu::kernels_for(cpu::Isa::kBaseline));
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_TRUE(weights->layers[0].gate_up.is_quantized());
}

// The values of every matrix of `folder` are those of `twin`.
void expect_twin(const fs::path& folder, const std::string& twin) {
  const auto model = open_folder(folder);
  ASSERT_TRUE(model) << model.error().message;
  const File expected(quantized_folder(twin) / "model.safetensors");
  for (const Shape& shape : quantized_matrices(model->config)) {
    const auto values = expanded(*model->checkpoint, shape);
    ASSERT_TRUE(values) << values.error().message;
    EXPECT_EQ(*values, floats_of(expected.tensors.at(shape.name))) << shape.name;
  }
}

// Programs that merge a LoRA into 16 bits leave the settings of its training behind.
TEST(Bitsandbytes4, LoadsPlainWeightsUnderItsSettings) {
  const Copy copy("bnb4_fp4");
  fs::copy_file(quantized_folder("bnb4_fp4_twin") / "model.safetensors", copy.weights(),
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(copy.error(), "");
}

TEST(Bitsandbytes4, ReadsBytesOfAnotherType) {
  const Copy copy("bnb4_nf4_nested");
  copy.edit([](File& file) {
    File::Tensor& weight = file.tensors.at("model.layers.0.mlp.up_proj.weight");
    weight.dtype = "BF16";
    weight.shape[0] /= 2;
  });
  expect_twin(copy.weights().parent_path(), "bnb4_nf4_nested_twin");
}

const std::string kUp = "model.layers.0.mlp.up_proj.weight";

// Changes a tensor of the module `kUp`, by its whole suffix.
std::function<void(const Copy&)> edited(const std::string& suffix,
                                        const std::function<void(File::Tensor&)>& change) {
  return [=](const Copy& copy) { copy.edit([&](File& file) { change(file.tensors.at(kUp + suffix)); }); };
}

std::function<void(const Copy&)> dropped(const std::string& suffix) {
  return [=](const Copy& copy) { copy.edit([&](File& file) { file.tensors.erase(kUp + suffix); }); };
}

template <class T>
std::function<void(const Copy&)> element(const std::string& suffix, size_t index, T value) {
  return edited(suffix, [=](File::Tensor& tensor) { tensor.set(index, value); });
}

std::function<void(const Copy&)> shape(const std::string& suffix, const std::vector<int64_t>& dimensions) {
  return edited(suffix, [=](File::Tensor& tensor) { tensor.shape = dimensions; });
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Bitsandbytes4, NamesTheTensor) {
  const std::string file = "model.safetensors";
  const std::string nf4 = ".quant_state.bitsandbytes__nf4";
  const auto state = [&](const std::string& from, const std::string& to) {
    return edited(nf4, [=](File::Tensor& tensor) {
      const size_t at = tensor.bytes.find(from);
      ASSERT_NE(at, std::string::npos);
      tensor.bytes.replace(at, from.size(), to);
      tensor.shape = {static_cast<int64_t>(tensor.bytes.size())};
    });
  };
  expect_errors({
      {"no state", "bnb4_nf4_nested", dropped(nf4), {kUp + nf4, "missing"}},
      {"no map", "bnb4_fp4", dropped(".quant_map"), {kUp + ".quant_map", "missing"}},
      {"no absmax", "bnb4_fp4", dropped(".absmax"), {kUp + ".absmax", "missing"}},
      {"no weight", "bnb4_fp4", dropped(""), {kUp, "missing"}},
      {"no outer", "bnb4_nf4_nested", dropped(".nested_absmax"), {kUp + ".nested_absmax", "missing"}},
      {"no table", "bnb4_nf4_nested", dropped(".nested_quant_map"), {kUp + ".nested_quant_map", "missing"}},
      {"shape", "bnb4_fp4", shape("", {1, 768}), {file, kUp, "[768, 1]"}},
      {"blocks", "bnb4_fp4", shape(".absmax", {4, 6}), {file, kUp + ".absmax", "[24]"}},
      {"state's shape", "bnb4_nf4_nested", state("[80, 64]", "[64, 80]"), {file, "'shape'", "[80, 64]"}},
      {"block of 0", "bnb4_nf4_nested", state(": 64,", ": 0,"), {file, "'blocksize'", "from 1"}},
      {"other block", "bnb4_nf4_nested", state(": 64,", ": 128,"), {file, kUp + ".absmax", "[40]"}},
      {"nested block", "bnb4_nf4_nested", state(": 16,", ": 2,"), {file, "nested_absmax", "[40]"}},
      {"no nested block", "bnb4_nf4_nested", state("nested_blocksize", "x"), {file, "nested_blocksize"}},
      {"no JSON", "bnb4_nf4_nested", state("{", "["), {file, kUp, "JSON"}},
      {"map", "bnb4_fp4", element(".quant_map", 3, kNan), {file, kUp + ".quant_map", "NaN", "[3]"}},
      {"absmax", "bnb4_fp4", element(".absmax", 7, kInfinity), {file, kUp + ".absmax", "infinite", "[7]"}},
      {"outer", "bnb4_nf4_nested", element(".nested_absmax", 1, kNan), {kUp + ".nested_absmax", "[1]"}},
      {"table",
       "bnb4_nf4_nested",
       element(".nested_quant_map", 255, kInfinity),
       {".nested_quant_map", "[255]"}},
  });
}

std::function<void(const Copy&)> dtype(const std::string& suffix, const std::string& name) {
  return edited(suffix, [=](File::Tensor& tensor) { tensor.dtype = name; });
}

TEST(CompressedTensors, NamesTheTensor) {
  const std::string file = "model.safetensors";
  const std::string packed = kUp + "_packed";
  const std::string scale = kUp + "_scale";
  const std::string zero = kUp + "_zero_point";
  expect_errors({
      {"no scale", "ct4_sym_g16", dropped("_scale"), {scale, "missing"}},
      {"no codes", "ct4_sym_g16", dropped("_packed"), {kUp, "missing"}},
      {"3 bits", "ct4_sym_g16", shape("_packed", {96, 2}), {file, packed, "[96, 2]", "[48, 4] for 4 bits"}},
      {"codes' dtype", "ct4_sym_g16", dtype("_packed", "U32"), {file, packed, "U32", "I32"}},
      {"shape", "ct4_sym_g16", element("_shape", 1, int64_t{64}), {file, kUp + "_shape", "[48, 64]"}},
      {"shape's dtype", "ct4_sym_g16", dtype("_shape", "U64"), {file, kUp + "_shape", "U64; I64"}},
      {"rows of scales", "ct4_sym_g16", shape("_scale", {2, 48}), {file, scale, "[48, 48]"}},
      {"one scale", "ct4_sym_g16", shape("_scale", {96}), {file, scale, "[96]"}},
      {"infinity",
       "ct4_sym_g16",
       element("_scale", 3, uint16_t{0x7f80}),
       {file, scale, "infinite", "[1, 1]"}},
      {"NaN", "ct_int8", element("_scale", 5, uint16_t{0xffff}), {file, scale, "NaN", "[5, 0]"}},
      {"zeros' shape", "ct8_asym_g16", shape("_zero_point", {24, 1}), {file, zero, "[12, 2]"}},
      {"zeros' dtype", "ct8_asym_g16", dtype("_zero_point", "U32"), {file, zero}},
      {"no zeros", "ct8_asym_g16", dropped("_zero_point"), {zero, "missing"}},
      {"int8's shape", "ct_int8", shape("", {32, 48}), {file, kUp, "[48, 32]"}},
      {"order", "ct4_asym_g16_act", element("_g_idx", 2, 4), {file, kUp + "_g_idx", "holds 4 at [2]"}},
      {"order's shape", "ct4_asym_g16_act", shape("_g_idx", {8, 8}), {file, kUp + "_g_idx", "[64]"}},
  });
}

TEST(CompressedTensors, NamesTheField) {
  const std::string file = "config.json";
  const json::value sparse = {{"format", "sparse-24-bitmask"}};
  const json::value transform = {{"config_groups", {{"u", nullptr}}}};
  expect_errors({
      {"layout", "ct8_sym_row", setting("format", "marlin-24"), {file, "format", "\"marlin-24\""}},
      {"sparse", "ct8_sym_row", setting("sparsity_config", sparse), {file, "sparsity_config.format"}},
      {"rotated", "ct8_sym_row", setting("transform_config", transform), {file, "transform_config"}},
      {"groups", "ct8_sym_row", setting("config_groups", 1), {file, "config_groups", "an object"}},
  });
}

// Zeros that symmetric modules of 2024 have beside them say nothing; others count.
TEST(CompressedTensors, KeepsZerosOfSymmetricModules) {
  const Copy copy("ct4_sym_g16_2024");
  copy.edit([](File& file) { file.tensors.at(kUp + "_zero_point").set(0, int8_t{-1}); });
  const auto model = open_folder(copy.weights().parent_path());
  ASSERT_TRUE(model) << model.error().message;
  const Shape up = quantized_matrices(model->config)[5];
  const auto format = model->checkpoint->matrix_format(up.name, up.rows, up.cols);
  ASSERT_TRUE(format) << format.error().message;
  EXPECT_EQ(*format, of(4, 16, kZero));
}

TEST(Mlx, KeepsTheEmbeddingIn4Bits) {
  const auto model = open_folder(quantized_folder("mlx4_g32"));
  ASSERT_TRUE(model) << model.error().message;
  const File twin(quantized_folder("mlx4_g32_twin") / "model.safetensors");
  const Shape table{std::string(kEmbeddingName), model->config.vocab_size, model->config.hidden_size};
  const auto storage = load_one(*model->checkpoint, table);
  ASSERT_TRUE(storage) << storage.error().message;
  EXPECT_EQ(Format(storage->matrix().format), of(4, 32, kMinimum));
  expect_rows(storage->matrix(), 0, table.rows, twin.tensors.at(table.name).bytes);
}

TEST(Mlx, NamesTheTensorAndTheField) {
  const std::string file = "model.safetensors";
  const std::string path = "model.layers.0.mlp.up_proj";
  const auto edit = [&](const std::string& suffix,
                        const std::function<void(File&, const std::string&)>& change) {
    return [=](const Copy& copy) { copy.edit([&](File& f) { change(f, path + suffix); }); };
  };
  const auto drop = [&](const std::string& suffix) {
    return edit(suffix, [](File& f, const std::string& name) { f.tensors.erase(name); });
  };
  const auto set = [&](const std::string& suffix, size_t index, uint16_t bits) {
    return edit(suffix, [=](File& f, const std::string& name) { f.tensors.at(name).set(index, bits); });
  };
  const auto reshape = [&](const std::string& suffix, const std::vector<int64_t>& dimensions) {
    return edit(suffix, [=](File& f, const std::string& name) { f.tensors.at(name).shape = dimensions; });
  };
  const auto mode = [](const Copy& copy) { copy.set("mode", "mxfp4", "quantization"); };
  expect_errors({
      {"no scales", "mlx4_g32", drop(".scales"), {path + ".scales", "missing"}},
      {"no biases", "mlx_mixed", drop(".biases"), {path + ".biases", "missing"}},
      {"7 bits", "mlx_mixed", reshape(".weight", {80, 12}), {file, path + ".weight", "[80, 12]"}},
      {"scales", "mlx4_g32", reshape(".scales", {32, 2}), {file, path + ".scales", "[64, 2]"}},
      {"biases", "mlx4_g32", reshape(".biases", {64}), {file, path + ".biases", "[64, 1]"}},
      {"infinity", "mlx4_g32", set(".scales", 9, 0x7f80), {file, path + ".scales", "infinite", "[9, 0]"}},
      {"NaN", "mlx4_g32", set(".biases", 63, 0x7fc0), {file, path + ".biases", "NaN", "[63, 0]"}},
      {"fp16", "mlx_mixed", set(".biases", 3, 0x7c00), {file, path + ".biases", "infinite", "[1, 1]"}},
      {"mode", "mlx4_g32", mode, {"config.json", "quantization.mode", "mxfp4", "convert"}},
  });
}

TEST(Fp8, NamesTheTensor) {
  const std::string file = "model.safetensors";
  const std::string scale = kUp + "_scale";
  const std::string blocks = kUp + "_scale_inv";
  expect_errors({
      {"no scale", "fp8_tensor", dropped("_scale"), {scale, "missing"}},
      {"no blocks", "fp8_block", dropped("_scale_inv"), {scale, "missing"}},
      {"blocks", "fp8_block", shape("_scale_inv", {2, 3}), {file, blocks, "[3, 2]"}},
      {"block size", "fp8_block", setting("weight_block_size", {20, 20}), {file, ".weight_scale_inv"}},
      {"no block", "fp8_block", setting("weight_block_size", {0, 20}), {"config.json", "weight_block_size"}},
      {"rows", "ct_fp8_row", shape("_scale", {1, 48}), {file, scale, "[1, 48]"}},
      {"shape", "fp8_tensor", shape("", {32, 48}), {file, kUp, "[48, 32]"}},
      {"E5M2", "fp8_tensor", dtype("", "F8_E5M2"), {file, kUp, "F8_E5M2; F8_E4M3"}},
      {"NaN", "fp8_tensor", element("", 37, uint8_t{0xff}), {file, kUp, "NaN in row 1"}},
      {"NaN in blocks", "fp8_block", element("", 1535, uint8_t{0x7f}), {file, kUp, "NaN in row 47"}},
      {"NaN scale", "fp8_tensor", element("_scale", 0, kNan), {file, scale, "NaN", "[0]"}},
      {"infinity", "fp8_block", element("_scale_inv", 3, kInfinity), {file, blocks, "infinite", "[1, 1]"}},
  });
}

TEST(AutoRound, PacksAsItsSettingsSay) {
  struct Case {
    const char* fixture;
    const char* twin;
    const char* field;
    const char* packing;
    bool sym;
  };
  for (const Case& c : std::vector<Case>{
           {"awq_g64", "awq_g64_twin", "packing_format", "auto_round:auto_awq", false},
           {"awq_g128", "gptq4_sym_g128_twin", "packing_format", "auto_round:awq", true},
           {"gptq4_v2_asym_g64", "awq_g64_twin", "packing_format", "auto_round", false},
           {"gptq4_v2_asym_g64", "awq_g64_twin", "packing_format", "auto_round:gptqmodel", false},
           {"gptq4_v2_asym_g64", "awq_g64_twin", "model_seqlen", "", false},
           {"gptq8_asym_row", "gptq8_asym_row_twin", "packing_format", "auto_round:auto_gptq", false},
           {"gptq4_sym_g128", "gptq4_sym_g128_twin", "packing_format", "auto_round:auto_gptq", true},
           {"gptq4_sym_g128", "gptq4_sym_g128_twin", "packing_format", "auto_round", true},
           {"gptq8_sym_g64", "gptq8_sym_g64_twin", "backend", "auto_round:exllamav2", true},
       }) {
    for (const char* method : {"auto-round", "intel/auto-round"}) {
      SCOPED_TRACE(std::string(c.fixture) + " as " + c.packing);
      const Copy copy(c.fixture);
      copy.set("quant_method", method);
      copy.set("checkpoint_format", nullptr);
      copy.set("version", nullptr);
      copy.set("sym", c.sym);
      copy.set(c.field, c.packing);
      expect_twin(copy.weights().parent_path(), c.twin);
    }
  }
}

TEST(AutoRound, RefusesAnUnknownPacking) {
  const Copy copy("gptq4_v2_asym_g64");
  copy.set("quant_method", "auto-round");
  copy.set("packing_format", "auto_round:marlin");
  const std::string error = copy.error();
  EXPECT_NE(error.find("'quantization_config.packing_format' is \"auto_round:marlin\""), std::string::npos)
      << error;
}

// Moves the tensors of `copy` into two files of these names, by turns.
void split(const Copy& copy, const std::string& first, const std::string& second) {
  File one(copy.weights());
  File other = one;
  bool to_first = true;
  for (const auto& [name, tensor] : File(one).tensors) {
    (to_first ? other : one).tensors.erase(name);
    to_first = !to_first;
  }
  fs::remove(copy.weights());
  one.write(copy.weights().parent_path() / first);
  other.write(copy.weights().parent_path() / second);
}

TEST(FolderFiles, LoadUnderAnyName) {
  const Copy copy("ct4_sym_g16");
  fs::rename(copy.weights(), copy.weights().parent_path() / "my-model-W4A16.safetensors");
  expect_twin(copy.weights().parent_path(), "ct4_sym_g16_twin");
}

TEST(FolderFiles, LoadTogetherWithoutAnIndex) {
  const Copy copy("ct4_sym_g16");
  split(copy, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
  expect_twin(copy.weights().parent_path(), "ct4_sym_g16_twin");
}

TEST(FolderFiles, NameATensorThatTwoHave) {
  const Copy copy("ct4_sym_g16");
  const fs::path folder = copy.weights().parent_path();
  fs::copy_file(copy.weights(), folder / "a.safetensors");
  fs::rename(copy.weights(), folder / "b.safetensors");
  const std::string error = copy.error();
  for (const char* part : {"a.safetensors", "b.safetensors", "model.embed_tokens.weight", "no index"})
    EXPECT_NE(error.find(part), std::string::npos) << error;
}

TEST(FolderFiles, LoadByAnIndexOfAnyName) {
  const Copy copy("ct4_sym_g16");
  const fs::path folder = copy.weights().parent_path();
  split(copy, "x-1.safetensors", "x-2.safetensors");
  fs::copy_file(folder / "x-1.safetensors", folder / "unused.safetensors");
  json::object map;
  for (const char* file : {"x-1.safetensors", "x-2.safetensors"}) {
    for (const auto& [name, tensor] : File(folder / file).tensors) map[name] = file;
  }
  const std::string index = json::serialize(json::object{{"weight_map", map}});
  std::ofstream(folder / "x.safetensors.index.json") << index;
  expect_twin(folder, "ct4_sym_g16_twin");
  std::ofstream(folder / "y.safetensors.index.json") << index;
  EXPECT_NE(copy.error().find("x.safetensors.index.json, y.safetensors.index.json"), std::string::npos);
}

TEST(FolderFiles, SettingsOfTheirOwnFileAreChecked) {
  const Copy copy("gptq_dynamic");
  const fs::path file = copy.weights().parent_path() / "quantize_config.json";
  std::ofstream(file) << R"({"bits": 2, "group_size": 16})";
  const std::string error = copy.error();
  for (const char* part : {"quantize_config.json", "'bits' is 2", "GGUF"})
    EXPECT_NE(error.find(part), std::string::npos) << error;
}

}  // namespace
}  // namespace qwen2
