// Quantising: the solvers against slow versions of themselves, and whole models that are written, read back
// and run.
#include "quantize/quantize.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "backend/backend.h"
#include "base/memory.h"
#include "checkpoint/safetensors.h"
#include "paths.h"
#include "quantize/awq.h"
#include "quantize/calibration.h"
#include "quantize/gguf_writer.h"
#include "quantize/model_writer.h"
#include "quantize/packing.h"
#include "random_data.h"
#include "tensor/quantized_storage.h"

namespace qwen2::quantize {
namespace {

namespace fs = std::filesystem;
using test::normal;
using test::uniform;

const cpu::Kernels& kernels() {
  return cpu::kernels_for(cpu::detect_isa());
}

// An empty folder that goes with the test.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / fmt::format("qwen2_quantize_{}_{}", ::getpid(), count_++)) {
    fs::remove_all(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  static inline int count_ = 0;
  fs::path path_;
};

struct Model {
  std::unique_ptr<Checkpoint> checkpoint;
  Qwen2Config config;

  explicit Model(const fs::path& folder) {
    auto opened = open_checkpoint(folder.string());
    EXPECT_TRUE(opened) << opened.error().message;
    checkpoint = std::move(*opened);
    config = *parse_qwen2_config(checkpoint->config_json(), checkpoint->generation_config_json());
  }
};

std::vector<std::vector<TokenId>> random_tokens(const Qwen2Config& c, size_t sequences, int64_t longest) {
  std::vector<std::vector<TokenId>> tokens(sequences);
  for (auto& sequence : tokens) {
    sequence.resize(static_cast<size_t>(uniform(longest / 2, longest)));
    for (TokenId& token : sequence) token = static_cast<TokenId>(uniform(0, c.vocab_size - 1));
  }
  return tokens;
}

// The logits behind each prompt, one after the other.
std::vector<float> logits_of(const Checkpoint& checkpoint, const std::vector<std::vector<TokenId>>& prompts) {
  auto backend = create_cpu_backend(checkpoint, {}, {});
  EXPECT_TRUE(backend) << backend.error().message;
  std::vector<float> all;
  for (const auto& tokens : prompts) {
    std::vector<uint32_t> pages(tokens.size() / static_cast<size_t>((*backend)->page_tokens()) + 1);
    std::iota(pages.begin(), pages.end(), 0U);
    const Chunk chunk{tokens, 0, pages, true};
    const auto logits = (*backend)->forward(std::span(&chunk, 1));
    EXPECT_TRUE(logits) << logits.error().message;
    all.insert(all.end(), logits->row(0).begin(), logits->row(0).end());
  }
  return all;
}

// The float forward pass of the calibration against Transformers' goldens, through their logits.
TEST(LayerForward, MatchesTheBackend) {
  for (const char* name : {"hd64_tied", "gqa6_odd", "mha_deep", "hd128_untied"}) {
    const Model model(test::golden_folder() / name);
    const Qwen2Config& c = model.config;
    const auto sequences = random_tokens(c, 3, 90);
    auto forward = LayerForward::create(*model.checkpoint, c, kernels(), sequences);
    ASSERT_TRUE(forward) << forward.error().message;
    auto layer = FloatLayer::allocate(c);
    ASSERT_TRUE(layer);
    for (int64_t i = 0; i < c.layers; ++i) {
      ASSERT_TRUE(read_layer(*model.checkpoint, c, i, *layer));
      ASSERT_TRUE(forward->attend(*layer));
      ASSERT_TRUE(forward->add_attention(*layer));
      ASSERT_TRUE(forward->add_mlp(*layer));
    }
    std::vector<float> norm(static_cast<size_t>(c.hidden_size)), x(norm.size());
    ASSERT_TRUE(model.checkpoint->load_vector("model.norm.weight", c.hidden_size, norm.data()));
    std::vector<float> logits(static_cast<size_t>(c.vocab_size));
    int64_t end = 0;
    for (const auto& sequence : sequences) {
      end += static_cast<int64_t>(sequence.size());
      kernels().rms_norm(forward->hidden().data() + (end - 1) * c.hidden_size, norm.data(), c.rms_norm_eps,
                         c.hidden_size, x.data());
      ASSERT_TRUE(
          read_expanded(*model.checkpoint, c.tied_head ? "model.embed_tokens.weight" : "lm_head.weight",
                        c.vocab_size, c.hidden_size, [&](int64_t row, const float* w) {
                          logits[static_cast<size_t>(row)] = std::inner_product(x.begin(), x.end(), w, 0.0F);
                        }));
      EXPECT_LT(test::relative_error(logits_of(*model.checkpoint, {sequence}), logits), 2e-2) << name;
    }
  }
}

// The residual stream behind layer 0.
std::vector<float> behind(const Model& model, const FloatLayer& layer,
                          const std::vector<std::vector<TokenId>>& sequences) {
  auto forward = LayerForward::create(*model.checkpoint, model.config, kernels(), sequences);
  EXPECT_TRUE(forward && forward->attend(layer) && forward->add_attention(layer) && forward->add_mlp(layer));
  return {forward->hidden().begin(), forward->hidden().end()};
}

// Scales alone, without rounding to codes, leave a layer's function as it is, although norms are stored in
// bf16.
TEST(Awq, FoldingLeavesTheFloatFunction) {
  const Model model(test::golden_folder() / "mha_deep");
  const Qwen2Config& c = model.config;
  auto layer = FloatLayer::allocate(c);
  ASSERT_TRUE(layer && read_layer(*model.checkpoint, c, 0, *layer));
  const auto sequences = random_tokens(c, 2, 50);
  const auto before = behind(model, *layer, sequences);
  const auto random_scales = [](int64_t count) {
    auto scales = normal(static_cast<size_t>(count));
    for (float& scale : scales) scale = std::exp(scale);
    return scales;
  };
  auto scales = random_scales(c.hidden_size);
  fold_into_norm(layer->input_norm, scales, DType::kBF16);
  scale_columns(layer->qkv.as<float>(), c.qkv_size(), c.hidden_size, scales);
  scales = random_scales(c.hidden_size);
  fold_into_norm(layer->post_attention_norm, scales, DType::kBF16);
  scale_columns(layer->gate_up.as<float>(), 2 * c.intermediate_size, c.hidden_size, scales);
  scales = random_scales(c.q_size());
  const int64_t values = c.q_size() + c.kv_size();
  divide_rows(layer->qkv.as<float>() + values * c.hidden_size, c.hidden_size, scales);
  divide_rows(layer->qkv_bias.data() + values, 1, scales);
  scale_columns(layer->attention_output.as<float>(), c.hidden_size, c.q_size(), scales);
  scales = random_scales(c.intermediate_size);
  divide_rows(layer->gate_up.as<float>() + c.intermediate_size * c.hidden_size, c.hidden_size, scales);
  scale_columns(layer->down.as<float>(), c.hidden_size, c.intermediate_size, scales);
  for (const float value : layer->input_norm) EXPECT_EQ(value, bf16_to_float(float_to_bf16(value)));
  EXPECT_LT(test::relative_error(behind(model, *layer, sequences), before), 1e-5);
}

struct Case {
  const char* model;
  Method method;
  int bits;
  int64_t group;
  bool act_order;
  double bound;  // of the logits' relative error: random weights amplify every rounding
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << " method " << static_cast<int>(c.method) << " bits " << c.bits;
}

class QuantizeModel : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(Cases, QuantizeModel,
                         testing::Values(Case{"hd64_tied", Method::kRtn, 4, 64, false, 0.6},
                                         Case{"hd64_tied", Method::kRtn, 8, 64, false, 0.05},
                                         Case{"hd64_tied", Method::kGptq, 4, 64, false, 0.6},
                                         Case{"hd64_tied", Method::kGptq, 4, 32, true, 0.6},
                                         Case{"hd64_tied", Method::kGptq, 8, 64, true, 0.05},
                                         Case{"hd64_tied", Method::kAwq, 4, 64, false, 0.6},
                                         Case{"gqa6_odd", Method::kGptq, 4, 32, true, 0.6},
                                         Case{"gqa6_odd", Method::kAwq, 4, 16, false, 0.6},
                                         Case{"mha_deep", Method::kAwq, 4, 32, false, 0.6},
                                         Case{"mha_deep", Method::kGptq, 8, 32, false, 0.05},
                                         Case{"hd128_untied", Method::kGptq, 4, 32, false, 0.6},
                                         Case{"hd128_wide", Method::kRtn, 8, 32, false, 0.05}));

TEST_P(QuantizeModel, IsReadBackAndAnswersAlike) {
  const Case& c = GetParam();
  const Model model(test::golden_folder() / c.model);
  const Folder folder;
  std::vector<int64_t> progress;
  const QuantizeJob job{*model.checkpoint,
                        {c.method, c.bits, c.group, c.act_order},
                        random_tokens(model.config, 24, 60),
                        folder.path(),
                        {{"tokenizer.json", "{}"}},
                        [&](int64_t done, int64_t) { progress.push_back(done); }};
  const Status status = quantize_model(job);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_EQ(progress.size(), static_cast<size_t>(model.config.layers));
  EXPECT_TRUE(fs::exists(folder.path() / "tokenizer.json"));
  EXPECT_FALSE(fs::exists(folder.path() / "model.safetensors.tmp"));
  const Model quantized(folder.path());
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const auto format =
      quantized.checkpoint->matrix_format(name, model.config.hidden_size, model.config.intermediate_size);
  ASSERT_TRUE(format && *format);
  EXPECT_EQ((*format)->bits, c.bits);
  EXPECT_EQ((*format)->group, c.group);
  EXPECT_EQ((*format)->permuted, c.act_order);
  // Over several prompts together: the error of a single row of logits varies much.
  const auto prompts = random_tokens(model.config, 8, 80);
  EXPECT_LT(
      test::relative_error(logits_of(*quantized.checkpoint, prompts), logits_of(*model.checkpoint, prompts)),
      c.bound);
  // What is not quantised is there bit by bit.
  std::vector<float> before(static_cast<size_t>(model.config.hidden_size)), after(before.size());
  ASSERT_TRUE(model.checkpoint->load_vector("model.norm.weight", model.config.hidden_size, before.data()));
  ASSERT_TRUE(quantized.checkpoint->load_vector("model.norm.weight", model.config.hidden_size, after.data()));
  EXPECT_EQ(before, after);
}

// The codes that a layer was rounded to, and what a reader makes of the packed module.
TEST(Packing, ReadersSeeTheSameWeights) {
  const Model model(test::golden_folder() / "hd64_tied");
  const Qwen2Config& c = model.config;
  for (const auto& options :
       {QuantizeOptions{Method::kRtn, 4, 32}, QuantizeOptions{Method::kRtn, 8, 64},
        QuantizeOptions{Method::kGptq, 4, 64, true}, QuantizeOptions{Method::kAwq, 4, 32}}) {
    const Folder folder;
    const auto calibration = random_tokens(c, 16, 40);
    const Status status = quantize_model({*model.checkpoint, options, calibration, folder.path(), {}, {}});
    ASSERT_TRUE(status) << status.error().message;
    auto layer = FloatLayer::allocate(c);
    ASSERT_TRUE(layer && read_layer(*model.checkpoint, c, 0, *layer));
    auto forward = LayerForward::create(*model.checkpoint, c, kernels(), calibration);
    auto rounder = LayerRounder::create(c, kernels(), options, DType::kBF16);
    ASSERT_TRUE(forward && rounder);
    const auto rounded = rounder->round(*layer, &*forward);
    ASSERT_TRUE(rounded) << rounded.error().message;
    const Model written(folder.path());
    auto read = FloatLayer::allocate(c);
    ASSERT_TRUE(read && read_layer(*written.checkpoint, c, 0, *read));
    const auto same = [](const LargeBuffer& a, const LargeBuffer& b) {
      const size_t count = a.size() / sizeof(float);
      return std::equal(a.as<float>(), a.as<float>() + count, b.as<float>());
    };
    EXPECT_TRUE(same(layer->qkv, read->qkv));
    EXPECT_TRUE(same(layer->attention_output, read->attention_output));
    EXPECT_TRUE(same(layer->gate_up, read->gate_up));
    EXPECT_TRUE(same(layer->down, read->down));
    EXPECT_EQ(layer->input_norm, read->input_norm);
    EXPECT_EQ(layer->post_attention_norm, read->post_attention_norm);
  }
}

// Through the reader, which is held against files of an independent writer.
TEST(Gguf, HoldsTheRoundedWeightsAndTheTokenizer) {
  for (const int bits : {4, 8}) {
    const Model model(test::demo_model());
    const Qwen2Config& c = model.config;
    const Folder folder;
    fs::create_directories(folder.path());
    const fs::path path = folder.path() / "demo.gguf";
    const TokenizerTexts texts{*read_text_file(test::demo_model() / "tokenizer.json"),
                               *read_text_file(test::demo_model() / "tokenizer_config.json"),
                               {}};
    const GgufJob job{*model.checkpoint, bits, texts, path, {}};
    ASSERT_TRUE(write_gguf(job));
    EXPECT_FALSE(write_gguf(job));  // exists

    const Model written(path);
    EXPECT_EQ(written.config.rope_theta, c.rope_theta);
    EXPECT_EQ(written.config.vocab_size, c.vocab_size);
    EXPECT_EQ(written.config.tied_head, c.tied_head);
    EXPECT_EQ(written.config.eos_token_ids.front(), c.eos_token_ids.front());
    const std::string down = "model.layers.1.mlp.down_proj.weight";
    for (const auto& [name, rows, cols, own_bits] :
         {std::tuple(down, c.hidden_size, c.intermediate_size, bits),
          std::tuple(std::string("model.embed_tokens.weight"), c.vocab_size, c.hidden_size, 8)}) {
      const auto read = [&, width = cols, height = rows, tensor = name](const Checkpoint& checkpoint) {
        std::vector<float> values(static_cast<size_t>(height * width));
        EXPECT_TRUE(read_expanded(checkpoint, tensor, height, width, [&](int64_t row, const float* source) {
          std::copy_n(source, width, values.begin() + row * width);
        }));
        return values;
      };
      const auto before = read(*model.checkpoint);
      const GroupedWeights rounded =
          round_symmetric(kernels(), before.data(), rows, cols, own_bits, kGgufGroup);
      std::vector<float> expected(before.size());
      for (int64_t row = 0; row < rows; ++row) rounded.expand_row(row, expected.data() + row * cols);
      EXPECT_EQ(read(*written.checkpoint), expected) << name << " " << bits;
    }
    const auto own = gguf_tokenizer(path);
    ASSERT_TRUE(own) << own.error().message;
    const auto tokenizer = Tokenizer::parse(own->tokenizer_json);
    const auto before = Tokenizer::load(test::demo_model());
    ASSERT_TRUE(tokenizer && before);
    const std::string text = "<|im_start|>user\nWhat's a 'quay' \u00e9?<|im_end|>\n";
    EXPECT_EQ(*tokenizer->encode(text), *before->encode(text));
    EXPECT_NE(gguf_tokenizer_config(path)->find("<|im_start|>"), std::string::npos);

    const Status refused = write_gguf({*written.checkpoint, bits, {}, folder.path() / "again.gguf", {}});
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("quantised to"), std::string::npos);
  }
}

void expect_refused(const QuantizeJob& job, const std::string& part) {
  const Status status = quantize_model(job);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
}

TEST(QuantizeErrors, NameWhatIsWrong) {
  const Model model(test::golden_folder() / "hd64_tied");
  const Folder folder;
  const auto with = [&](const QuantizeOptions& options) {
    return QuantizeJob{*model.checkpoint, options, {}, folder.path(), {}, {}};
  };
  expect_refused(with({Method::kRtn, 5, 64}), "--bits is 5");
  expect_refused(with({Method::kAwq, 8, 64}), "--method awq");
  expect_refused(with({Method::kRtn, 4, 48}), "--group-size is 48");
  expect_refused(with({Method::kRtn, 4, 128}), "192 columns of 'model.layers.0.mlp.down_proj.weight'");
  expect_refused(with({Method::kRtn, 4, 64, true}), "--act-order");
  expect_refused(with({Method::kGptq, 4, 64, false, 0}), "--damping");
  expect_refused(with({Method::kGptq, 4, 64}), "no tokens");
  EXPECT_FALSE(fs::exists(folder.path()));
  ASSERT_TRUE(quantize_model(with({Method::kRtn, 4, 64})));
  expect_refused(with({Method::kRtn, 4, 64}), "is not empty");
  const Model quantized(folder.path());
  const Folder other;
  expect_refused({*quantized.checkpoint, {Method::kRtn, 8, 64}, {}, other.path(), {}, {}},
                 "quantised to 4 bits already");
}

TEST(TensorFile, ChecksWhatIsWritten) {
  const Folder folder;
  fs::create_directories(folder.path());
  const fs::path path = folder.path() / "a.safetensors";
  const std::vector<TensorSpec> specs{{"a", "I32", {2, 3}}, {"b", "F16", {5}}};
  const std::vector<std::byte> bytes(24);
  {
    const auto writer = create_safetensors(path, specs);
    ASSERT_TRUE(writer) << writer.error().message;
    EXPECT_TRUE((*writer)->write("a", 0, bytes));
    EXPECT_FALSE((*writer)->write("a", 1, bytes));
    EXPECT_FALSE((*writer)->write("c", 0, bytes));
    EXPECT_FALSE((*writer)->finish());  // "b" is missing
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  const auto writer = create_safetensors(path, specs);
  ASSERT_TRUE(writer);
  EXPECT_TRUE((*writer)->write("b", 0, std::span(bytes).first(10)));
  EXPECT_TRUE((*writer)->write("a", 0, bytes));
  ASSERT_TRUE((*writer)->finish());
  const auto mapped = MappedFile::open(path);
  ASSERT_TRUE(mapped);
  const auto header = parse_safetensors(mapped->bytes());
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->tensors.at("b").shape, std::vector<int64_t>{5});
  EXPECT_FALSE(create_safetensors(folder.path() / "none/a.safetensors", specs));
}

TEST(Calibration, ReadsTextAndConversations) {
  const auto tokenizer = Tokenizer::load(test::demo_model());
  ASSERT_TRUE(tokenizer);
  const ChatTemplate chat;
  const auto shipped = test::source_folder() / "models/calibration/chats.jsonl";
  const auto all = read_calibration(shipped, *tokenizer, chat, {1000, 50});
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_GT(all->size(), 200U);
  for (const auto& sequence : *all) EXPECT_LE(sequence.size(), 50U);
  const auto some = read_calibration(shipped, *tokenizer, chat, {7, 50});
  ASSERT_TRUE(some);
  EXPECT_EQ(some->size(), 7U);
  const Folder folder;
  fs::create_directories(folder.path());
  ASSERT_TRUE(write_file(folder.path() / "a.txt", "a river is a large natural stream of water"));
  const auto pieces = read_calibration(folder.path() / "a.txt", *tokenizer, chat, {100, 4});
  ASSERT_TRUE(pieces);
  EXPECT_GT(pieces->size(), 1U);
  ASSERT_TRUE(write_file(folder.path() / "b.jsonl", "\n[{\"role\":\"user\"}]\n"));
  const auto broken = read_calibration(folder.path() / "b.jsonl", *tokenizer, chat, {100, 4});
  ASSERT_FALSE(broken);
  EXPECT_NE(broken.error().message.find("line 2"), std::string::npos) << broken.error().message;
}

}  // namespace
}  // namespace qwen2::quantize
