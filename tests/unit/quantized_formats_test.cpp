// Folders of bitsandbytes in 4 bits, compressed-tensors, FP8, MLX and mixed GPTQ against twins with the same
// weights in float32; both are written by tests/tools/make_folder_fixtures.py.
#include <gtest/gtest.h>

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
  std::map<std::string, Format> exceptions = {};  // module, such as "mlp.down_proj" -> its format
};

// GoogleTest prints it in the tests' names.
void PrintTo(const Fixture& fixture, std::ostream* out) {
  *out << fixture.name;
}

const std::vector<Fixture>& fixtures() {
  static const std::vector<Fixture> kFixtures{
      {"bnb4_nf4_nested", "bnb4_nf4_nested_twin", {}},
      {"bnb4_fp4", "bnb4_fp4_twin", {}},
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
    const bool exact = matrices[i]->is_quantized();
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

// Programs that merge a LoRA into 16 bits leave the settings of its training behind.
TEST(Bitsandbytes4, LoadsPlainWeightsUnderItsSettings) {
  const Copy copy("bnb4_fp4");
  fs::copy_file(quantized_folder("bnb4_fp4_twin") / "model.safetensors", copy.weights(),
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(copy.error(), "");
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
      {"shape", "bnb4_fp4", shape("", {1, 2560}), {file, kUp, "[2560, 1]"}},
      {"blocks", "bnb4_fp4", shape(".absmax", {8, 10}), {file, kUp + ".absmax", "[80]"}},
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

}  // namespace
}  // namespace qwen2
