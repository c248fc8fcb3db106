// The syntax tree of a template. Every node knows the line it begins in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tokenizer/jinja/value.h"

namespace qwen2::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<const Expression>;
using Body = std::vector<Statement>;

enum class UnaryOperator { kNot, kMinus, kPlus };
enum class BinaryOperator { kAnd, kOr, kAdd, kSubtract, kMultiply, kDivide, kFloorDivide, kModulo, kPower };
enum class Comparison { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

struct Literal {
  Value value;
};
struct Name {
  std::string name;
};
struct Sequence {
  std::vector<ExpressionPtr> items;
  bool tuple;
};
struct DictLiteral {
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> items;
};
struct Unary {
  UnaryOperator op;
  ExpressionPtr operand;
};
struct Binary {
  BinaryOperator op;
  ExpressionPtr left, right;
};
// a < b < c holds where every neighbour does.
struct Compare {
  ExpressionPtr first;
  std::vector<std::pair<Comparison, ExpressionPtr>> rest;
};
struct Concatenation {
  std::vector<ExpressionPtr> parts;
};
// `then if condition else otherwise`; without `otherwise` undefined.
struct Conditional {
  ExpressionPtr condition, then, otherwise;
};
struct Attribute {
  ExpressionPtr object;
  std::string name;
};
struct Subscript {
  ExpressionPtr object, index;
};
struct Slice {
  ExpressionPtr object, begin, end, step;  // those left out are null
};
struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};
struct Call {
  ExpressionPtr function;
  CallArguments arguments;
};
// Without `input` in {% filter %} and {% set %} blocks, whose body it is.
struct Filter {
  ExpressionPtr input;
  std::string name;
  CallArguments arguments;
};
struct Test {
  ExpressionPtr input;
  std::string name;
  CallArguments arguments;
  bool negated;
};

struct Expression {
  std::variant<Literal, Name, Sequence, DictLiteral, Unary, Binary, Compare, Concatenation, Conditional,
               Attribute, Subscript, Slice, Call, Filter, Test>
      node;
  uint32_t line;
};

// What {% set %} and {% for %} assign to: names, a tuple of them, or an attribute of a namespace.
struct Target {
  std::string name;
  std::string attribute;      // empty: the name itself
  std::vector<Target> tuple;  // not empty: its parts
};

struct Text {
  std::string text;
};
struct Print {
  ExpressionPtr value;
};
struct If {
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  std::vector<Branch> branches;
  Body otherwise;
};
struct For {
  Target target;
  ExpressionPtr iterable, condition;  // `condition` may be null
  Body body, otherwise;
};
struct Set {
  Target target;
  ExpressionPtr value;
};
struct SetBlock {
  Target target;
  ExpressionPtr filter;  // null without one
  Body body;
};
struct Signature {
  struct Parameter {
    std::string name;
    ExpressionPtr fallback;  // null without one
  };
  std::vector<Parameter> parameters;
};
// Shared with the macro's value and with the `caller` of a call block.
struct MacroDefinition {
  std::string name;
  Signature signature;
  Body body;
  bool takes_more;    // reads `varargs`: further positional arguments
  bool takes_named;   // reads `kwargs`: further named ones
  bool takes_caller;  // reads `caller`: the body of a call block
};
struct DefineMacro {
  MacroDefinition macro;
};
struct CallBlock {
  ExpressionPtr call;
  MacroDefinition caller;
};
struct FilterBlock {
  ExpressionPtr filter;
  Body body;
};
// {% with %} and {% generation %}: a scope of its own.
struct With {
  std::vector<std::pair<Target, ExpressionPtr>> values;
  Body body;
};
struct Break {};
struct Continue {};

struct Statement {
  std::variant<Text, Print, If, For, Set, SetBlock, DefineMacro, CallBlock, FilterBlock, With, Break,
               Continue>
      node;
  uint32_t line;
};

}  // namespace qwen2::jinja
