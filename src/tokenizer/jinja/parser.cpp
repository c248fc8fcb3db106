#include "tokenizer/jinja/parser.h"

#include "tokenizer/jinja/expression_parser.h"

namespace qwen2::jinja {
namespace {

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Result<Body> run() { return body({}); }

 private:
  // Up to a tag that begins with one of `ends`, which stays the current token; to the end without `ends`.
  Result<Body> body(Names ends) {
    const Nesting nesting(depth_);
    QWEN2_CHECK(check_nesting());
    Body out;
    while (!at(TokenKind::kEnd)) {
      const uint32_t line = current().line;
      if (at(TokenKind::kText)) {
        out.push_back({Text{next().text}, line});
      } else if (at(TokenKind::kPrintBegin)) {
        ++position_;
        QWEN2_TRY(ExpressionPtr value, tuple(true));
        QWEN2_CHECK(expect_kind(TokenKind::kPrintEnd, "'}}'"));
        out.push_back({Print{std::move(value)}, line});
      } else {
        ++position_;  // {%
        if (at_any_name(ends)) return out;
        QWEN2_TRY(Statement parsed, statement());
        out.push_back(std::move(parsed));
        QWEN2_CHECK(expect_kind(TokenKind::kBlockEnd, "'%}'"));
      }
    }
    if (ends.size() > 0) return expected(fmt::format("{{% {} %}}", fmt::join(ends, " %} or {% ")));
    return out;
  }

  // `%}`, a body, and the name of its end tag.
  Result<Body> block(Names ends) {
    QWEN2_CHECK(expect_kind(TokenKind::kBlockEnd, "'%}'"));
    return body(ends);
  }

  Result<Statement> statement() {
    if (!at(TokenKind::kName)) return expected("the name of a tag");
    const Token tag = next();
    struct Kind {
      std::string_view name;
      Result<Statement> (Parser::*parse)(uint32_t line);
    };
    static constexpr std::array kKinds = {
        Kind{"if", &Parser::if_tag},       Kind{"for", &Parser::for_tag},
        Kind{"set", &Parser::set_tag},     Kind{"macro", &Parser::macro_tag},
        Kind{"call", &Parser::call_tag},   Kind{"filter", &Parser::filter_tag},
        Kind{"with", &Parser::with_tag},   Kind{"generation", &Parser::generation_tag},
        Kind{"break", &Parser::break_tag}, Kind{"continue", &Parser::continue_tag},
        Kind{"print", &Parser::print_tag}};
    const auto kind = std::ranges::find(kKinds, tag.text, &Kind::name);
    if (kind == kKinds.end()) return unsupported(tag, fmt::format("the tag {{% {} %}}", tag.text));
    return (this->*kind->parse)(tag.line);
  }

  Result<Statement> if_tag(uint32_t line) {
    If node;
    while (true) {
      QWEN2_TRY(ExpressionPtr condition, tuple(false));
      QWEN2_TRY(Body then, block({"elif", "else", "endif"}));
      node.branches.push_back({std::move(condition), std::move(then)});
      if (!skip_name("elif")) break;
    }
    if (skip_name("else")) {
      QWEN2_TRY(node.otherwise, block({"endif"}));
    }
    QWEN2_CHECK(expect_name("endif"));
    return Statement{std::move(node), line};
  }

  Result<Statement> for_tag(uint32_t line) {
    For node;
    QWEN2_TRY(node.target, target(false));
    QWEN2_CHECK(expect_name("in"));
    QWEN2_TRY(node.iterable, tuple(false));
    if (skip_name("if")) {
      QWEN2_TRY(node.condition, expression());
    }
    if (at_name("recursive")) return unsupported(current(), "'recursive' of a {% for %}");
    ++loops_;
    auto looped = block({"else", "endfor"});
    --loops_;
    if (!looped) return std::unexpected(looped.error());
    node.body = std::move(*looped);
    if (skip_name("else")) {
      QWEN2_TRY(node.otherwise, block({"endfor"}));
    }
    QWEN2_CHECK(expect_name("endfor"));
    return Statement{std::move(node), line};
  }

  Result<Statement> set_tag(uint32_t line) {
    QWEN2_TRY(Target assigned, target(true));
    if (skip_operator("=")) {
      QWEN2_TRY(ExpressionPtr value, tuple(true));
      return Statement{Set{std::move(assigned), std::move(value)}, line};
    }
    ExpressionPtr filters;
    if (at_operator("|")) {
      QWEN2_TRY(filters, filter_chain(nullptr));
    }
    QWEN2_TRY(Body content, block({"endset"}));
    QWEN2_CHECK(expect_name("endset"));
    return Statement{SetBlock{std::move(assigned), std::move(filters), std::move(content)}, line};
  }

  // A body that runs as a function of its own: a loop around it is out of its reach.
  Result<Body> function_body(Names ends) {
    const uint32_t loops = std::exchange(loops_, 0);
    auto content = block(ends);
    loops_ = loops;
    return content;
  }

  Result<Statement> macro_tag(uint32_t line) {
    MacroDefinition macro{};
    QWEN2_TRY(macro.name, any_name());
    QWEN2_TRY(macro.signature, signature());
    QWEN2_CHECK(macro_body(macro, "endmacro"));
    return Statement{DefineMacro{std::move(macro)}, line};
  }

  Status macro_body(MacroDefinition& macro, std::string_view end) {
    const size_t begin = position_;
    QWEN2_TRY(macro.body, function_body({end}));
    const auto reads = [&](std::string_view name) {
      return std::any_of(tokens_.begin() + static_cast<ptrdiff_t>(begin),
                         tokens_.begin() + static_cast<ptrdiff_t>(position_), [&](const Token& token) {
                           return token.kind == TokenKind::kName && token.text == name;
                         });
    };
    macro.takes_more = reads("varargs");
    macro.takes_named = reads("kwargs");
    macro.takes_caller = reads("caller");
    return expect_name(end);
  }

  Result<Signature> signature() {
    Signature out;
    QWEN2_CHECK(expect_operator("("));
    while (!skip_operator(")")) {
      if (!out.parameters.empty()) QWEN2_CHECK(expect_operator(","));
      Signature::Parameter parameter;
      QWEN2_TRY(parameter.name, any_name());
      if (skip_operator("=")) {
        QWEN2_TRY(parameter.fallback, expression());
      } else if (!out.parameters.empty() && out.parameters.back().fallback != nullptr) {
        return expected("'=', because the parameter before it has a default");
      }
      out.parameters.push_back(std::move(parameter));
    }
    return out;
  }

  Result<Statement> call_tag(uint32_t line) {
    CallBlock node{};
    node.caller.name = "caller";
    if (at_operator("(")) {
      QWEN2_TRY(node.caller.signature, signature());
    }
    QWEN2_TRY(node.call, expression());
    if (!std::holds_alternative<Call>(node.call->node)) return expected("a call of a macro");
    QWEN2_CHECK(macro_body(node.caller, "endcall"));
    return Statement{std::move(node), line};
  }

  Result<Statement> filter_tag(uint32_t line) {
    QWEN2_TRY(ExpressionPtr first, filter(nullptr));
    QWEN2_TRY(ExpressionPtr filters, filter_chain(std::move(first)));
    QWEN2_TRY(Body content, block({"endfilter"}));
    QWEN2_CHECK(expect_name("endfilter"));
    return Statement{FilterBlock{std::move(filters), std::move(content)}, line};
  }

  Result<Statement> with_tag(uint32_t line) {
    With node;
    while (!at(TokenKind::kBlockEnd)) {
      if (!node.values.empty()) QWEN2_CHECK(expect_operator(","));
      QWEN2_TRY(Target name, target(false));
      QWEN2_CHECK(expect_operator("="));
      QWEN2_TRY(ExpressionPtr value, expression());
      node.values.emplace_back(std::move(name), std::move(value));
    }
    QWEN2_TRY(node.body, block({"endwith"}));
    QWEN2_CHECK(expect_name("endwith"));
    return Statement{std::move(node), line};
  }

  // Transformers' tag around what the model writes. Only training uses the positions; the body is printed.
  Result<Statement> generation_tag(uint32_t line) {
    With node;
    QWEN2_TRY(node.body, function_body({"endgeneration"}));
    QWEN2_CHECK(expect_name("endgeneration"));
    return Statement{std::move(node), line};
  }

  Result<Statement> break_tag(uint32_t line) {
    if (loops_ == 0) return fail(ErrorKind::kFormat, "line {}: {{% break %}} outside of a loop", line);
    return Statement{Break{}, line};
  }

  Result<Statement> continue_tag(uint32_t line) {
    if (loops_ == 0) return fail(ErrorKind::kFormat, "line {}: {{% continue %}} outside of a loop", line);
    return Statement{Continue{}, line};
  }

  Result<Statement> print_tag(uint32_t line) {
    QWEN2_TRY(ExpressionPtr value, expression());
    return Statement{Print{std::move(value)}, line};
  }

  // Names, a tuple of them with or without parentheses, or `name.attribute` in {% set %}.
  Result<Target> target(bool attributes) {
    QWEN2_TRY(Target first, single_target(attributes));
    if (!at_operator(",")) return first;
    Target out;
    out.tuple.push_back(std::move(first));
    while (skip_operator(",")) {
      if (!at(TokenKind::kName) && !at_operator("(")) break;
      if (at_name("in")) break;
      QWEN2_TRY(Target part, single_target(attributes));
      out.tuple.push_back(std::move(part));
    }
    return out;
  }

  Result<Target> single_target(bool attributes) {
    const Nesting nesting(depth_);
    QWEN2_CHECK(check_nesting());
    Target out;
    if (skip_operator("(")) {
      QWEN2_TRY(out, target(attributes));
      QWEN2_CHECK(expect_operator(")"));
      return out;
    }
    if (at_any_name({"true", "false", "True", "False", "none", "None"}))
      return expected("a name to assign to");
    QWEN2_TRY(out.name, any_name());
    if (attributes && skip_operator(".")) {
      QWEN2_TRY(out.attribute, any_name());
    }
    return out;
  }

  uint32_t loops_ = 0;  // loops around the current statement
};

}  // namespace

Result<Body> parse(std::string_view source) {
  QWEN2_TRY(std::vector<Token> tokens, tokenize(source));
  return Parser(std::move(tokens)).run();
}

}  // namespace qwen2::jinja
