#include "tokenizer/jinja/expression_parser.h"

#include <charconv>

namespace qwen2::jinja {
namespace {

template <class Node>
ExpressionPtr make(Node node, uint32_t line) {
  return std::make_unique<const Expression>(Expression{std::move(node), line});
}

}  // namespace

Result<ExpressionPtr> ExpressionParser::tuple(bool conditional) {
  const uint32_t line = current().line;
  const auto one = [&] { return conditional ? expression() : or_expression(); };
  QWEN2_TRY(ExpressionPtr first, one());
  if (!at_operator(",")) return first;
  Sequence out{{}, true};
  out.items.push_back(std::move(first));
  while (skip_operator(",")) {
    if (at(TokenKind::kPrintEnd) || at(TokenKind::kBlockEnd) || at_operator(")")) break;
    QWEN2_TRY(ExpressionPtr item, one());
    out.items.push_back(std::move(item));
  }
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::expression() {
  const Nesting nesting(depth_);
  QWEN2_CHECK(check_nesting());
  const uint32_t line = current().line;
  QWEN2_TRY(ExpressionPtr out, or_expression());
  for (uint32_t chain = 0; skip_name("if"); ++chain) {
    QWEN2_CHECK(check_chain(chain));
    QWEN2_TRY(ExpressionPtr condition, or_expression());
    ExpressionPtr otherwise;
    if (skip_name("else")) {
      QWEN2_TRY(otherwise, expression());
    }
    out = make(Conditional{std::move(condition), std::move(out), std::move(otherwise)}, line);
  }
  return out;
}

Status ExpressionParser::check_chain(uint32_t length) const {
  if (length < kMaxNesting) return {};
  return fail(ErrorKind::kUnsupported, "line {}: more than {} operators in a chain", current().line,
              kMaxNesting);
}

Result<ExpressionPtr> ExpressionParser::chain(std::span<const OperatorName> operators,
                                              Result<ExpressionPtr> (ExpressionParser::*operand)()) {
  const uint32_t line = current().line;
  QWEN2_TRY(ExpressionPtr out, (this->*operand)());
  for (uint32_t length = 0;; ++length) {
    const bool can_be = at(TokenKind::kName) || at(TokenKind::kOperator);
    const auto found =
        can_be ? std::ranges::find(operators, current().text, &OperatorName::text) : operators.end();
    if (found == operators.end()) return out;
    QWEN2_CHECK(check_chain(length));
    ++position_;
    QWEN2_TRY(ExpressionPtr right, (this->*operand)());
    out = make(Binary{found->op, std::move(out), std::move(right)}, line);
  }
}

Result<ExpressionPtr> ExpressionParser::or_expression() {
  static constexpr std::array kOperators = {OperatorName{"or", BinaryOperator::kOr}};
  return chain(kOperators, &ExpressionParser::and_expression);
}

Result<ExpressionPtr> ExpressionParser::and_expression() {
  static constexpr std::array kOperators = {OperatorName{"and", BinaryOperator::kAnd}};
  return chain(kOperators, &ExpressionParser::not_expression);
}

Result<ExpressionPtr> ExpressionParser::not_expression() {
  const uint32_t line = current().line;
  if (!skip_name("not")) return comparison();
  const Nesting nesting(depth_);
  QWEN2_CHECK(check_nesting());
  QWEN2_TRY(ExpressionPtr operand, not_expression());
  return make(Unary{UnaryOperator::kNot, std::move(operand)}, line);
}

std::optional<Comparison> ExpressionParser::skip_comparison() {
  static constexpr std::array<std::pair<std::string_view, Comparison>, 6> kOperators = {
      {{"==", Comparison::kEqual},
       {"!=", Comparison::kNotEqual},
       {"<", Comparison::kLess},
       {"<=", Comparison::kLessEqual},
       {">", Comparison::kGreater},
       {">=", Comparison::kGreaterEqual}}};
  for (const auto& [text, comparison] : kOperators) {
    if (skip_operator(text)) return comparison;
  }
  if (skip_name("in")) return Comparison::kIn;
  if (at_name("not") && following().kind == TokenKind::kName && following().text == "in") {
    position_ += 2;
    return Comparison::kNotIn;
  }
  return std::nullopt;
}

Result<ExpressionPtr> ExpressionParser::comparison() {
  const uint32_t line = current().line;
  QWEN2_TRY(ExpressionPtr first, sum());
  Compare out;
  while (const auto op = skip_comparison()) {
    QWEN2_TRY(ExpressionPtr right, sum());
    out.rest.emplace_back(*op, std::move(right));
  }
  if (out.rest.empty()) return first;
  out.first = std::move(first);
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::sum() {
  static constexpr std::array kOperators = {OperatorName{"+", BinaryOperator::kAdd},
                                            OperatorName{"-", BinaryOperator::kSubtract}};
  return chain(kOperators, &ExpressionParser::concatenation);
}

Result<ExpressionPtr> ExpressionParser::concatenation() {
  const uint32_t line = current().line;
  QWEN2_TRY(ExpressionPtr first, product());
  if (!at_operator("~")) return first;
  Concatenation out;
  out.parts.push_back(std::move(first));
  while (skip_operator("~")) {
    QWEN2_TRY(ExpressionPtr part, product());
    out.parts.push_back(std::move(part));
  }
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::product() {
  static constexpr std::array kOperators = {
      OperatorName{"*", BinaryOperator::kMultiply}, OperatorName{"/", BinaryOperator::kDivide},
      OperatorName{"//", BinaryOperator::kFloorDivide}, OperatorName{"%", BinaryOperator::kModulo}};
  return chain(kOperators, &ExpressionParser::power);
}

Result<ExpressionPtr> ExpressionParser::power() {
  static constexpr std::array kOperators = {OperatorName{"**", BinaryOperator::kPower}};
  return chain(kOperators, &ExpressionParser::unary_with_filters);
}

Result<ExpressionPtr> ExpressionParser::unary_with_filters() {
  QWEN2_TRY(ExpressionPtr out, unary());
  return filters_and_tests(std::move(out));
}

Result<ExpressionPtr> ExpressionParser::unary() {
  const uint32_t line = current().line;
  if (!at_operator("-") && !at_operator("+")) {
    QWEN2_TRY(ExpressionPtr out, primary());
    return postfix(std::move(out));
  }
  const Nesting nesting(depth_);
  QWEN2_CHECK(check_nesting());
  const UnaryOperator op = next().text == "-" ? UnaryOperator::kMinus : UnaryOperator::kPlus;
  QWEN2_TRY(ExpressionPtr operand, unary());
  return postfix(make(Unary{op, std::move(operand)}, line));
}

Result<ExpressionPtr> ExpressionParser::primary() {
  const Token token = current();
  switch (token.kind) {
    case TokenKind::kName:
      ++position_;
      return name(token);
    case TokenKind::kString: {
      std::string text;
      while (at(TokenKind::kString)) text += next().text;
      return make(Literal{Value::own(std::move(text))}, token.line);
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      ++position_;
      return number(token);
    case TokenKind::kOperator:
      if (token.text == "(") return parenthesis();
      if (token.text == "[") return list();
      if (token.text == "{") return dict();
      break;
    default:
      break;
  }
  return expected("an expression");
}

ExpressionPtr ExpressionParser::name(const Token& token) {
  if (token.text == "true" || token.text == "True") return make(Literal{Value::boolean(true)}, token.line);
  if (token.text == "false" || token.text == "False") return make(Literal{Value::boolean(false)}, token.line);
  if (token.text == "none" || token.text == "None") return make(Literal{Value::none()}, token.line);
  return make(Name{token.text}, token.line);
}

Result<ExpressionPtr> ExpressionParser::number(const Token& token) const {
  const char* end = token.text.data() + token.text.size();
  if (token.kind == TokenKind::kFloat) {
    double value = 0;
    const auto read = std::from_chars(token.text.data(), end, value);
    if (read.ec == std::errc() && read.ptr == end) return make(Literal{Value::number(value)}, token.line);
  } else {
    const bool prefixed = token.text.size() > 2 && token.text[0] == '0' && std::isalpha(token.text[1]) != 0;
    const int base = !prefixed                       ? 10
                     : (token.text[1] | 0x20) == 'x' ? 16
                     : (token.text[1] | 0x20) == 'o' ? 8
                                                     : 2;
    int64_t value = 0;
    const auto read = std::from_chars(token.text.data() + (prefixed ? 2 : 0), end, value, base);
    if (read.ec == std::errc() && read.ptr == end) return make(Literal{Value::integer(value)}, token.line);
  }
  return unsupported(token, fmt::format("the number {} (64 bits)", token.text));
}

Result<ExpressionPtr> ExpressionParser::parenthesis() {
  const uint32_t line = next().line;
  if (skip_operator(")")) return make(Sequence{{}, true}, line);
  QWEN2_TRY(ExpressionPtr out, tuple(true));
  QWEN2_CHECK(expect_operator(")"));
  return out;
}

Result<ExpressionPtr> ExpressionParser::list() {
  Sequence out{{}, false};
  const uint32_t line = next().line;
  while (!skip_operator("]")) {
    if (!out.items.empty()) {
      QWEN2_CHECK(expect_operator(","));
      if (skip_operator("]")) break;
    }
    QWEN2_TRY(ExpressionPtr item, expression());
    out.items.push_back(std::move(item));
  }
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::dict() {
  DictLiteral out;
  const uint32_t line = next().line;
  while (!skip_operator("}")) {
    if (!out.items.empty()) {
      QWEN2_CHECK(expect_operator(","));
      if (skip_operator("}")) break;
    }
    QWEN2_TRY(ExpressionPtr key, expression());
    QWEN2_CHECK(expect_operator(":"));
    QWEN2_TRY(ExpressionPtr value, expression());
    out.items.emplace_back(std::move(key), std::move(value));
  }
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::postfix(ExpressionPtr out) {
  for (uint32_t length = 0;; ++length) {
    QWEN2_CHECK(check_chain(length));
    if (at_operator(".")) {
      QWEN2_TRY(out, attribute(std::move(out)));
    } else if (at_operator("[")) {
      QWEN2_TRY(out, subscript(std::move(out)));
    } else if (at_operator("(")) {
      QWEN2_TRY(out, call(std::move(out)));
    } else {
      return out;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::attribute(ExpressionPtr object) {
  const uint32_t line = next().line;
  if (at(TokenKind::kInteger)) {
    QWEN2_TRY(ExpressionPtr index, number(next()));
    return make(Subscript{std::move(object), std::move(index)}, line);
  }
  QWEN2_TRY(std::string name, any_name());
  return make(Attribute{std::move(object), std::move(name)}, line);
}

Result<ExpressionPtr> ExpressionParser::subscript(ExpressionPtr object) {
  const uint32_t line = next().line;
  ExpressionPtr begin;
  if (!at_operator(":")) {
    QWEN2_TRY(begin, expression());
    if (at_operator(",")) return unsupported(current(), "a subscript of several values");
    if (skip_operator("]")) return make(Subscript{std::move(object), std::move(begin)}, line);
  }
  Slice out{std::move(object), std::move(begin), nullptr, nullptr};
  QWEN2_CHECK(expect_operator(":"));
  if (!at_operator(":") && !at_operator("]")) {
    QWEN2_TRY(out.end, expression());
  }
  if (skip_operator(":") && !at_operator("]")) {
    QWEN2_TRY(out.step, expression());
  }
  QWEN2_CHECK(expect_operator("]"));
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::call(ExpressionPtr function) {
  const uint32_t line = current().line;
  QWEN2_TRY(CallArguments arguments, call_arguments());
  return make(Call{std::move(function), std::move(arguments)}, line);
}

Result<CallArguments> ExpressionParser::call_arguments() {
  CallArguments out;
  QWEN2_CHECK(expect_operator("("));
  for (bool first = true; !skip_operator(")"); first = false) {
    if (!first) {
      QWEN2_CHECK(expect_operator(","));
      if (skip_operator(")")) break;
    }
    if (at_operator("*") || at_operator("**"))
      return unsupported(current(), "unpacking of arguments (* and **)");
    if (at(TokenKind::kName) && following().kind == TokenKind::kOperator && following().text == "=") {
      std::string name = next().text;
      ++position_;
      QWEN2_TRY(ExpressionPtr value, expression());
      out.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!out.named.empty()) return expected("a named argument");
      QWEN2_TRY(ExpressionPtr value, expression());
      out.positional.push_back(std::move(value));
    }
  }
  return out;
}

Result<ExpressionPtr> ExpressionParser::filters_and_tests(ExpressionPtr out) {
  for (uint32_t length = 0;; ++length) {
    QWEN2_CHECK(check_chain(length));
    if (skip_operator("|")) {
      QWEN2_TRY(out, filter(std::move(out)));
    } else if (at_name("is")) {
      QWEN2_TRY(out, test(std::move(out)));
    } else if (at_operator("(")) {
      QWEN2_TRY(out, call(std::move(out)));
    } else {
      return out;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::filter_chain(ExpressionPtr out) {
  for (uint32_t length = 0; skip_operator("|"); ++length) {
    QWEN2_CHECK(check_chain(length));
    QWEN2_TRY(out, filter(std::move(out)));
  }
  return out;
}

Result<ExpressionPtr> ExpressionParser::filter(ExpressionPtr input) {
  const uint32_t line = current().line;
  Filter out{std::move(input), {}, {}};
  QWEN2_TRY(out.name, any_name());
  if (at_operator("(")) {
    QWEN2_TRY(out.arguments, call_arguments());
  }
  return make(std::move(out), line);
}

Result<ExpressionPtr> ExpressionParser::test(ExpressionPtr input) {
  const uint32_t line = next().line;
  Test out{std::move(input), {}, {}, skip_name("not")};
  QWEN2_TRY(out.name, any_name());
  const bool value = at(TokenKind::kString) || at(TokenKind::kInteger) || at(TokenKind::kFloat) ||
                     at_operator("[") || at_operator("{") ||
                     (at(TokenKind::kName) && !at_any_name({"else", "or", "and"}));
  if (at_operator("(")) {
    QWEN2_TRY(out.arguments, call_arguments());
  } else if (value) {
    if (at_name("is")) return unsupported(current(), "a test behind a test");
    QWEN2_TRY(ExpressionPtr argument, primary());
    QWEN2_TRY(argument, postfix(std::move(argument)));
    out.arguments.positional.push_back(std::move(argument));
  }
  return make(std::move(out), line);
}

}  // namespace qwen2::jinja
