#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include "base/memory.h"
#include "paths.h"
#include "random_data.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

const Tokenizer& demo() {
  static const Tokenizer tokenizer = [] {
    auto loaded = Tokenizer::load(test::demo_model());
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(*loaded);
  }();
  return tokenizer;
}

std::string random_bytes(int64_t size) {
  std::string bytes;
  for (int64_t i = 0; i < size; ++i) bytes += static_cast<char>(test::uniform(0, 255));
  return bytes;
}

std::string random_text(int64_t characters) {
  std::string text;
  for (int64_t i = 0; i < characters; ++i) {
    char32_t c = 0;
    switch (test::uniform(0, 4)) {
      case 0:
        c = static_cast<char32_t>(test::uniform(1, 0x7f));
        break;
      case 1:
        c = static_cast<char32_t>(test::uniform(0x80, 0x7ff));
        break;
      case 2:
        c = static_cast<char32_t>(test::uniform(0x800, 0xd7ff));
        break;
      case 3:
        c = static_cast<char32_t>(test::uniform(0x10000, 0x10ffff));
        break;
      default:
        c = ' ';
        break;
    }
    append_utf8(text, c);
  }
  return text;
}

TEST(Utf8, ReplacesMaximalIllFormedParts) {
  EXPECT_EQ(valid_utf8("a\xff"
                       "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(valid_utf8("\xe2\x82"), "\xef\xbf\xbd");  // one truncated character, one replacement
  EXPECT_EQ(valid_utf8("\xe2\x82"
                       "a"),
            "\xef\xbf\xbd"
            "a");
  EXPECT_EQ(valid_utf8("\xed\xa0\x80"),
            "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");              // a surrogate is no character
  EXPECT_EQ(valid_utf8("\xc0\x80"), "\xef\xbf\xbd\xef\xbf\xbd");  // overlong
  EXPECT_EQ(valid_utf8("\xf4\x90\x80\x80").size(), 12U);          // beyond U+10FFFF
}

TEST(Utf8, ValidTextStaysAsItIs) {
  for (int round = 0; round < 200; ++round) {
    const std::string text = random_text(test::uniform(0, 50));
    EXPECT_EQ(valid_utf8(text), text);
    const std::string fixed = valid_utf8(random_bytes(test::uniform(0, 50)));
    EXPECT_EQ(valid_utf8(fixed), fixed);
  }
}

TEST(Utf8, KnowsWhatMoreBytesMayComplete) {
  EXPECT_EQ(incomplete_utf8_suffix("abc"), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xe2\x82"), 2U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xf0\x9f\x98"), 3U);
  EXPECT_EQ(incomplete_utf8_suffix("a\xf0"), 1U);
  EXPECT_EQ(incomplete_utf8_suffix("\xe2\x82\xac"), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("\xff"), 0U);
  EXPECT_EQ(incomplete_utf8_suffix("\xed\xa0"), 0U);  // can never become a character
}

TEST(Tokenizer, EncodingLosesNothing) {
  for (int round = 0; round < 300; ++round) {
    std::string text = random_text(test::uniform(0, 80));
    const auto once = demo().encode(text);
    ASSERT_TRUE(once);
    // NFC may change the text; what it gives is stable.
    text = demo().decode(*once);
    const auto twice = demo().encode(text);
    ASSERT_TRUE(twice);
    EXPECT_EQ(demo().decode(*twice), text);
  }
}

TEST(Tokenizer, SpecialTokensInsideText) {
  const auto ids = demo().encode("<|im_start|>user\nHi<|im_end|><|im_end");
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->front(), demo().added_token("<|im_start|>"));
  EXPECT_EQ(std::count(ids->begin(), ids->end(), *demo().added_token("<|im_end|>")), 1);
  EXPECT_EQ(demo().decode(*ids), "<|im_start|>user\nHi<|im_end|><|im_end");
  EXPECT_EQ(demo().decode(*ids, true), "user\nHi<|im_end");
}

TEST(Tokenizer, LongPiecesMergeLikeShortOnes) {
  // The heap and the scan are two ways to the same merges: a run of letters is one piece whatever its length.
  std::string text;
  for (int i = 0; i < 24; ++i) text += static_cast<char>('a' + test::uniform(0, 25));
  const auto short_ids = demo().encode(text);
  std::string spaced;
  for (int i = 0; i < 2000; ++i) spaced += static_cast<char>('a' + test::uniform(0, 3));
  const auto long_ids = demo().encode(spaced);
  ASSERT_TRUE(short_ids && long_ids);
  EXPECT_EQ(demo().decode(*short_ids), text);
  EXPECT_EQ(demo().decode(*long_ids), spaced);
}

TEST(StreamDecoder, EmitsWholeCharactersAndTheSameText) {
  for (int round = 0; round < 300; ++round) {
    // Also byte sequences that are no text: random tokens.
    std::vector<TokenId> ids;
    if (round % 2 == 0) {
      ids = *demo().encode(random_text(test::uniform(1, 60)));
    } else {
      for (int64_t i = test::uniform(1, 60); i > 0; --i)
        ids.push_back(static_cast<TokenId>(test::uniform(0, 300)));
    }
    StreamDecoder decoder(demo());
    std::string text;
    for (const TokenId id : ids) {
      const std::string piece = decoder.push(id);
      EXPECT_EQ(valid_utf8(piece), piece);
      EXPECT_EQ(incomplete_utf8_suffix(piece), 0U);
      text += piece;
    }
    text += decoder.finish();
    EXPECT_EQ(text, demo().decode(ids, true));
  }
}

// A small valid tokeniser with one part replaced.
std::string tokenizer_json(const std::string& from = "", const std::string& to = "") {
  auto text = *read_text_file(test::demo_model() / "tokenizer.json");
  if (from.empty()) return text;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Tokenizer, NamesWhatItDoesNotSupport) {
  ASSERT_TRUE(Tokenizer::parse(tokenizer_json()));
  const auto message = [](const std::string& text) {
    const auto tokenizer = Tokenizer::parse(text);
    return tokenizer ? "accepted" : tokenizer.error().message;
  };
  EXPECT_NE(message("{").find("JSON"), std::string::npos);
  EXPECT_NE(message("[]").find("model.type"), std::string::npos);
  EXPECT_NE(message(tokenizer_json("\"BPE\"", "\"WordPiece\"")).find("model.type"), std::string::npos);
  EXPECT_NE(message(tokenizer_json("\"NFC\"", "\"NFKC\"")).find("normalizer"), std::string::npos);
  EXPECT_NE(message(tokenizer_json("\"Isolated\"", "\"Removed\"")).find("pretokenizers[0]"),
            std::string::npos);
  EXPECT_NE(message(tokenizer_json("\\\\p{N}", "\\\\p{")).find("pattern"), std::string::npos);
}

TEST(ChatTemplate, RendersQwen2) {
  const auto chat = ChatTemplate::load(test::demo_model());
  ASSERT_TRUE(chat);
  const std::vector<ChatMessage> turns{{"user", "Hi"}, {"assistant", "Hello!"}, {"user", "Bye"}};
  EXPECT_EQ(
      chat->render(turns, true),
      "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
      "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  const std::vector<ChatMessage> own{{"system", "Be brief."}, {"user", "Hi"}};
  EXPECT_EQ(chat->render(own, false),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
}

TEST(ChatTemplate, ReadsTheDefaultPromptAndRefusesOtherFormats) {
  const auto other = ChatTemplate::parse(
      R"({"chat_template":"{{'<|im_start|>system\\nBe kind.<|im_end|>\\n'}}{% if add_generation_prompt %}{% endif %}"})");
  ASSERT_TRUE(other);
  EXPECT_EQ(other->default_system_prompt(), "Be kind.");
  EXPECT_FALSE(ChatTemplate::parse(R"({"chat_template":"[INST] {{ messages }} [/INST]"})"));
  EXPECT_FALSE(ChatTemplate::parse(R"({"chat_template":7})"));
  EXPECT_FALSE(ChatTemplate::parse("nonsense"));
}

}  // namespace
}  // namespace qwen2
