// The fuzzers' corpus: hostile files get an error and never a crash.
#include <gtest/gtest.h>

#include "../fuzz/targets.h"
#include "base/memory.h"
#include "paths.h"

namespace qwen2 {
namespace {

void run_corpus(const char* name, void (*target)(std::string_view)) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(test::source_folder() / "tests/fuzz/corpus" / name)) {
    const auto bytes = read_text_file(entry.path());
    ASSERT_TRUE(bytes) << bytes.error().message;
    SCOPED_TRACE(entry.path().string());
    target(*bytes);
    ++files;
  }
  EXPECT_GE(files, 5);
}

TEST(Corpus, Safetensors) {
  run_corpus("safetensors", fuzz::safetensors);
}
TEST(Corpus, Gguf) {
  run_corpus("gguf", fuzz::gguf);
}
TEST(Corpus, Config) {
  run_corpus("config", fuzz::config);
}
TEST(Corpus, Tokenizer) {
  run_corpus("tokenizer", fuzz::tokenizer);
}
TEST(Corpus, ChatTemplate) {
  run_corpus("chat_template", fuzz::chat_template);
}
TEST(Corpus, Request) {
  run_corpus("request", fuzz::request);
}

}  // namespace
}  // namespace qwen2
