// What a model argument names: GGUF files under any name, split ones, and folders that hold one.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_metadata.h"
#include "checkpoint/gguf_shards.h"
#include "experiment/environment.h"
#include "gguf_bytes.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
using test::Bytes;
using test::expect_error;
using test::message_of;
using test::read;

constexpr int64_t kShards = 3;

std::string shard_name(int64_t number, int64_t count = kShards) {
  return ShardName{"tied_split", number, count}.text();
}

// A folder of its own, with copies to damage.
class GgufFiles : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  void copy_shards() const {
    for (int64_t i = 1; i <= kShards; ++i) write(shard_name(i), shard(i).text);
  }
  [[nodiscard]] static Bytes shard(int64_t number) {
    return {read(test::gguf_fixtures() / shard_name(number))};
  }
  [[nodiscard]] std::string error_of(const std::string& name) const {
    return message_of(open_checkpoint((folder_ / name).string()));
  }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("qwen2-files-{}", ::getpid());
};

TEST(ShardNames, AreParsedFromBehind) {
  const auto name = ShardName::parse("a-00001-of-00002-00012-of-00034.gguf");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->stem, "a-00001-of-00002");
  EXPECT_EQ(name->number, 12);
  EXPECT_EQ(name->count, 34);
  EXPECT_EQ(name->text(), "a-00001-of-00002-00012-of-00034.gguf");
  for (const char* other :
       {"", ".gguf", "a.gguf", "-00001-of-00003.gguf", "a-0001-of-0003.gguf", "a-00004-of-00003.gguf",
        "a-00000-of-00003.gguf", "a-00001-of-00003.bin", "a-00001_of_00003.gguf", "a-+0001-of-00003.gguf",
        "a--0001-of-00003.gguf", "a-00001-of-000x3.gguf", "a_00001-of-00003.gguf", "a-00001-of--0001.gguf"}) {
    EXPECT_FALSE(ShardName::parse(other)) << other;
  }
}

TEST_F(GgufFiles, EveryShardOpensTheWholeModel) {
  copy_shards();
  const auto whole = GgufShards::open(test::gguf_fixtures() / "tied.gguf");
  ASSERT_TRUE(whole) << whole.error().message;
  for (int64_t i = 1; i <= kShards; ++i) {
    const auto split = GgufShards::open(folder_ / shard_name(i));
    ASSERT_TRUE(split) << split.error().message;
    ASSERT_EQ(split->paths().size(), size_t{kShards});
    EXPECT_EQ(split->paths().back(), folder_ / shard_name(kShards));
    ASSERT_EQ(split->contents().tensors.size(), whole->contents().tensors.size());
    for (const auto& [name, tensor] : whole->contents().tensors) {
      const auto expected = whole->bytes_of(tensor);
      const GgufTensor& part = split->contents().tensors.find(name)->second;
      const auto actual = split->bytes_of(part);
      EXPECT_EQ(part.shape, tensor.shape) << name;
      ASSERT_EQ(actual.size(), expected.size()) << name;
      EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.size()), 0) << name;
      split->release(part);
    }
    EXPECT_EQ(*gguf_config_json(split->contents()), *gguf_config_json(whole->contents()));
    const std::string model = (folder_ / shard_name(i)).string();
    const auto texts = gguf_tokenizer(model);
    ASSERT_TRUE(texts) << texts.error().message;
    EXPECT_EQ(texts->tokenizer_json, gguf_tokenizer(test::gguf_fixtures() / "tied.gguf")->tokenizer_json);
    EXPECT_EQ(*model_fingerprint(model), *model_fingerprint(folder_.string()));
  }
}

TEST_F(GgufFiles, NamesTheShardThatIsWrong) {
  struct Case {
    int64_t number;  // of the shard that is replaced
    Bytes text;
    const char* message;
  };
  const Bytes first = shard(1);
  const Bytes second = shard(2);
  const Bytes third = shard(3);
  for (const auto& [number, bytes, message] : std::vector<Case>{
           {2, third, "'split.no' is 2; the file's name and the other shards say 1"},
           {2, second.with(second.after("split.count") + 4, uint16_t{4}), "'split.count' is 4"},
           {2, second.with(second.after("split.tensors.count") + 4, 7), "'split.tensors.count' is 7"},
           {1, first.with(first.after("split.tensors.count") + 4, 7), "'split.tensors.count' is 2"},
           {2, second.renamed("split.no", "split.n!"), "'split.no' is missing"},
           {2, second.renamed("split.count", "split.coun!"), "'split.count' is missing"},
           {3, third.renamed("split.tensors.count", "split.tensors.coun!"),
            "'split.tensors.count' is missing"},
           {3, third.renamed("blk.1.ffn_norm.weight", "blk.0.ffn_norm.weight"),
            "'blk.0.ffn_norm.weight' is in '"},
           {3, {third.text.substr(0, third.text.size() - 1)}, "truncated"},
           {2, {"GGUF"}, "truncated"},
       }) {
    SCOPED_TRACE(message);
    copy_shards();
    write(shard_name(number), bytes.text);
    const std::string error = error_of(shard_name(number == 1 ? 2 : 1));
    expect_error(error, message);
    if (number != 1) expect_error(error, (folder_ / shard_name(number)).string());
  }
}

TEST_F(GgufFiles, NamesTheShardThatIsMissing) {
  copy_shards();
  fs::remove(folder_ / shard_name(2));
  const std::string missing = "'" + (folder_ / shard_name(2)).string() + "' is missing";
  expect_error(error_of(shard_name(3)), missing);
  expect_error(message_of(open_checkpoint(folder_.string())), missing);
}

TEST_F(GgufFiles, FewerTensorsThanTheShardsSayAreAnError) {
  for (int64_t i = 1; i <= kShards; ++i) {
    const Bytes bytes = shard(i);
    write(shard_name(i), bytes.with(bytes.after("split.tensors.count") + 4, 100).text);
  }
  expect_error(error_of(shard_name(1)), "'split.tensors.count' is 100, the 3 shards hold 26 tensors");
}

TEST_F(GgufFiles, AShardUnderAnotherNameIsAnError) {
  write("sha256-0123", shard(1).text);
  expect_error(error_of("sha256-0123"), "'split.count' is 3; a name that ends in -00001-of-00003.gguf");
  write(shard_name(1, 4), shard(1).text);
  expect_error(error_of(shard_name(1, 4)), "'split.count' is 3");
}

TEST_F(GgufFiles, ASplitOfOneIsOneFile) {
  for (const auto count : std::vector<uint16_t>{0, 1}) {
    write("model.gguf",
          test::tied().with_entry("split.count", GgufValueType::kUint16, test::bytes_of(count)).text);
    EXPECT_EQ(error_of("model.gguf"), "");
  }
}

TEST_F(GgufFiles, AreKnownByTheirFirstBytes) {
  write("sha256-0123", test::tied().text);
  const std::string blob = (folder_ / "sha256-0123").string();
  EXPECT_TRUE(is_gguf_model(blob));
  EXPECT_EQ(tokenizer_folder(blob), fs::path());
  EXPECT_EQ(error_of("sha256-0123"), "");
  EXPECT_TRUE(gguf_tokenizer(blob));
  EXPECT_TRUE(gguf_tokenizer_config(blob));

  write("pointer.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  expect_error(error_of("pointer.gguf"), "`git lfs pull`");
  expect_error(error_of("pointer.gguf"), (folder_ / "pointer.gguf").string());
  for (const char* text : {"", "GGU", "version https://git", "PK\x03\x04"}) {
    write("other.gguf", text);
    EXPECT_FALSE(is_gguf_model((folder_ / "other.gguf").string()));
    expect_error(error_of("other.gguf"),
                 "a GGUF file, a folder with config.json or synthetic:NAME was expected");
    expect_error(error_of("other.gguf"), (folder_ / "other.gguf").string());
  }
  expect_error(error_of("nothing"), "neither a folder, a GGUF file nor synthetic:NAME");
  EXPECT_FALSE(is_gguf_model("synthetic:qwen2-0.5b"));
}

TEST_F(GgufFiles, AFolderStandsForTheOneModelInIt) {
  const std::string folder = folder_.string();
  expect_error(message_of(open_checkpoint(folder)), "config.json");
  EXPECT_EQ(tokenizer_folder(folder), folder_);

  write("only.gguf", test::tied().text);
  EXPECT_TRUE(is_gguf_model(folder));
  EXPECT_EQ(tokenizer_folder(folder), fs::path());
  EXPECT_EQ(message_of(open_checkpoint(folder)), "");
  EXPECT_TRUE(gguf_tokenizer(folder));
  EXPECT_EQ(*gguf_paths(folder), std::vector<fs::path>{folder_ / "only.gguf"});
  EXPECT_EQ(*model_fingerprint(folder), *model_fingerprint((folder_ / "only.gguf").string()));

  copy_shards();
  const std::string several = message_of(open_checkpoint(folder));
  expect_error(several, "holds 2 models; name the file: only.gguf, tied_split-00001-of-00003.gguf");
  EXPECT_FALSE(is_gguf_model(folder));

  fs::remove(folder_ / "only.gguf");
  EXPECT_EQ(message_of(open_checkpoint(folder)), "");
  EXPECT_EQ(gguf_paths(folder)->size(), size_t{kShards});

  // A folder in Hugging Face layout stays one, whatever else it holds.
  write("config.json", "{}");
  EXPECT_FALSE(is_gguf_model(folder));
  EXPECT_EQ(find_model(folder)->kind, ModelKind::kFolder);
}

}  // namespace
}  // namespace qwen2
