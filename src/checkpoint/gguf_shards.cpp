#include "checkpoint/gguf_shards.h"

#include <algorithm>
#include <charconv>

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

std::string quoted(const fs::path& path) {
  return fmt::format("'{}'", path.string());
}

// Five digits, or nothing.
std::optional<int64_t> five_digits(std::string_view text) {
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.size() != 5 || code != std::errc() || end != text.data() + text.size() || value < 0) {
    return std::nullopt;
  }
  return value;
}

Status expect_integer(const GgufFile& file, std::string_view key, int64_t expected) {
  QWEN2_TRY(const auto value, file.integer(key));
  if (!value) return fail(ErrorKind::kFormat, "metadata key '{}' is missing: this is no shard", key);
  if (*value == expected) return {};
  return fail(ErrorKind::kFormat, "'{}' is {}; the file's name and the other shards say {}", key, *value,
              expected);
}

}  // namespace

std::optional<ShardName> ShardName::parse(std::string_view file_name) {
  // From behind: digits, "-of-", digits, ".gguf".
  constexpr std::string_view kEnd = ".gguf";
  constexpr std::string_view kOf = "-of-";
  constexpr size_t kDigits = 5;
  constexpr size_t kTail = 1 + kDigits + kOf.size() + kDigits + kEnd.size();
  if (file_name.size() <= kTail || !file_name.ends_with(kEnd)) return std::nullopt;
  const std::string_view tail = file_name.substr(file_name.size() - kTail);
  const auto number = five_digits(tail.substr(1, kDigits));
  const auto count = five_digits(tail.substr(1 + kDigits + kOf.size(), kDigits));
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf || !number || !count) return std::nullopt;
  if (*number < 1 || *number > *count) return std::nullopt;
  return ShardName{std::string(file_name.substr(0, file_name.size() - kTail)), *number, *count};
}

std::string ShardName::text() const {
  return fmt::format("{}-{:05}-of-{:05}.gguf", stem, number, count);
}

Result<GgufShards> GgufShards::open(const fs::path& path) {
  GgufShards shards;
  QWEN2_TRY(shards.contents_, shards.add_file(path));
  const auto count = shards.contents_.integer("split.count");
  if (!count) return within(quoted(path), count.error());
  // 0 and 1 both mean one file.
  if (count->value_or(1) == 0 || count->value_or(1) == 1) return shards;
  GgufShards all;
  QWEN2_CHECK(all.open_split(path, **count));
  return all;
}

Result<GgufFile> GgufShards::add_file(const fs::path& path) {
  QWEN2_TRY(MappedFile mapped, MappedFile::open(path));
  auto file = parse_gguf(mapped.bytes());
  if (!file) return within(quoted(path), file.error());
  files_.push_back(std::move(mapped));
  paths_.push_back(path);
  return file;
}

Status GgufShards::open_split(const fs::path& given, int64_t count) {
  auto name = ShardName::parse(given.filename().string());
  if (!name || name->count != count) {
    return fail(ErrorKind::kFormat,
                "'{}': 'split.count' is {}; a name that ends in -00001-of-{:05}.gguf was expected, by which "
                "the other shards are found",
                given.string(), count, count);
  }
  std::optional<int64_t> tensors;  // of all shards, as the first says
  for (name->number = 1; name->number <= count; ++name->number) {
    const fs::path path = given.parent_path() / name->text();
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      return fail(ErrorKind::kFormat, "'{}' is missing: '{}' is one of {} shards", path.string(),
                  given.filename().string(), count);
    }
    QWEN2_TRY(GgufFile file, add_file(path));
    const auto check = [&]() -> Status {
      if (!tensors) {
        QWEN2_TRY(tensors, file.integer("split.tensors.count"));
      }
      QWEN2_CHECK(expect_integer(file, "split.count", count));
      QWEN2_CHECK(expect_integer(file, "split.no", name->number - 1));
      QWEN2_CHECK(expect_integer(file, "split.tensors.count", tensors.value_or(0)));
      return add_tensors(file);
    };
    if (auto status = check(); !status) return within(quoted(path), status.error());
    if (name->number == 1) contents_.metadata = std::move(file.metadata);
  }
  if (static_cast<uint64_t>(*tensors) != contents_.tensors.size()) {
    return fail(ErrorKind::kFormat, "'{}': 'split.tensors.count' is {}, the {} shards hold {} tensors",
                paths_.front().string(), *tensors, count, contents_.tensors.size());
  }
  return {};
}

// Takes over the tensors of the file that was added last.
Status GgufShards::add_tensors(const GgufFile& shard) {
  for (const auto& [name, tensor] : shard.tensors) {
    const auto [place, is_new] = contents_.tensors.emplace(name, tensor);
    if (!is_new) {
      return fail(ErrorKind::kFormat, "tensor '{}' is in '{}' too", name.substr(0, 64),
                  path_of(place->second).string());
    }
    place->second.shard = files_.size() - 1;
  }
  return {};
}

}  // namespace qwen2
