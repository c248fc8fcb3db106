// The Jinja interpreter: what a template means is tested against Python in tests/e2e/templates.test.mjs; here are its
// bounds, its errors and the marks of its text.
#include "tokenizer/jinja/template.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace qwen2::jinja {
namespace {

Result<MarkedText> render(std::string_view source, std::string_view messages = "[]",
                          const Limits& limits = {}) {
  QWEN2_TRY(const Template parsed, Template::parse(source));
  QWEN2_TRY(Value value, from_json(boost::json::parse(messages), true));
  return parsed.render({{"messages", std::move(value)}}, 0, limits);
}

std::string text_of(std::string_view source, std::string_view messages = "[]") {
  const auto text = render(source, messages);
  return text ? text->text() : "error: " + text.error().message;
}

std::string error_of(std::string_view source, const Limits& limits = {}) {
  const auto text = render(source, "[]", limits);
  return text ? "rendered: " + text->text() : text.error().message;
}

// The parts of the text that messages brought, with | between them.
std::string marked(std::string_view source, std::string_view messages) {
  const auto text = render(source, messages);
  if (!text) return "error: " + text.error().message;
  std::string out;
  for (const auto& [begin, end] : text->from_messages()) {
    if (!out.empty()) out += '|';
    out += text->text().substr(begin, end - begin);
  }
  return out;
}

TEST(JinjaErrors, NameLineAndConstruct) {
  EXPECT_EQ(error_of("a\nb\n{% include 'x' %}"), "line 3: the tag {% include %} is not supported");
  EXPECT_EQ(error_of("\n{% for x in y recursive %}{% endfor %}"),
            "line 2: 'recursive' of a {% for %} is not supported");
  EXPECT_EQ(error_of("\n\n{{ x | nosuch }}"), "line 3: the filter 'nosuch' is not supported");
  EXPECT_EQ(error_of("{{ x is nosuch }}"), "line 1: the test 'nosuch' is not supported");
  EXPECT_EQ(error_of("{% if x %}\n\n"),
            "line 2: expected {% elif %} or {% else %} or {% endif %}, found the end of the template");
  EXPECT_EQ(error_of("{{ 'a' + 1 }}"), "line 1: '+' does not take str and int");
  EXPECT_EQ(error_of("\n{{ nosuch.a }}"), "line 2: 'nosuch' is undefined");
  EXPECT_EQ(error_of("\n{{ raise_exception('Roles must\nalternate') }}"),
            "line 2: the template refuses: Roles must\nalternate");
  EXPECT_EQ(error_of("{{ [].append(1) }}"),
            "line 1: append() is not allowed: a template cannot change a list");
  EXPECT_EQ(error_of("{{ ''.__class__ }}"), "line 1: '__class__' is not for templates");
  EXPECT_EQ(error_of("{{ 'a\n"), "line 1: a string has no closing '");
  EXPECT_EQ(error_of("{{ 1 \n"), "line 1: the tag that begins in line 1 has no end }}");
  EXPECT_EQ(error_of("{% macro m(a) %}\n{{ a.b.c }}{% endmacro %}\n\n{{ m({}) }}"),
            "line 2: a dict has no attribute 'b'");
}

// What would exhaust stack, memory or time is an error.
TEST(JinjaBounds, Nesting) {
  const auto repeated = [](std::string_view text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
  };
  const std::string deep = "nested more than 100 levels deep";
  EXPECT_NE(error_of("{{ " + repeated("(", 10'000) + "1" + repeated(")", 10'000) + " }}").find(deep),
            std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("[", 10'000) + repeated("]", 10'000) + " }}").find(deep),
            std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("not ", 10'000) + "1 }}").find(deep), std::string::npos);
  EXPECT_NE(error_of("{{ " + repeated("-", 10'000) + "1 }}").find(deep), std::string::npos);
  EXPECT_NE(error_of(repeated("{% if 1 %}", 10'000)).find(deep), std::string::npos);
  EXPECT_NE(error_of("{% set " + repeated("(", 10'000) + "a" + repeated(")", 10'000) + " = 1 %}").find(deep),
            std::string::npos);
  const std::string chain = "more than 100 operators in a chain";
  EXPECT_NE(error_of("{{ 1" + repeated(" + 1", 10'000) + " }}").find(chain), std::string::npos);
  EXPECT_NE(error_of("{{ 1" + repeated("|abs", 10'000) + " }}").find(chain), std::string::npos);
  EXPECT_NE(error_of("{{ a" + repeated(".b", 10'000) + " }}").find(chain), std::string::npos);
  EXPECT_EQ(error_of("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
            "line 1: more than 400 levels deep");
  EXPECT_EQ(
      error_of("{% set ns = namespace(v=[]) %}{% for i in range(200) %}{% set ns.v = [ns.v] %}{% endfor %}"),
      "line 1: values nested more than 100 levels deep");
}

TEST(JinjaBounds, WorkAndMemory) {
  Limits few;
  few.steps = 100'000;
  EXPECT_EQ(
      error_of("{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}", few),
      "line 1: more than 100000 steps");
  EXPECT_NE(
      error_of(
          "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}")
          .find("bytes of values"),
      std::string::npos);
  EXPECT_EQ(error_of("{{ 'a' * 999999999 }}"), "line 1: more than 20000000 steps");
  EXPECT_NE(error_of("{{ ('a' * 9999) * 99999 }}").find("bytes of values"), std::string::npos);
  EXPECT_NE(error_of("{{ 'a' * 9223372036854775807 }}").find("line 1"), std::string::npos);
  EXPECT_NE(error_of("{{ ('a' * 100000)|replace('', 'b' * 100000) }}").find("bytes of values"),
            std::string::npos);
  EXPECT_NE(error_of("{{ ('a' * 100000)|list|join('b' * 100000) }}").find("bytes of values"),
            std::string::npos);
  EXPECT_EQ(error_of("{{ range(100001) }}"), "line 1: range() of more than 100000 numbers");
  EXPECT_EQ(error_of("{{ 9223372036854775807 + 1 }}"),
            "line 1: 9223372036854775807 + 1 does not fit into 64 bits");
  EXPECT_EQ(error_of("{{ 1 // 0 }}"), "line 1: division by zero");
  Limits limits;
  limits.time = std::chrono::milliseconds(0);
  EXPECT_EQ(error_of("{% for a in range(99999) %}{{ a }}{% endfor %}", limits), "line 1: more than 0 ms");
  EXPECT_EQ(error_of(std::string(kMaxTemplateBytes + 1, 'a')),
            "the template has 1048577 bytes, more than 1048576");
}

TEST(JinjaMarks, FollowMessagesThroughEveryOperation) {
  constexpr std::string_view kMessages = R"([{"role":"user","content":" Ab,cD "}])";
  const auto content = [&](std::string_view expression) {
    return marked(fmt::format("x{{{{ {} }}}}y", expression), kMessages);
  };
  EXPECT_EQ(content("messages[0].content"), " Ab,cD ");
  EXPECT_EQ(content("messages[0].content.strip()"), "Ab,cD");
  EXPECT_EQ(content("messages[0]['content'] | trim | upper"), "AB,CD");
  EXPECT_EQ(content("messages[0].content[::-1]"), " Dc,bA ");
  EXPECT_EQ(content("messages[0].content[1:-1][2]"), ",");
  EXPECT_EQ(content("messages[0].content.split(',') | join('+')"), " Ab|cD ");
  EXPECT_EQ(content("messages[0].content | replace('b,', '+')"), " A|cD ");
  EXPECT_EQ(content("'b,c' | replace(',', messages[0].role)"), "user");
  EXPECT_EQ(content("'<' ~ messages[0].content ~ '>' + messages[0].role"), " Ab,cD |user");
  EXPECT_EQ(content("messages[0] | tojson"), "role|user|content| Ab,cD ");
  EXPECT_EQ(content("[messages[0].role, 'own']"), "user");
  EXPECT_EQ(content("messages[0].content | list | last"), " ");
  EXPECT_EQ(content("messages[0].content | indent(2, true)"), " Ab,cD ");
  EXPECT_EQ(content("(messages[0].content * 2)[:9]"), " Ab,cD  A");
  EXPECT_EQ(content("messages[0].role.title()"), "User");
  EXPECT_EQ(marked("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(messages[0].role) }}{% set y %}({{ "
                   "messages[0].role }}){% endset %}{{ y | upper }}",
                   kMessages),
            "user|USER");
  EXPECT_EQ(content("'\"\\n<' | tojson"), "");
  EXPECT_EQ(marked("{{ messages[0].content | tojson }}", R"([{"content":"a\"\n<é"}])"), "a\\\"\\n<é");
}

TEST(JinjaText, MapsCasesAsPython) {
  EXPECT_EQ(text_of("{{ 'straße ﬁn ǰ ŉ' | upper }}"), "STRASSE FIN J̌ ʼN");
  EXPECT_EQ(text_of("{{ 'ΑΣ ΑΣΑ Σ İ' | lower }}"), "ας ασα σ i̇");
  EXPECT_EQ(text_of("{{ 'ßA bC' | capitalize }}"), "Ssa bc");
  EXPECT_EQ(text_of("{{ \"it's a-b\".title() }}|{{ \"it's a-b\" | title }}"), "It'S A-B|It's A-B");
}

TEST(JinjaLoops, KeepWhatTheTemplateKeepsOfThem) {
  EXPECT_EQ(text_of("{% set ns = namespace() %}{% for i in [1, 2] if i > 1 %}{% set ns.l = loop %}{% endfor "
                    "%}{{ ns.l.length }}{{ ns.l.last }}"),
            "1True");
  EXPECT_EQ(text_of("{% set ns = namespace(seen=[]) %}{% for i in [1, 1, 2] if i not in ns.seen %}{% set "
                    "ns.seen = ns.seen + [i] %}{{ i }}{% endfor %}"),
            "12");
}

}  // namespace
}  // namespace qwen2::jinja
