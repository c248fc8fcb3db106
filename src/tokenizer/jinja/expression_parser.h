// Tokens and the expressions among them, from the operators that bind least to those that bind most.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/jinja/parser.h"
#include "tokenizer/jinja/syntax.h"

namespace qwen2::jinja {

using Names = std::initializer_list<std::string_view>;

// A level of recursion or of an operator chain, counted while it is being parsed.
class Nesting {
 public:
  explicit Nesting(uint32_t& depth) : depth_(&depth) { ++depth; }
  ~Nesting() { --*depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  uint32_t* depth_;
};

class ExpressionParser {
 protected:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // Tokens.
  [[nodiscard]] const Token& current() const { return tokens_[position_]; }
  [[nodiscard]] const Token& following() const {
    return tokens_[std::min(position_ + 1, tokens_.size() - 1)];
  }
  [[nodiscard]] bool at(TokenKind kind) const { return current().kind == kind; }
  [[nodiscard]] bool at_operator(std::string_view text) const {
    return at(TokenKind::kOperator) && current().text == text;
  }
  [[nodiscard]] bool at_name(std::string_view text) const {
    return at(TokenKind::kName) && current().text == text;
  }
  [[nodiscard]] bool at_any_name(Names names) const {
    return at(TokenKind::kName) && std::ranges::find(names, current().text) != names.end();
  }
  Token next() { return at(TokenKind::kEnd) ? current() : tokens_[position_++]; }
  bool skip_operator(std::string_view text) { return at_operator(text) && (++position_, true); }
  bool skip_name(std::string_view text) { return at_name(text) && (++position_, true); }

  [[nodiscard]] std::string described() const {
    switch (current().kind) {
      case TokenKind::kEnd:
        return "the end of the template";
      case TokenKind::kPrintEnd:
        return "'}}'";
      case TokenKind::kBlockEnd:
        return "'%}'";
      case TokenKind::kString:
        return "a string";
      default:
        return fmt::format("'{}'", current().text);
    }
  }
  [[nodiscard]] std::unexpected<Error> expected(std::string_view what) const {
    return fail(ErrorKind::kFormat, "line {}: expected {}, found {}", current().line, what, described());
  }
  [[nodiscard]] std::unexpected<Error> unsupported(const Token& token, std::string_view what) const {
    return fail(ErrorKind::kUnsupported, "line {}: {} is not supported", token.line, what);
  }
  Status expect_operator(std::string_view text) {
    if (!skip_operator(text)) return expected(fmt::format("'{}'", text));
    return {};
  }
  Status expect_name(std::string_view text) {
    if (!skip_name(text)) return expected(fmt::format("'{}'", text));
    return {};
  }
  Result<std::string> any_name() {
    if (!at(TokenKind::kName)) return expected("a name");
    return next().text;
  }
  Status expect_kind(TokenKind kind, std::string_view text) {
    if (!at(kind)) return expected(text);
    ++position_;
    return {};
  }
  Status check_nesting() const {
    if (depth_ <= kMaxNesting) return {};
    return fail(ErrorKind::kUnsupported, "line {}: nested more than {} levels deep", current().line,
                kMaxNesting);
  }

  // Expressions, from the operators that bind least to those that bind most.

  // One expression, or several with commas between them, which are a tuple.
  Result<ExpressionPtr> tuple(bool conditional);
  Result<ExpressionPtr> expression();
  // A chain of operators is a tree that leans to the left: as deep as it is long.
  Status check_chain(uint32_t length) const;
  struct OperatorName {
    std::string_view text;
    BinaryOperator op;
  };
  // Left-associative operators of one rank.
  Result<ExpressionPtr> chain(std::span<const OperatorName> operators,
                              Result<ExpressionPtr> (ExpressionParser::*operand)());
  Result<ExpressionPtr> or_expression();
  Result<ExpressionPtr> and_expression();
  Result<ExpressionPtr> not_expression();
  std::optional<Comparison> skip_comparison();
  Result<ExpressionPtr> comparison();
  Result<ExpressionPtr> sum();
  Result<ExpressionPtr> concatenation();
  Result<ExpressionPtr> product();
  Result<ExpressionPtr> power();
  Result<ExpressionPtr> unary_with_filters();
  // A sign binds closer than a filter: -x|abs is (-x)|abs.
  Result<ExpressionPtr> unary();
  Result<ExpressionPtr> primary();
  static ExpressionPtr name(const Token& token);
  Result<ExpressionPtr> number(const Token& token) const;
  Result<ExpressionPtr> parenthesis();
  Result<ExpressionPtr> list();
  Result<ExpressionPtr> dict();
  // Attributes, subscripts and calls behind a value.
  Result<ExpressionPtr> postfix(ExpressionPtr out);
  Result<ExpressionPtr> attribute(ExpressionPtr object);
  Result<ExpressionPtr> subscript(ExpressionPtr object);
  Result<ExpressionPtr> call(ExpressionPtr function);
  Result<CallArguments> call_arguments();
  Result<ExpressionPtr> filters_and_tests(ExpressionPtr out);
  // `| name(...) | name(...)` of a block.
  Result<ExpressionPtr> filter_chain(ExpressionPtr out);
  Result<ExpressionPtr> filter(ExpressionPtr input);
  Result<ExpressionPtr> test(ExpressionPtr input);

  std::vector<Token> tokens_;
  size_t position_ = 0;
  uint32_t depth_ = 0;  // bodies and expressions that are being parsed
};

}  // namespace qwen2::jinja
