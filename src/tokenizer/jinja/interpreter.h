// Runs a parsed template: scopes, statements, expressions. Templates come with model files and messages with
// requests, so neither is trusted: steps, bytes, depth and time are bounded.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/syntax.h"
#include "tokenizer/jinja/value.h"
#include "tokenizer/marked_text.h"

namespace qwen2::jinja {

struct Limits {
  uint64_t steps = 20'000'000;      // values and 64 byte pieces of text that are touched
  size_t bytes = size_t{64} << 20;  // made by all operations together, beyond 32 times what is put in
  std::chrono::milliseconds time{5'000};
};

// Calls, and expressions and statements within each other while they run.
inline constexpr uint32_t kMaxDepth = 400;

struct Scope {
  Scope* parent;
  std::vector<std::pair<std::string, Value>> values;
  bool captured = false;  // a macro was defined in it, so it lives as long as the render
};

struct Macro {
  const MacroDefinition* definition;
  Scope* scope;  // where it was defined
};

// The only value that a template can change.
struct Namespace {
  std::vector<std::pair<std::string, Value>> values;
};

// A {% for %} that runs. Items behind the current one are read when `loop` is asked about them.
struct Loop {
  std::vector<Value> source;                          // what is iterated over
  size_t read = 0;                                    // of `source`
  std::vector<Value> items;                           // those read that fulfil the loop's condition
  size_t index = 0;                                   // of the current one
  std::function<Result<bool>(const Value&)> fulfils;  // empty: every item does
  std::optional<std::vector<Value>> watched;          // what loop.changed() was called with last
  bool ended = false;                                 // kept by the template for longer than it ran
  uint32_t depth = 0;                                 // loops around it
};

class Interpreter {
 public:
  Interpreter(const Limits& limits, Scope& globals);

  Result<MarkedText> run(const Body& body);

  // What functions, filters and tests use.

  // Counts work of `steps` values, and `bytes` that are made. An error where a limit is reached.
  Status charge(uint64_t steps, size_t bytes = 0);
  Status charge_for(const Value& value);
  Result<Value> call(const Value& function, const Arguments& arguments);
  Result<Value> filter(std::string_view name, const Value& input, const Arguments& arguments);
  Result<bool> test(std::string_view name, const Value& input, const Arguments& arguments);
  // `object.name`: a method, else the entry of that name.
  Result<Value> attribute(const Value& object, std::string_view name);
  // `object[index]`: the entry, else a method.
  Result<Value> subscript(const Value& object, const Value& index);
  // What a loop over `value` reads, in order. Reads a generator up.
  Result<std::vector<Value>> items(const Value& value);
  Result<Value> make_text(MarkedText text);
  Result<Value> make_list(std::vector<Value> items, ListKind kind = ListKind::kList);
  Result<Value> make_dict(std::vector<std::pair<Value, Value>> items);
  Result<Value> make_namespace(std::vector<std::pair<std::string, Value>> values);

 private:
  enum class Flow { kNext, kBreak, kContinue };

  // One level of recursion.
  class Nested {
   public:
    explicit Nested(uint32_t& depth) : depth_(&depth) { ++depth; }
    ~Nested() { --*depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    uint32_t* depth_;
  };

  Result<Flow> execute(const Body& body);
  Result<Flow> execute(const Text& node);
  Result<Flow> execute(const Print& node);
  Result<Flow> execute(const If& node);
  Result<Flow> execute(const For& node);
  Result<Flow> execute(const Set& node);
  Result<Flow> execute(const SetBlock& node);
  Result<Flow> execute(const DefineMacro& node);
  Result<Flow> execute(const CallBlock& node);
  Result<Flow> execute(const FilterBlock& node);
  Result<Flow> execute(const With& node);
  static Result<Flow> execute(const Break&) { return Flow::kBreak; }
  static Result<Flow> execute(const Continue&) { return Flow::kContinue; }

  Result<Value> evaluate(const Expression& expression);
  static Result<Value> evaluate(const Literal& node) { return node.value; }
  Result<Value> evaluate(const Name& node);
  Result<Value> evaluate(const Sequence& node);
  Result<Value> evaluate(const DictLiteral& node);
  Result<Value> evaluate(const Unary& node);
  Result<Value> evaluate(const Binary& node);
  Result<Value> evaluate(const Compare& node);
  Result<Value> evaluate(const Concatenation& node);
  Result<Value> evaluate(const Conditional& node);
  Result<Value> evaluate(const Attribute& node);
  Result<Value> evaluate(const Subscript& node);
  Result<Value> evaluate(const Slice& node);
  Result<Value> evaluate(const Call& node);
  Result<Value> evaluate(const Filter& node);
  Result<Value> evaluate(const Test& node);

  Result<Arguments> evaluate(const CallArguments& arguments);
  // A filter, or a chain of them, applied to a block's text.
  Result<Value> apply(const Expression& filter, Value input);
  Result<bool> compare(Comparison op, const Value& a, const Value& b);
  Result<Value> call_macro(const Macro& macro, const Arguments& arguments);
  Status bind(const Macro& macro, const Arguments& arguments);
  Status run_loop(const For& node, const std::shared_ptr<Loop>& loop);
  Status assign(const Target& target, const Value& value);
  void set(std::string_view name, Value value);
  [[nodiscard]] const Value* find(std::string_view name) const;
  const Macro* define(const MacroDefinition& definition);
  // What `body` prints, in a scope of its own.
  Result<MarkedText> capture(const Body& body, Scope* parent);
  // The error with the line where it came up.
  std::unexpected<Error> located(uint32_t line, const Error& error);

  template <class Work>
  auto in_scope(Scope* parent, Work work);

  Limits limits_;
  std::chrono::steady_clock::time_point deadline_;
  uint64_t steps_ = 0;
  uint64_t next_look_ = 0;  // at the clock, in steps
  size_t bytes_ = 0;
  uint32_t depth_ = 0;
  uint32_t loops_ = 0;
  bool located_ = false;  // the error on its way out names its line

  Scope* scope_;
  MarkedText* out_ = nullptr;
  std::vector<std::unique_ptr<Scope>> captured_;
  std::deque<Macro> macros_;
  std::deque<Namespace> namespaces_;
};

// Reads items until there are `count`, or all.
Status read_items(Loop& loop, size_t count);

}  // namespace qwen2::jinja
