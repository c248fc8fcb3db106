#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>

#include "base/memory.h"
#include "paths.h"
#include "random_data.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

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

// The demo model's tokeniser with another value of one field.
std::string changed(std::string_view field, json::value value) {
  json::object root = json::parse(tokenizer_json()).as_object();
  root[field] = std::move(value);
  return json::serialize(root);
}

TEST(Tokenizer, TakesASequenceOfOneNfc) {
  const json::object nfc{{"type", "NFC"}};
  const auto sequence = [](json::array list) {
    return json::object{{"type", "Sequence"}, {"normalizers", std::move(list)}};
  };
  const auto one = Tokenizer::parse(changed("normalizer", sequence({nfc})));
  ASSERT_TRUE(one) << one.error().message;
  EXPECT_EQ(*one->encode("e\u0301"), *demo().encode("\u00e9"));
  EXPECT_FALSE(Tokenizer::parse(changed("normalizer", sequence({nfc, nfc}))));
}

// Tokens around a text by itself, and around no part of a prompt.
TEST(Tokenizer, PutsTokensAroundATextAsPostProcessorSays) {
  const TokenId bos = *demo().added_token("<|im_start|>");
  const TokenId eos = *demo().added_token("<|im_end|>");
  const json::object special{{"B", json::object{{"id", "B"}, {"ids", json::array{bos}}}},
                             {"E", json::object{{"id", "E"}, {"ids", json::array{eos}}}}};
  const auto token = [](const char* id) { return json::object{{"SpecialToken", json::object{{"id", id}}}}; };
  const json::object text{{"Sequence", json::object{{"id", "A"}}}};
  const json::object around{{"type", "TemplateProcessing"},
                            {"single", json::array{token("B"), text, token("E")}},
                            {"special_tokens", special}};
  const json::object bytes{{"type", "ByteLevel"}};
  const json::object both{{"type", "Sequence"}, {"processors", json::array{bytes, around}}};
  for (const json::object& processor : {around, both}) {
    const auto tokenizer = Tokenizer::parse(changed("post_processor", processor));
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    std::vector<TokenId> expected = *demo().encode("Hi");
    EXPECT_EQ(*tokenizer->encode(MarkedText("Hi")), expected);
    expected.insert(expected.begin(), bos);
    expected.push_back(eos);
    EXPECT_EQ(*tokenizer->encode("Hi"), expected);
    EXPECT_EQ(*tokenizer->encode(""), (std::vector<TokenId>{bos, eos}));
  }
  const auto error = [](const json::object& processor) {
    const auto tokenizer = Tokenizer::parse(changed("post_processor", processor));
    return tokenizer ? "accepted" : tokenizer.error().message;
  };
  EXPECT_EQ(error({{"type", "BertProcessing"}}),
            "'post_processor' of type 'BertProcessing' is not supported");
  json::object unknown = around;
  unknown["special_tokens"] = json::object();
  EXPECT_EQ(error(unknown), "'post_processor': special token 'B' has no 'ids'");
}

// An added token with "normalized" is looked for after NFC, in what no other added token takes.
TEST(Tokenizer, FindsNormalizedTokensInNormalText) {
  const auto id = static_cast<TokenId>(demo().size());
  json::array added = json::parse(tokenizer_json()).at("added_tokens").as_array();
  added.push_back(
      json::object{{"id", id}, {"content", "caf\u00e9"}, {"normalized", true}, {"special", true}});
  const auto tokenizer = Tokenizer::parse(changed("added_tokens", added));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto has = [&](const MarkedText& text) {
    const auto ids = tokenizer->encode(text);
    return std::count(ids->begin(), ids->end(), id);
  };
  EXPECT_EQ(has(MarkedText("a caf\u00e9 cafe\u0301<|im_end|>cafe\u0301")), 3);
  EXPECT_EQ(has(MarkedText("a cafe\u0301", true)), 0);  // a message's
  MarkedText seam("cafe");
  seam.append("\u0301", true);
  EXPECT_EQ(has(seam), 0);  // the last character is both's
  seam.append(" caf\u00e9", false);
  EXPECT_EQ(tokenizer->decode(*tokenizer->encode(seam)), "caf\u00e9 caf\u00e9");
}

// vocab.json and merges.txt, as before tokenizer.json.
TEST(Tokenizer, LoadsVocabularyFiles) {
  const json::value root = json::parse(tokenizer_json());
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("vocabulary_{}", ::getpid());
  std::filesystem::create_directories(folder);
  std::string merges = "#version: 0.2\n";
  for (const json::value& merge : root.at_pointer("/model/merges").as_array()) {
    merges += merge.is_string() ? std::string(merge.get_string())
                                : fmt::format("{} {}", std::string_view(merge.as_array()[0].as_string()),
                                              std::string_view(merge.as_array()[1].as_string()));
    merges += '\n';
  }
  json::object decoder;
  json::object plain;
  for (const json::value& token : root.at("added_tokens").as_array()) {
    decoder[std::to_string(token.at("id").as_int64())] = token;
    plain[token.at("content").as_string()] = token.at("id");
  }
  ASSERT_TRUE(write_file(folder / "vocab.json", json::serialize(root.at_pointer("/model/vocab"))));
  ASSERT_TRUE(write_file(folder / "merges.txt", merges));
  ASSERT_TRUE(write_file(folder / "added_tokens.json", json::serialize(plain)));
  constexpr std::string_view kText = "<|im_start|>user\nna\u00efve e\u0301 it's 12<|im_end|>";
  for (const bool with_config : {false, true}) {
    if (with_config) {
      ASSERT_TRUE(write_file(folder / "tokenizer_config.json",
                             json::serialize(json::object{{"added_tokens_decoder", decoder}})));
    }
    const auto tokenizer = Tokenizer::load(folder);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    EXPECT_EQ(*tokenizer->encode(kText), *demo().encode(kText));
    EXPECT_TRUE(tokenizer->is_special(*tokenizer->added_token("<|im_end|>")));
  }
  ASSERT_TRUE(write_file(folder / "merges.txt", "a\n"));
  EXPECT_NE(Tokenizer::load(folder).error().message.find("merges.txt: line 1"), std::string::npos);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace qwen2
