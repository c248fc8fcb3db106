#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "backend/backend.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "model/qwen2_config.h"
#include "model/rope.h"
#include "model/weights.h"
#include "paths.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

std::string safetensors(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(sizeof size, '\0');
  std::memcpy(file.data(), &size, sizeof size);
  return file + header + std::string(data_bytes, 'x');
}

Result<SafetensorsHeader> parse(const std::string& file) {
  return parse_safetensors({reinterpret_cast<const std::byte*>(file.data()), file.size()});
}

TEST(Safetensors, ReadsTensorsInAnyOrder) {
  const auto header = parse(safetensors(
      R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("__metadata__":{"format":"pt"}})",
      20));
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(header->tensors.size(), 2U);
  EXPECT_EQ(header->tensors.at("a").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(header->tensors.at("b").begin, 12U);
}

struct BadFile {
  const char* name;
  std::string file;
  const char* message;  // part of the error
};

TEST(Safetensors, NamesWhatIsWrong) {
  const std::vector<BadFile> cases{
      {"empty", "", "too few"},
      {"short", "abc", "too few"},
      {"header beyond the file", std::string("\xff\0\0\0\0\0\0\0{}", 10), "claims"},
      {"huge header", std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10), "claims"},
      {"no JSON", safetensors("{not json", 0), "JSON"},
      {"no object", safetensors("[1,2]", 0), "object"},
      {"entry no object", safetensors(R"({"a":3})", 0), "'a'"},
      {"no dtype", safetensors(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4), "dtype"},
      {"unknown dtype", safetensors(R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", 4), "F99"},
      {"wrong size", safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4), "span"},
      {"negative shape", safetensors(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4),
       "shape"},
      {"shape overflow",
       safetensors(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0),
       "64 bits"},
      {"offsets reversed", safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4),
       "span"},
      {"offsets missing", safetensors(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "data_offsets"},
      {"truncated", safetensors(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7), "truncated"},
      {"overlap",
       safetensors(
           R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           8),
       "overlaps"},
      {"gap", safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "no tensor"},
      {"rest", safetensors(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 8), "no tensor"},
      {"deep nesting", safetensors(std::string(1000, '[') + std::string(1000, ']'), 0), "JSON"},
  };
  for (const BadFile& bad : cases) {
    const auto header = parse(bad.file);
    ASSERT_FALSE(header) << bad.name;
    EXPECT_NE(header.error().message.find(bad.message), std::string::npos)
        << bad.name << ": " << header.error().message;
  }
}

std::string config_with(const std::string& key, const std::string& value) {
  std::map<std::string, std::string> fields{
      {"model_type", "\"qwen2\""},     {"architectures", "[\"Qwen2ForCausalLM\"]"},
      {"hidden_act", "\"silu\""},      {"hidden_size", "128"},
      {"intermediate_size", "256"},    {"num_hidden_layers", "2"},
      {"num_attention_heads", "2"},    {"num_key_value_heads", "1"},
      {"vocab_size", "100"},           {"max_position_embeddings", "512"},
      {"rms_norm_eps", "1e-6"},        {"rope_theta", "10000"},
      {"tie_word_embeddings", "true"}, {"eos_token_id", "3"}};
  if (!key.empty()) fields[key] = value;
  std::string text = "{";
  for (const auto& [name, field] : fields) {
    if (field.empty()) continue;
    text += fmt::format("{}\"{}\":{}", text.size() > 1 ? "," : "", name, field);
  }
  return text + "}";
}

TEST(Config, ReadsBothLayouts) {
  const auto classic = parse_qwen2_config(config_with("", ""), "");
  ASSERT_TRUE(classic) << classic.error().message;
  EXPECT_EQ(classic->head_dim, 64);
  EXPECT_EQ(classic->rope_theta, 10000.0);
  EXPECT_EQ(classic->eos_token_ids, std::vector<TokenId>{3});
  const auto modern =
      parse_qwen2_config(config_with("rope_parameters", R"({"rope_type":"default","rope_theta":1e6})"),
                         R"({"eos_token_id":[5,6]})");
  ASSERT_TRUE(modern) << modern.error().message;
  EXPECT_EQ(modern->rope_theta, 1e6);
  EXPECT_EQ(modern->eos_token_ids, (std::vector<TokenId>{5, 6, 3}));  // those of both files
}

TEST(Config, TakesWhatOtherProgramsLeaveOut) {
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"architectures", ""},
                                                        {"architectures", "null"},
                                                        {"architectures", R"(["Qwen2ForCausalLM","Other"])"},
                                                        {"rms_norm_eps", ""},
                                                        {"rope_theta", ""},
                                                        {"rope_scaling", R"({"type":"linear","factor":1.0})"},
                                                        {"rope_scaling", R"({"rope_type":"default"})"},
                                                        {"rope_parameters", R"({"rope_type":"default"})"},
                                                        {"use_sliding_window", "false"},
                                                        {"max_window_layers", "0"}}) {
    const auto config = parse_qwen2_config(config_with(key, value), "");
    ASSERT_TRUE(config) << key << " " << value << ": " << config.error().message;
    EXPECT_EQ(config->rms_norm_eps, 1e-6F);
    EXPECT_EQ(config->rope_theta, 10000.0);
    EXPECT_EQ(config->max_position_embeddings, 512);
    EXPECT_FALSE(config->yarn);
  }
}

TEST(Config, EndsTheContextWithASlidingWindow) {
  const auto context = [](const std::string& more) {
    const std::string text = config_with("", "");
    const auto config = parse_qwen2_config(text.substr(0, text.size() - 1) + more + "}", "");
    return config ? config->max_position_embeddings : -1;
  };
  EXPECT_EQ(context(R"(,"use_sliding_window":true,"sliding_window":256,"max_window_layers":2)"),
            512);  // no layer
  EXPECT_EQ(context(R"(,"use_sliding_window":true,"sliding_window":256,"max_window_layers":1)"), 256);
  EXPECT_EQ(context(R"(,"use_sliding_window":true,"sliding_window":4096,"max_window_layers":0)"), 512);
  EXPECT_EQ(context(R"(,"sliding_window":256,"layer_types":["full_attention","sliding_attention"])"), 256);
  EXPECT_EQ(context(R"(,"sliding_window":256,"layer_types":["full_attention","full_attention"])"), 512);
  EXPECT_EQ(context(R"(,"use_sliding_window":true,"max_window_layers":0)"), -1);  // without its size
}

// Values of Transformers' formula, computed apart.
TEST(Config, ReadsYarn) {
  const std::string v4 = R"({"type":"yarn","factor":4.0,"original_max_position_embeddings":32768})";
  const std::string v5 =
      R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768,"rope_theta":1e6})";
  for (const auto& [key, value] : {std::pair("rope_scaling", v4), std::pair("rope_parameters", v5)}) {
    auto config = parse_qwen2_config(config_with(key, value), "");
    ASSERT_TRUE(config) << config.error().message;
    EXPECT_EQ(config->max_position_embeddings, 131072);
    config->head_dim = 128;
    config->rope_theta = 1e6;
    const Rotation rope = rotation_of(*config);
    EXPECT_NEAR(rope.magnitude, 1.138629436111989, 1e-12);
    for (const auto& [pair, frequency] :
         {std::pair(0, 1.0), std::pair(23, 0.006978305848598663), std::pair(24, 0.005375321490790102),
          std::pair(31, 0.0008029597275452302), std::pair(40, 4.445698525097307e-05),
          std::pair(63, 3.102344401879299e-07)}) {
      EXPECT_NEAR(rope.frequencies[static_cast<size_t>(pair)] / frequency, 1, 1e-12) << pair;
    }
  }
  const auto other = parse_qwen2_config(
      config_with("rope_scaling",
                  R"({"rope_type":"yarn","factor":8,"original_max_position_embeddings":4096})"),
      "");
  ASSERT_TRUE(other);
  const Rotation rope = rotation_of(*other);
  EXPECT_NEAR(rope.magnitude, 1.2079441541679836, 1e-12);
  EXPECT_NEAR(rope.frequencies[16], 0.005961538461538462, 1e-15);
  EXPECT_NEAR(rope.frequencies[31], 1.666901790204155e-05, 1e-17);
}

TEST(Config, NamesTheFieldThatIsWrong) {
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"model_type", "\"llama\""},
           {"model_type", ""},
           {"architectures", "[\"LlamaForCausalLM\"]"},
           {"architectures", "7"},
           {"hidden_act", "\"gelu\""},
           {"hidden_size", "-1"},
           {"hidden_size", "\"128\""},
           {"hidden_size", ""},
           {"hidden_size", "99999999999"},
           {"num_attention_heads", "3"},
           {"num_key_value_heads", "0"},
           {"num_attention_heads", "4611686018427387904"},
           {"rms_norm_eps", "\"x\""},
           {"rope_theta", "-4"},
           {"rope_scaling", R"({"type":"yarn"})"},
           {"rope_scaling", R"({"type":"linear","factor":2.0})"},
           {"rope_scaling", R"({"type":"dynamic","factor":2.0})"},
           {"rope_scaling", R"({"type":"yarn","factor":0.5})"},
           {"rope_scaling", R"({"type":"yarn","factor":2,"mscale":1})"},
           {"tie_word_embeddings", "1"},
           {"eos_token_id", "100"},
           {"eos_token_id", "[1,\"a\"]"},
           {"vocab_size", "0"},
           {"max_position_embeddings", "1e3"},
           {"intermediate_size", "100"}}) {
    const auto config = parse_qwen2_config(config_with(key, value), "");
    ASSERT_FALSE(config) << key << " " << value;
    EXPECT_NE(config.error().message.find(key), std::string::npos) << config.error().message;
    EXPECT_NE(config.error().message.find("config.json"), std::string::npos);
  }
  EXPECT_FALSE(parse_qwen2_config("{", ""));
  EXPECT_FALSE(parse_qwen2_config("[]", ""));
}

class DamagedFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("qwen2-test-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void copy(const char* model) { fs::copy(test::golden_folder() / model, folder_); }
  // The error of loading everything.
  [[nodiscard]] std::string error() const {
    const auto checkpoint = open_checkpoint(folder_.string());
    if (!checkpoint) return checkpoint.error().message;
    const auto config =
        parse_qwen2_config((*checkpoint)->config_json(), (*checkpoint)->generation_config_json());
    if (!config) return config.error().message;
    const auto weights = load_weights(**checkpoint, *config, {}, cpu::kernels_for(cpu::Isa::kBaseline));
    return weights ? "" : weights.error().message;
  }
  void replace(const char* file, const std::string& from, const std::string& to) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    in.close();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    text.replace(at, from.size(), to);
    std::ofstream(folder_ / file, std::ios::binary) << text;
  }

  fs::path folder_;
};

TEST_F(DamagedFolder, LoadsWhenWhole) {
  copy("mha_deep");
  EXPECT_EQ(error(), "");
}

TEST_F(DamagedFolder, NamesWhatIsDamaged) {
  copy("hd64_tied");
  const auto size = fs::file_size(folder_ / "model.safetensors");
  fs::resize_file(folder_ / "model.safetensors", size - 2);
  EXPECT_NE(error().find("truncated"), std::string::npos) << error();
  fs::resize_file(folder_ / "model.safetensors", size);
  replace("model.safetensors", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weighs");
  EXPECT_NE(error().find("model.layers.1.mlp.up_proj.weight"), std::string::npos) << error();
  fs::remove(folder_ / "model.safetensors");
  EXPECT_NE(error().find("model.safetensors"), std::string::npos) << error();
  fs::remove(folder_ / "config.json");
  EXPECT_NE(error().find("config.json"), std::string::npos) << error();
}

TEST_F(DamagedFolder, NamesAMisshapenTensor) {
  copy("hd64_tied");
  replace("config.json", "\"intermediate_size\": 192", "\"intermediate_size\": 208");
  EXPECT_NE(error().find("mlp"), std::string::npos) << error();
  EXPECT_NE(error().find("shape"), std::string::npos) << error();
}

TEST_F(DamagedFolder, NamesAMissingShardAndABadIndex) {
  copy("mha_deep");
  std::string shard;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().extension() == ".safetensors") shard = entry.path().filename();
  }
  fs::remove(folder_ / shard);
  EXPECT_NE(error().find(shard), std::string::npos) << error();
  replace("model.safetensors.index.json", shard, "../" + shard);
  EXPECT_NE(error().find("plain file name"), std::string::npos) << error();
}

TEST(Synthetic, HasThePublishedShape) {
  const auto checkpoint = open_checkpoint("synthetic:qwen2-1.5b");
  ASSERT_TRUE(checkpoint);
  const auto config =
      parse_qwen2_config((*checkpoint)->config_json(), (*checkpoint)->generation_config_json());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(plan_cpu_backend(**checkpoint, *config, {}, {})->kv_bytes_per_token, 28672);
  EXPECT_EQ(plan_cpu_backend(**checkpoint, *config, {}, {.kv_bits = 8})->kv_bytes_per_token, 14560);
  // 1.544 B parameters in 16 bits, and the packing's padding.
  EXPECT_NEAR(static_cast<double>(*weight_bytes(**checkpoint, *config, {})), 3.087e9, 0.002e9);
  EXPECT_FALSE(open_checkpoint("synthetic:gpt-5"));
  EXPECT_FALSE(open_checkpoint("/nowhere"));
}

// A checkpoint of one vector.
class OneBias final : public Checkpoint {
 public:
  OneBias(std::string name, float last) : name_(std::move(name)), last_(last) {}
  std::string config_json() const override { return {}; }
  std::string generation_config_json() const override { return {}; }
  bool has(std::string_view name) const override { return name == name_; }
  Status load_vector(std::string_view /*name*/, int64_t size, float* out) const override {
    std::fill_n(out, size, 0.0F);
    out[size - 1] = last_;
    return {};
  }
  Result<std::optional<QuantizedFormat>> matrix_format(std::string_view /*name*/, int64_t /*rows*/,
                                                       int64_t /*cols*/) const override {
    return std::nullopt;
  }
  Status read_matrix(std::string_view /*name*/, int64_t /*rows*/, int64_t /*cols*/,
                     const RowSink& /*sink*/) const override {
    return {};
  }

 private:
  std::string name_;
  float last_;
};

TEST(Checkpoint, RefusesBiasesThatWouldBeLeftOut) {
  const auto config = parse_qwen2_config(config_with("", ""), "");
  for (const char* name :
       {"model.layers.1.self_attn.o_proj.bias", "model.layers.0.mlp.gate_proj.bias",
        "model.layers.0.mlp.up_proj.bias", "model.layers.1.mlp.down_proj.bias", "lm_head.bias"}) {
    EXPECT_TRUE(check_biases(OneBias(name, 0), *config)) << name;
    const Status status = check_biases(OneBias(name, 0.5F), *config);
    ASSERT_FALSE(status) << name;
    EXPECT_NE(status.error().message.find(name), std::string::npos);
  }
  EXPECT_TRUE(check_biases(OneBias("model.layers.0.self_attn.q_proj.bias", 1), *config));  // Qwen2's own
  EXPECT_EQ(gguf_tensor_name("model.layers.3.self_attn.o_proj.bias"), "blk.3.attn_output.bias");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.down_proj.bias"), "blk.3.ffn_down.bias");
}

TEST(Checkpoint, SyntheticModelsHaveQwen2sTensorsAlone) {
  for (const char* name : {"qwen2-0.5b", "qwen2-1.5b", "qwen2-7b"}) {
    const auto checkpoint = open_synthetic(name);
    ASSERT_TRUE(checkpoint);
    const auto config =
        parse_qwen2_config((*checkpoint)->config_json(), (*checkpoint)->generation_config_json());
    ASSERT_TRUE(config) << config.error().message;
    EXPECT_TRUE(check_biases(**checkpoint, *config)) << name;
    for (const ModelTensor& tensor : model_tensors(*config))
      EXPECT_TRUE((*checkpoint)->has(tensor.name)) << tensor.name;
    EXPECT_EQ((*checkpoint)->has("lm_head.weight"), !config->tied_head);
  }
}

// Copies of a golden model with other names of its tensors.
class RenamedFolder : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder_);
    fs::copy_file(test::golden_folder() / "hd64_tied" / "config.json", folder_ / "config.json");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::function<std::string(std::string)>& rename) const {
    const std::string file = *read_text_file(test::golden_folder() / "hd64_tied" / "model.safetensors");
    uint64_t size = 0;
    std::memcpy(&size, file.data(), sizeof(size));
    const boost::json::value header = boost::json::parse(file.substr(8, size));
    boost::json::object renamed;
    for (const auto& [name, entry] : header.as_object()) {
      if (name != "__metadata__") renamed[rename(name)] = entry;
    }
    const std::string text = boost::json::serialize(renamed);
    const uint64_t length = text.size();
    const std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
    ASSERT_TRUE(write_file(folder_ / "model.safetensors", out + text + file.substr(8 + size)));
  }
  [[nodiscard]] std::string error() const {
    const auto checkpoint = open_checkpoint(folder_.string());
    if (!checkpoint) return checkpoint.error().message;
    const auto config = parse_qwen2_config((*checkpoint)->config_json(), "");
    const auto weights = load_weights(**checkpoint, *config, {}, cpu::kernels_for(cpu::Isa::kBaseline));
    return weights ? "" : weights.error().message;
  }
  void write_text(const char* name, std::string_view text) const {
    ASSERT_TRUE(write_file(folder_ / name, text));
  }

  fs::path folder_ = fs::temp_directory_path() / ("qwen2-renamed-" + std::to_string(::getpid()));
};

TEST_F(RenamedFolder, LoadsNamesWithOtherPrefixes) {
  for (const char* prefix :
       {"base_model.", "base_model.model.", "_orig_mod.", "base_model.model._orig_mod."}) {
    write([&](const std::string& name) { return prefix + name; });
    EXPECT_EQ(error(), "") << prefix;
  }
  write([](const std::string& name) { return name.substr(name.starts_with("model.") ? 6 : 0); });
  EXPECT_EQ(error(), "");
  write([](const std::string& name) { return "other." + name; });
  EXPECT_NE(error().find("model.embed_tokens.weight"), std::string::npos);
  write(
      [](const std::string& name) { return name == "model.embed_tokens.weight" ? "lm_head.weight" : name; });
  EXPECT_EQ(error(), "");  // tied: either of the two
}

TEST_F(RenamedFolder, SaysWhatToDoWithWhatIsNoModel) {
  constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
  write_text("model.safetensors", kPointer);
  EXPECT_NE(error().find("git lfs pull"), std::string::npos) << error();
  fs::remove(folder_ / "model.safetensors");
  EXPECT_NE(error().find("has neither model.safetensors"), std::string::npos) << error();
  write_text("pytorch_model.bin", "x");
  EXPECT_NE(error().find("save them as safetensors"), std::string::npos) << error();
  write_text("adapter_config.json", R"({"base_model_name_or_path":"Qwen/Qwen2-1.5B"})");
  write([](const std::string& name) { return name; });
  EXPECT_EQ(error(), "");
  EXPECT_NE(
      (*open_checkpoint(folder_.string()))->note().find("adapter of 'Qwen/Qwen2-1.5B' beside the model"),
      std::string::npos);
  fs::remove(folder_ / "config.json");
  EXPECT_NE(error().find("is a LoRA adapter of 'Qwen/Qwen2-1.5B', not a model: merge it first"),
            std::string::npos)
      << error();
  fs::remove(folder_ / "adapter_config.json");
  EXPECT_NE(error().find("has no config.json"), std::string::npos) << error();
}

// The cache of the Hugging Face client: snapshots of links to blobs, refs/main names one.
class HubCache : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("qwen2-hub-" + std::to_string(::getpid()));
    repository_ = root_ / "hub" / "models--Org--Some.Model-1";
    fs::create_directories(repository_ / "blobs");
    ::setenv("HF_HOME", root_.c_str(), 1);
    ::unsetenv("HF_HUB_CACHE");
  }
  void TearDown() override {
    ::unsetenv("HF_HOME");
    fs::remove_all(root_);
  }
  void add_snapshot(const char* commit) const {
    const fs::path snapshot = repository_ / "snapshots" / commit;
    fs::create_directories(snapshot);
    for (const char* file : {"config.json", "model.safetensors"}) {
      fs::copy_file(test::golden_folder() / "hd64_tied" / file, repository_ / "blobs" / file,
                    fs::copy_options::overwrite_existing);
      fs::create_symlink(fs::path("../../blobs") / file, snapshot / file);
    }
  }
  void refer_to(const char* commit) const {
    fs::create_directories(repository_ / "refs");
    ASSERT_TRUE(write_file(repository_ / "refs" / "main", commit));
  }
  static std::string found(const std::string& model) {
    const auto source = find_model(model);
    return source ? source->path.filename().string() : source.error().message;
  }

  fs::path root_;
  fs::path repository_;
};

TEST_F(HubCache, FollowsRefsMain) {
  add_snapshot("aaa");
  EXPECT_EQ(found(repository_), "aaa");  // the only one
  add_snapshot("bbb");
  EXPECT_NE(found(repository_).find("2 snapshots and no refs/main"), std::string::npos);
  refer_to("bbb\n");
  EXPECT_EQ(found(repository_), "bbb");
  EXPECT_EQ(found("Org/Some.Model-1"), "bbb");
  EXPECT_EQ(tokenizer_folder("Org/Some.Model-1").filename(), "bbb");
  const auto checkpoint = open_checkpoint("Org/Some.Model-1");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_TRUE((*checkpoint)->has("model.embed_tokens.weight"));
  EXPECT_EQ(found(repository_ / "snapshots" / "aaa"), "aaa");
  refer_to("../../outside");
  EXPECT_NE(found("Org/Some.Model-1").find("download it again"), std::string::npos);
}

TEST_F(HubCache, SaysHowToDownload) {
  EXPECT_NE(found("Org/Other").find("download it with `hf download Org/Other`"), std::string::npos);
  EXPECT_NE(found("Org/Other").find((root_ / "hub").string()), std::string::npos);
  for (const char* model : {"Org/", "/Other", "Org/a/b", "../Other", "Org/..", "other", "Org/a b"}) {
    EXPECT_NE(found(model).find("is neither a folder"), std::string::npos) << model;
  }
}

}  // namespace
}  // namespace qwen2
