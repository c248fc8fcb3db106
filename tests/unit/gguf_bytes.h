// GGUF files to damage, and their errors.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/memory.h"
#include "checkpoint/gguf.h"
#include "paths.h"

namespace qwen2::test {

inline std::filesystem::path gguf_fixtures() {
  return fixture_folder() / "gguf";
}

inline std::string read(const std::filesystem::path& path) {
  auto text = read_text_file(path);
  EXPECT_TRUE(text) << path;
  return text.value_or("");
}

// `text` as the format writes it: its length, then its bytes.
inline std::string counted(std::string_view text) {
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + std::string(text);
}

template <class T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// A GGUF file to damage.
struct Bytes {
  std::string text;

  // Place behind a key or a tensor's name.
  [[nodiscard]] size_t after(std::string_view name) const {
    const std::string needle = counted(name);
    const size_t at = text.find(needle);
    EXPECT_NE(at, std::string::npos) << name;
    return at + needle.size();
  }
  template <class T>
  [[nodiscard]] Bytes with(size_t position, T value) const {
    Bytes copy = *this;
    std::memcpy(copy.text.data() + position, &value, sizeof value);
    return copy;
  }
  [[nodiscard]] Bytes renamed(std::string_view from, std::string_view to) const {
    EXPECT_EQ(from.size(), to.size());
    Bytes copy = *this;
    copy.text.replace(after(from) - from.size(), to.size(), to);
    return copy;
  }
  // With one more entry in front, and a second that keeps the tensors aligned.
  [[nodiscard]] Bytes with_entry(std::string_view key, GgufValueType type, const std::string& value) const {
    std::string entry = counted(key) + bytes_of(type) + value;
    const std::string filler = counted("filler") + bytes_of(GgufValueType::kString);
    entry += filler + counted(std::string(128 - (entry.size() + filler.size() + 8) % 64, ' '));
    uint64_t entries = 0;
    std::memcpy(&entries, text.data() + 16, sizeof entries);
    Bytes copy = with(16, entries + 2);
    copy.text.insert(24, entry);
    return copy;
  }
  [[nodiscard]] Result<GgufFile> parse() const {
    return parse_gguf({reinterpret_cast<const std::byte*>(text.data()), text.size()});
  }
};

inline Bytes tied() {
  return {read(gguf_fixtures() / "tied.gguf")};
}

inline void expect_error(const std::string& message, std::string_view part) {
  EXPECT_NE(message.find(part), std::string::npos) << "'" << message << "' does not say '" << part << "'";
}

template <class T>
std::string message_of(const Result<T>& result) {
  return result ? "" : result.error().message;
}

}  // namespace qwen2::test
