// The GGUF reader against fixtures of an independent writer, tests/tools/make_gguf_fixtures.py, and their
// twins: Hugging Face folders with the same weights in float32.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <limits>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_metadata.h"
#include "gguf_bytes.h"
#include "model/qwen2_config.h"
#include "model/weights.h"
#include "tensor/quantized_storage.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {
namespace {

// Everything in bf16, whatever the checkpoint has.
constexpr Precision kExpanded{.bits = 16, .head_bits = 16};

namespace fs = std::filesystem;
using test::Bytes;
using test::bytes_of;
using test::counted;
using test::expect_error;
using test::message_of;
using test::read;
using test::tied;

TEST(Gguf, ReadsEveryTypeOfMetadata) {
  const Bytes bytes = tied();
  const auto file = bytes.parse();
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->alignment, 64U);
  EXPECT_EQ(**file->integer("test.u8"), 200);
  EXPECT_EQ(**file->integer("test.i8"), -100);
  EXPECT_EQ(**file->integer("test.u16"), 60000);
  EXPECT_EQ(**file->integer("test.i16"), -30000);
  EXPECT_EQ(**file->integer("test.i32"), -2000000000);
  EXPECT_EQ(std::get<uint64_t>(*file->find("test.u64")), UINT64_MAX);
  EXPECT_EQ(**file->integer("test.i64"), INT64_MIN);
  EXPECT_EQ(**file->number("test.f64"), 0.1);
  EXPECT_EQ(**file->number("qwen2.rope.freq_base"), 1e6);
  EXPECT_EQ(**file->number("qwen2.block_count"), 2.0);
  EXPECT_EQ(**file->boolean("tokenizer.ggml.add_bos_token"), false);
  EXPECT_EQ(**file->string("general.architecture"), "qwen2");
  EXPECT_FALSE(*file->integer("test.nothing"));
  EXPECT_EQ(std::get<GgufArray>(*file->find("test.u8s")).integers(), (std::vector<int64_t>{1, 255}));
  EXPECT_EQ(std::get<GgufArray>(*file->find("test.empty")).size, 0U);
  EXPECT_FALSE(std::get<GgufArray>(*file->find("test.floats")).integers());
  EXPECT_FALSE(std::get<GgufArray>(*file->find("test.bools")).strings());
  for (const char* key : {"test.u64", "test.f64", "general.name", "test.u8s"}) {
    expect_error(message_of(file->integer(key)), key);
  }
  expect_error(message_of(file->string("test.u8")), "test.u8");
  expect_error(message_of(file->boolean("test.u8")), "test.u8");
  expect_error(message_of(file->number("general.name")), "general.name");
}

struct BadFile {
  Bytes file;
  const char* message;  // part of the error
};

TEST(Gguf, NamesWhatIsWrongInTheMetadata) {
  const Bytes good = tied();
  const size_t tokens = good.after("tokenizer.ggml.tokens");
  const size_t alignment = good.after("general.alignment") + 4;
  constexpr auto kHuge = uint64_t{1} << 60;
  for (const auto& [file, message] : std::vector<BadFile>{
           {{""}, "magic"},
           {{"GGUX" + good.text.substr(4)}, "no GGUF file"},
           {good.with(4, uint32_t{2}), "version 2"},
           {good.with(4, uint32_t{0x03000000}), "big-endian"},
           {good.with(8, kHuge), "1152921504606846976 tensors"},
           {good.with(16, kHuge), "1152921504606846976 metadata entries"},
           {good.with(16, uint64_t{0}), "tensor "},
           {good.with(24, UINT64_MAX), "metadata entry 0"},
           {good.with(good.after("qwen2.block_count"), uint32_t{99}),
            "'qwen2.block_count': unknown value type 99"},
           {good.with(good.after("general.architecture") + 4, UINT64_MAX),
            "'general.architecture': a string"},
           {good.with(tokens + 4, uint32_t{9}), "'tokenizer.ggml.tokens': arrays of arrays"},
           {good.with(tokens + 4, uint32_t{77}), "'tokenizer.ggml.tokens': unknown type 77"},
           {good.with(tokens + 8, kHuge), "'tokenizer.ggml.tokens': an array claims"},
           {good.with(good.after("tokenizer.ggml.token_type") + 8, kHuge), "'tokenizer.ggml.token_type'"},
           {good.with(tokens + 16, kHuge), "'tokenizer.ggml.tokens': element 0"},
           {good.with(good.after("tokenizer.ggml.add_bos_token") + 4, uint8_t{2}),
            "'tokenizer.ggml.add_bos_token': a bool"},
           {good.renamed("test.u16", "test.i16"), "'test.i16' occurs twice"},
           {good.with(alignment, uint32_t{0}), "'general.alignment'"},
           {good.with(alignment, uint32_t{4}), "'general.alignment'"},
           {good.with(alignment, uint32_t{48}), "'general.alignment'"},
           {good.with(alignment, uint32_t{0x80000000}), "'general.alignment'"},
           {good.with(alignment - 4, GgufValueType::kFloat32), "'general.alignment'"},
       }) {
    const auto parsed = file.parse();
    EXPECT_FALSE(parsed) << message;
    expect_error(message_of(parsed), message);
  }
}

TEST(Gguf, NamesWhatIsWrongWithATensor) {
  const Bytes good = tied();
  const size_t matrix = good.after("token_embd.weight");  // 4 bytes: dimensions; 2 * 8; 4: type; 8: offset
  const size_t vector = good.after("output_norm.weight");
  for (const auto& [file, message] : std::vector<BadFile>{
           {good.with(matrix - 25, uint64_t{1} << 60), "tensor 0"},
           {good.with(matrix, uint32_t{0}), "'token_embd.weight': 0 dimensions"},
           {good.with(matrix, uint32_t{5}), "'token_embd.weight': 5 dimensions"},
           {good.with(matrix, UINT32_MAX), "'token_embd.weight': 4294967295 dimensions"},
           {good.with(matrix + 4, uint64_t{0}), "'token_embd.weight': dimension 0 is 0"},
           {good.with(matrix + 12, int64_t{-1}), "'token_embd.weight': dimension 1 is -1"},
           {good.with(matrix + 12, int64_t{1} << 60), "63 bits"},
           {good.with(matrix + 12, int64_t{1} << 56).with(matrix + 20, uint32_t{0}), "size in bytes"},
           {good.with(matrix + 12, int64_t{1} << 40), "'token_embd.weight': 74766790688768 bytes"},
           {good.with(matrix + 4, uint64_t{48}), "'token_embd.weight': rows of 48"},
           {good.with(matrix + 20, uint32_t{99}), "'token_embd.weight': unknown tensor type 99"},
           {good.with(matrix + 20, uint32_t{4}), "'token_embd.weight': unknown tensor type 4"},
           {good.with(matrix + 24, uint64_t{32}), "'token_embd.weight': offset 32"},
           {good.with(matrix + 24, uint64_t{1} << 63), "'token_embd.weight': 18564 bytes at offset"},
           {good.with(matrix + 24, UINT64_MAX - 63), "'token_embd.weight': 18564 bytes at offset"},
           {good.with(vector + 16, uint64_t{0}), "overlaps tensor"},
           {good.with(matrix + 20, uint32_t{0}), "overlaps tensor 'token_embd.weight'"},
           {good.renamed("blk.0.attn_k.bias", "blk.0.attn_q.bias"), "'blk.0.attn_q.bias' occurs twice"},
       }) {
    const auto parsed = file.parse();
    EXPECT_FALSE(parsed) << message;
    expect_error(message_of(parsed), message);
  }
}

TEST(Gguf, RefusesEveryTruncation) {
  const Bytes good = tied();
  const auto file = good.parse();
  ASSERT_TRUE(file);
  uint64_t data = good.text.size();
  for (const auto& [name, tensor] : file->tensors) data = std::min(data, tensor.begin);
  for (size_t size = 0; size <= data; ++size) {
    const std::span all{reinterpret_cast<const std::byte*>(good.text.data()), size};
    ASSERT_FALSE(parse_gguf(all)) << size;
  }
  const Bytes shorter{good.text.substr(0, good.text.size() - 1)};
  expect_error(message_of(shorter.parse()), "the file is truncated");
}

TEST(Gguf, NamesTheKeyThatIsNoQwen2) {
  const Bytes good = tied();
  const auto number = [](auto value) { return bytes_of(value); };
  const auto config_error = [](const Bytes& bytes) {
    const auto file = bytes.parse();
    return file ? message_of(gguf_config_json(*file)) : file.error().message;
  };
  for (const char* key : {"general.architecture", "qwen2.block_count", "qwen2.context_length",
                          "qwen2.embedding_length", "qwen2.feed_forward_length", "qwen2.attention.head_count",
                          "qwen2.attention.layer_norm_rms_epsilon"}) {
    std::string other = key;
    other.back() = '!';
    expect_error(config_error(good.renamed(key, other)), std::string("'") + key + "' is missing");
    if (key != std::string_view("general.architecture")) {
      expect_error(config_error(good.with(good.after(key), GgufValueType::kBool)), "metadata");
    }
  }
  const auto with_string = [&](std::string_view key, std::string_view value) {
    return good.with_entry(key, GgufValueType::kString, counted(value));
  };
  for (const auto& [file, message] : std::vector<BadFile>{
           {good.renamed("qwen2", "llama"), "'general.architecture' is 'llama'"},
           {with_string("qwen2.rope.scaling.type", "longrope"), "'qwen2.rope.scaling.type' is 'longrope'"},
           {good.with_entry("qwen2.rope.scaling.factor", GgufValueType::kFloat32, number(4.0F)), "factor 4"},
           {good.with_entry("qwen2.rope.scale_linear", GgufValueType::kFloat32, number(4.0F)), "factor 4"},
           {good.with_entry("qwen2.rope.dimension_count", GgufValueType::kUint32, number(16U)),
            "'qwen2.rope.dimension_count' is 16"},
           {good.with_entry("qwen2.attention.sliding_window", GgufValueType::kUint32, number(16U)),
            "'qwen2.attention.sliding_window' is 16"},
           {good.with_entry("qwen2.attention.value_length", GgufValueType::kUint32, number(16U)),
            "'qwen2.attention.value_length' is 16"},
           {good.with(good.after("qwen2.attention.head_count") + 4, 0U), "'qwen2.attention.head_count' 0"},
           {good.with(good.after("qwen2.rope.freq_base") + 4, std::numeric_limits<float>::quiet_NaN()),
            "'qwen2.rope.freq_base' must be a finite number"},
           {good.with(good.after("token_embd.weight") + 12, uint64_t{272}),
            "'tokenizer.ggml.tokens' has 273 tokens"},
       }) {
    expect_error(config_error(file), message);
  }
  EXPECT_EQ(config_error(with_string("qwen2.rope.scaling.type", "none")), "");
  EXPECT_EQ(config_error(with_string("qwen2.rope.scaling.type", "yarn")), "");
  EXPECT_EQ(config_error(with_string("qwen2.rope.scaling.type", "linear")), "");

  const auto eos = good.with(good.after("tokenizer.ggml.eos_token_id") + 4, 273U);
  const auto file = eos.parse();
  ASSERT_TRUE(file);
  expect_error(message_of(gguf_generation_config_json(*file)), "'tokenizer.ggml.eos_token_id' is 273");
}

TEST(Gguf, NamesWhatIsWrongWithTheTokenizer) {
  const Bytes good = tied();
  const size_t types = good.after("tokenizer.ggml.token_type") + 16;
  const size_t merges = good.after("tokenizer.ggml.merges");
  const size_t first = good.after("tokenizer.ggml.tokens") + 16;
  for (const auto& [bytes, message] : std::vector<BadFile>{
           {good.renamed("tokenizer.ggml.model", "tokenizer.ggml.mode!"),
            "'tokenizer.ggml.model' is missing"},
           {good.renamed("gpt2", "bert"), "'tokenizer.ggml.model' is 'bert'"},
           {good.with(good.after("tokenizer.ggml.pre") + 12, 'Q'), "'tokenizer.ggml.pre' is 'Qwen2'"},
           {good.with(good.after("tokenizer.ggml.add_bos_token") + 4, uint8_t{1}),
            "'tokenizer.ggml.bos_token_id' is missing"},
           {good.renamed("tokenizer.ggml.tokens", "tokenizer.ggml.token!"),
            "'tokenizer.ggml.tokens' is missing"},
           {good.renamed("tokenizer.ggml.token_type", "tokenizer.ggml.token_typ!"), "token_type' is missing"},
           {good.with(types - 12, GgufValueType::kFloat32), "'tokenizer.ggml.token_type' must be an array"},
           {good.with(types, int32_t{6}), "'tokenizer.ggml.token_type'[0] is 6"},
           {good.renamed("tokenizer.ggml.merges", "tokenizer.ggml.merge!"),
            "'tokenizer.ggml.merges' is missing"},
           {good.with(merges + 24, '\xff'), "'tokenizer.ggml.merges'[0] is not UTF-8"},
           {good.with(first + 8, '\xff'), "'tokenizer.ggml.tokens'[0] is not UTF-8"},
           {good.renamed("!", "\""), "occurs twice"},
       }) {
    const auto file = bytes.parse();
    ASSERT_TRUE(file) << file.error().message;
    const auto texts = gguf_tokenizer(*file);
    EXPECT_FALSE(texts) << message;
    expect_error(message_of(texts), message);
  }
}

TEST(Gguf, TakesOlderFilesWithoutAPattern) {
  const Bytes older = tied().renamed("tokenizer.ggml.pre", "tokenizer.ggml.pr!");  // the file points into it
  const auto file = older.parse();
  ASSERT_TRUE(file);
  EXPECT_TRUE(gguf_tokenizer(*file));
}

// A damaged copy on disk.
class GgufOnDisk : public testing::Test {
 protected:
  void TearDown() override { fs::remove(path_); }
  [[nodiscard]] Result<std::unique_ptr<Checkpoint>> open(const Bytes& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes.text;
    return open_checkpoint(path_.string());
  }

  fs::path path_ = fs::temp_directory_path() / ("qwen2-test-" + std::to_string(::getpid()) + ".gguf");
};

TEST_F(GgufOnDisk, ErrorsNameTheFile) {
  const Bytes good = tied();
  const size_t type = good.after("token_embd.weight") + 20;
  for (const auto& [bytes, message] : std::vector<BadFile>{
           {good.with(type, uint32_t{17}), "tensor 'token_embd.weight': type IQ2_XS (17) is not supported"},
           {good.with(type, uint32_t{31}),
            "Q4_0_4_4 (31) is a repacked one that ggml retired: download the Q4_0"},
           {good.with(type, uint32_t{38}),
            "IQ4_NL_8_8 (38) is a repacked one that ggml retired: download the IQ4_NL"},
           {good.with(type, uint32_t{40}), "NVFP4 (40)"},
           {good.with(type, uint32_t{42}), "in one of F32, F16, BF16, Q4_0"},
           {good.with(4, uint32_t{2}), "version 2"},
           {good.renamed("qwen2", "llama"), "'general.architecture'"},
       }) {
    const auto checkpoint = open(bytes);
    ASSERT_FALSE(checkpoint);
    expect_error(checkpoint.error().message, message);
    expect_error(checkpoint.error().message, path_.string());
  }
  expect_error(message_of(gguf_tokenizer(path_.parent_path() / "none.gguf")), "none.gguf");
}

TEST_F(GgufOnDisk, ErrorsNameTheTensor) {
  const auto renamed = open(tied().renamed("blk.1.ffn_up.weight", "blk.1.ffn_up.weigh!"));
  ASSERT_TRUE(renamed) << renamed.error().message;
  const auto config = parse_qwen2_config((*renamed)->config_json(), (*renamed)->generation_config_json());
  ASSERT_TRUE(config) << config.error().message;
  expect_error(message_of(load_weights(**renamed, *config, kExpanded, cpu::kernels_for(cpu::Isa::kBaseline))),
               "'blk.1.ffn_up.weight'");

  const auto checkpoint = open(tied());
  ASSERT_TRUE(checkpoint);
  constexpr const char* kEmbedding = "model.embed_tokens.weight";
  expect_error(message_of((*checkpoint)->matrix_format(kEmbedding, 272, 64)), "shape [64, 273, 1, 1]");
  expect_error(message_of((*checkpoint)->matrix_format("model.layers.0.mlp", 1, 1)), "'model.layers.0.mlp'");
  std::vector<float> row(64);
  expect_error(message_of((*checkpoint)->load_vector(kEmbedding, 64, row.data())), "'token_embd.weight'");
  const QuantizedStorage wrong({4, 32}, 273, 64);
  expect_error(message_of((*checkpoint)->load_quantized(kEmbedding, 273, wrong.matrix(), 0)),
               "another format");
  EXPECT_FALSE((*checkpoint)->has("lm_head.weight"));
  EXPECT_FALSE((*checkpoint)->has("model.layers.2.input_layernorm.weight"));
}

// A fixture beside its twin.
class GgufTwin : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto checkpoint = open_checkpoint(path().string());
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    checkpoint_ = *std::move(checkpoint);
  }
  [[nodiscard]] static fs::path path() { return test::gguf_fixtures() / (std::string(GetParam()) + ".gguf"); }
  [[nodiscard]] static fs::path twin() { return test::gguf_fixtures() / GetParam(); }

  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(GgufTwin, TheConfigurationIsTheTwins) {
  const auto actual = parse_qwen2_config(checkpoint_->config_json(), checkpoint_->generation_config_json());
  ASSERT_TRUE(actual) << actual.error().message << checkpoint_->config_json();
  const auto expected = parse_qwen2_config(read(twin() / "config.json"), "");
  ASSERT_TRUE(expected) << expected.error().message;
  EXPECT_EQ(actual->vocab_size, expected->vocab_size);
  EXPECT_EQ(actual->hidden_size, expected->hidden_size);
  EXPECT_EQ(actual->intermediate_size, expected->intermediate_size);
  EXPECT_EQ(actual->layers, expected->layers);
  EXPECT_EQ(actual->heads, expected->heads);
  EXPECT_EQ(actual->kv_heads, expected->kv_heads);
  EXPECT_EQ(actual->head_dim, expected->head_dim);
  EXPECT_EQ(actual->max_position_embeddings, expected->max_position_embeddings);
  EXPECT_EQ(actual->rms_norm_eps, expected->rms_norm_eps);
  EXPECT_EQ(actual->rope_theta, expected->rope_theta);
  EXPECT_EQ(actual->tied_head, expected->tied_head);
  EXPECT_EQ(actual->eos_token_ids, expected->eos_token_ids);
  const auto weights = load_weights(*checkpoint_, *actual, kExpanded, cpu::kernels_for(cpu::Isa::kBaseline));
  EXPECT_TRUE(weights) << weights.error().message;
}

TEST_P(GgufTwin, TheTokenizerIsTheTwins) {
  const auto texts = gguf_tokenizer(path());
  ASSERT_TRUE(texts) << texts.error().message;
  const auto actual = Tokenizer::parse(texts->tokenizer_json);
  ASSERT_TRUE(actual) << actual.error().message;
  const auto expected = Tokenizer::load(twin());
  ASSERT_TRUE(expected) << expected.error().message;
  ASSERT_EQ(actual->size(), expected->size());
  for (TokenId id = 0; id < static_cast<TokenId>(actual->size()); ++id) {
    EXPECT_EQ(actual->token_bytes(id), expected->token_bytes(id));
    EXPECT_EQ(actual->is_special(id), expected->is_special(id));
  }
  for (const char* text :
       {"the other thing, and an hour", "<|im_start|>user\n\nit's  a <tool_call>12<|im_end|><|endoftext|>",
        "na\u00efve caf\u00e9, e\u0301, \u4e2d\u6587 \U0001f600", ""}) {
    const auto ids = actual->encode(text);
    ASSERT_TRUE(ids);
    EXPECT_EQ(*ids, *expected->encode(text)) << text;
  }
  EXPECT_TRUE(actual->added_token("<tool_call>"));
  const auto chat = ChatTemplate::parse(texts->tokenizer_config_json, "the metadata");
  ASSERT_TRUE(chat) << chat.error().message;
  const ChatMessage hello{"user", "Hi"};
  EXPECT_TRUE(chat->render(std::span(&hello, 1), true)
                  ->text()
                  .starts_with("<|im_start|>system\nYou are a fixture.<|im_end|>\n"));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GgufTwin, testing::Values("mixed", "tied", "small_blocks", "super_blocks"),
                         [](const auto& fixture) { return std::string(fixture.param); });

}  // namespace
}  // namespace qwen2
