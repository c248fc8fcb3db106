#include "base/json_fields.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <limits>

#include "base/memory.h"

namespace qwen2 {
namespace {

JsonFields fields_of(std::string_view text, const std::string& where = "f") {
  auto fields = JsonFields::parse(text, where);
  EXPECT_TRUE(fields) << text;
  return fields ? *std::move(fields) : JsonFields();
}

std::string message(const Status& status) {
  return status ? "ok" : status.error().message;
}

// What reading {"x": VALUE} as a T says.
template <class T>
std::string outcome(const std::string& value) {
  T target{};
  return message(fields_of("{\"x\":" + value + "}", "").required("x", target));
}

template <class T>
std::string outcome(const std::string& value, T low, T high) {
  T target{};
  return message(fields_of("{\"x\":" + value + "}", "").required("x", target, low, high));
}

TEST(JsonFieldsTest, ReadsEveryType) {
  const JsonFields fields = fields_of(R"({"yes":true,"small":-2147483648,"large":9223372036854775807,
      "largest":18446744073709551615,"half":0.5,"whole":2,"text":"é","numbers":[1,2.5],"ids":[3,4],
      "texts":["a","b"],"object":{"a":1},"array":[1,"a"],"objects":[{"a":1},{"a":2}]})");
  bool yes = false;
  int small = 0;
  int64_t large = 0;
  uint64_t largest = 0;
  float half = 0;
  double whole = 0;
  std::string text;
  std::string_view view;
  EXPECT_TRUE(fields.required("yes", yes) && yes);
  EXPECT_TRUE(fields.required("small", small) && small == std::numeric_limits<int>::min());
  EXPECT_TRUE(fields.required("large", large) && large == std::numeric_limits<int64_t>::max());
  EXPECT_TRUE(fields.required("largest", largest) && largest == std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(fields.required("half", half) && half == 0.5F);
  EXPECT_TRUE(fields.required("whole", whole) && whole == 2);
  EXPECT_TRUE(fields.required("text", text) && text == "é");
  EXPECT_TRUE(fields.required("text", view) && view == "é");
  EXPECT_EQ(fields.find<std::vector<double>>("numbers"), (std::vector{1, 2.5}));
  EXPECT_EQ(fields.find<std::vector<int>>("ids"), (std::vector{3, 4}));
  EXPECT_EQ(fields.find<std::vector<std::string>>("texts"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(fields.find<boost::json::object>("object"), (boost::json::object{{"a", 1}}));
  EXPECT_EQ(fields.find<boost::json::array>("array"), (boost::json::array{1, "a"}));
  const auto objects = fields.find<std::vector<JsonFields>>("objects");
  ASSERT_TRUE(objects);
  EXPECT_EQ(objects->size(), 2U);
  EXPECT_EQ(objects->back().find<int>("a"), 2);
}

TEST(JsonFieldsTest, IntegersAreNeitherCutNorWrapped) {
  EXPECT_EQ(outcome<int>("2147483648"),
            "'x' must be an integer from -2147483648 to 2147483647, not 2147483648");
  EXPECT_EQ(outcome<uint64_t>("-1"), "'x' must be an integer from 0 to 18446744073709551615, not -1");
  EXPECT_EQ(
      outcome<int64_t>("9223372036854775808"),
      "'x' must be an integer from -9223372036854775808 to 9223372036854775807, not 9223372036854775808");
  EXPECT_EQ(outcome<int64_t>("1.5"), "'x' must be an integer, not 1.5");
  EXPECT_EQ(outcome<int64_t>("2e1"), "'x' must be an integer, not 20.0");
  EXPECT_EQ(outcome<int64_t>("1e300"), "'x' must be an integer, not 1e+300");
  EXPECT_EQ(outcome<int64_t>("true"), "'x' must be an integer, not true");
  EXPECT_EQ(outcome<int64_t>("\"5\""), "'x' must be an integer, not \"5\"");
}

TEST(JsonFieldsTest, NumbersAreFinite) {
  EXPECT_EQ(outcome<float>("1e39").substr(0, 24), "'x' must be a number fro");
  EXPECT_EQ(outcome<double>("1e39"), "ok");
  EXPECT_EQ(outcome<double>("\"1\""), "'x' must be a number, not \"1\"");
  const auto huge = JsonFields::parse(R"({"x":1e999})", "");
  EXPECT_FALSE(huge && huge->find<double>("x"));
}

TEST(JsonFieldsTest, RangesHoldTheirEnds) {
  for (const char* inside : {"1", "16"}) EXPECT_EQ(outcome<int64_t>(inside, 1, 16), "ok");
  EXPECT_EQ(outcome<int64_t>("0", 1, 16), "'x' must be an integer from 1 to 16, not 0");
  EXPECT_EQ(outcome<int64_t>("17", 1, 16), "'x' must be an integer from 1 to 16, not 17");
  EXPECT_EQ(outcome<int64_t>("\"4\"", 1, 16), "'x' must be an integer from 1 to 16, not \"4\"");
  EXPECT_EQ(outcome<double>("-0.5", 0, 1), "'x' must be a number from 0 to 1, not -0.5");
  int64_t target = 7;
  EXPECT_FALSE(fields_of(R"({"x":17})").optional("x", target, 1, 16));
  EXPECT_EQ(target, 7);
  EXPECT_TRUE(fields_of("{}").optional("x", target, 1, 2));
  EXPECT_EQ(target, 7);
}

TEST(JsonFieldsTest, NamesWhatWasExpectedAndFound) {
  EXPECT_EQ(outcome<bool>("1"), "'x' must be true or false, not 1");
  EXPECT_EQ(outcome<std::string>("[]"), "'x' must be a string, not an array");
  EXPECT_EQ(outcome<JsonFields>("\"a\""), "'x' must be an object, not \"a\"");
  EXPECT_EQ(outcome<boost::json::array>("{}"), "'x' must be an array, not an object");
  EXPECT_EQ(outcome<int>('"' + std::string(1000, 'a') + '"'), "'x' must be an integer, not a long string");
  EXPECT_EQ(outcome<std::vector<double>>("[1,null]"), "'x[1]' must be a number, not null");
  EXPECT_EQ(outcome<std::vector<std::string>>("7"), "'x' must be an array, not 7");
  EXPECT_EQ(outcome<std::vector<JsonFields>>("[{},[]]"), "'x[1]' must be an object, not an array");
}

TEST(JsonFieldsTest, NullCountsAsAbsent) {
  for (const char* text : {"{}", R"({"x":null})"}) {
    const JsonFields fields = fields_of(text);
    int64_t number = 5;
    std::optional<bool> flag;
    std::vector<JsonFields> list;
    EXPECT_EQ(message(fields.required("x", number)), "f: 'x' is missing; an integer was expected");
    EXPECT_EQ(message(fields.required("x", number, 1, 9)),
              "f: 'x' is missing; an integer from 1 to 9 was expected");
    EXPECT_TRUE(fields.optional("x", number) && fields.optional("x", flag) && fields.optional("x", list));
    EXPECT_EQ(number, 5);
    EXPECT_FALSE(flag);
    EXPECT_EQ(fields.value("x"), nullptr);
    EXPECT_EQ(fields.find<int64_t>("x"), std::nullopt);
  }
  std::optional<bool> flag;
  EXPECT_TRUE(fields_of(R"({"x":false})").optional("x", flag));
  EXPECT_EQ(flag, false);
}

TEST(JsonFieldsTest, FindPassesOverOtherTypes) {
  const JsonFields fields = fields_of(R"({"x":"1","list":[1,"a"]})");
  EXPECT_EQ(fields.find<int64_t>("x"), std::nullopt);
  EXPECT_EQ(fields.find<JsonFields>("x").has_value(), false);
  EXPECT_EQ(fields.find<std::vector<double>>("list"), std::nullopt);
  EXPECT_EQ(fields.find<std::string_view>("x"), "1");
}

TEST(JsonFieldsTest, PathsLeadThroughNestedFields) {
  JsonFields card;
  {
    const JsonFields root = fields_of(R"({"gpus":[{},{"measured":{"at":"home","by":7}}]})", "'g.json'");
    std::vector<JsonFields> cards;
    ASSERT_TRUE(root.required("gpus", cards));
    ASSERT_TRUE(cards.at(1).required("measured", card));
  }
  // The objects keep their document.
  EXPECT_EQ(card.find<std::string_view>("at"), "home");
  std::string text;
  EXPECT_EQ(message(card.required("by", text)), "'g.json': 'gpus[1].measured.by' must be a string, not 7");
  EXPECT_EQ(message(card.required("of", text)),
            "'g.json': 'gpus[1].measured.of' is missing; a string was expected");
  const Error error = card.error("at", "is too far", ErrorKind::kUnsupported).error();
  EXPECT_EQ(error.message, "'g.json': 'gpus[1].measured.at' is too far");
  EXPECT_EQ(error.kind, ErrorKind::kUnsupported);
}

TEST(JsonFieldsTest, TextsAndFilesHoldOneObject) {
  const auto error = [](const std::string& text, const std::string& where) {
    const auto fields = JsonFields::parse(text, where);
    return fields ? "ok" : fields.error().message;
  };
  EXPECT_TRUE(error("{", "the body").starts_with("the body is not valid JSON: "));
  EXPECT_TRUE(error("{} x", "").starts_with("not valid JSON: "));
  EXPECT_TRUE(error(std::string(2000, '['), "f").starts_with("f is not valid JSON: "));
  EXPECT_EQ(error("[]", "the body"), "the body must be a JSON object, not an array");
  EXPECT_EQ(error("7", ""), "must be a JSON object, not 7");
  const auto file = std::filesystem::temp_directory_path() / fmt::format("qwen2-json-{}.json", getpid());
  const std::string name = fmt::format("'{}'", file.string());
  ASSERT_TRUE(write_file(file, R"({"x":"a"})"));
  const auto fields = JsonFields::read(file);
  ASSERT_TRUE(fields) << fields.error().message;
  int target = 0;
  EXPECT_EQ(message(fields->required("x", target)), name + ": 'x' must be an integer, not \"a\"");
  EXPECT_FALSE(JsonFields::read(file, 4));
  std::filesystem::remove(file);
  EXPECT_NE(JsonFields::read(file).error().message.find(file.string()), std::string::npos);
}

}  // namespace
}  // namespace qwen2
