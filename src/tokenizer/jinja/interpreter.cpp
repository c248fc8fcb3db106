#include "tokenizer/jinja/interpreter.h"

#include <algorithm>
#include <limits>

namespace qwen2::jinja {
namespace {

constexpr uint64_t kStepsBetweenLooks = 4096;  // at the clock

}  // namespace

Interpreter::Interpreter(const Limits& limits, Scope& globals)
    : limits_(limits), deadline_(std::chrono::steady_clock::now() + limits.time), scope_(&globals) {}

Status Interpreter::charge(uint64_t steps, size_t bytes) {
  steps_ += steps;
  bytes_ += bytes;
  if (steps_ > limits_.steps) return fail(ErrorKind::kInvalidArgument, "more than {} steps", limits_.steps);
  if (bytes_ > limits_.bytes)
    return fail(ErrorKind::kInvalidArgument, "more than {} bytes of values", limits_.bytes);
  if (steps_ < next_look_) return {};
  next_look_ = steps_ + kStepsBetweenLooks;
  if (std::chrono::steady_clock::now() < deadline_) return {};
  return fail(ErrorKind::kInvalidArgument, "more than {} ms", limits_.time.count());
}

Status Interpreter::charge_for(const Value& value) {
  return charge(extent_of(value).weight);
}

Result<Value> Interpreter::make_text(MarkedText text) {
  QWEN2_CHECK(
      charge(1 + text.size() / 64, text.size() + text.from_messages().size() * sizeof(MarkedText::Range)));
  return Value(std::move(text));
}

Result<Value> Interpreter::make_list(std::vector<Value> items, ListKind kind) {
  List list(std::move(items), kind);
  QWEN2_CHECK(charge(list.items.size(), list.items.size() * sizeof(Value)));
  if (list.extent.depth > kMaxValueDepth) {
    return fail(ErrorKind::kInvalidArgument, "values nested more than {} levels deep", kMaxValueDepth);
  }
  return Value(std::move(list));
}

Result<Value> Interpreter::make_dict(std::vector<std::pair<Value, Value>> items) {
  Dict dict(std::move(items));
  QWEN2_CHECK(charge(dict.items.size(), dict.items.size() * 2 * sizeof(Value)));
  if (dict.extent.depth > kMaxValueDepth) {
    return fail(ErrorKind::kInvalidArgument, "values nested more than {} levels deep", kMaxValueDepth);
  }
  return Value(std::move(dict));
}

Result<Value> Interpreter::make_namespace(std::vector<std::pair<std::string, Value>> values) {
  QWEN2_CHECK(charge(1, 256));
  return Value(Value::Data(&namespaces_.emplace_back(Namespace{std::move(values)})));
}

std::unexpected<Error> Interpreter::located(uint32_t line, const Error& error) {
  if (std::exchange(located_, true)) return std::unexpected(error);
  return within(fmt::format("line {}", line), error);
}

Result<MarkedText> Interpreter::run(const Body& body) {
  MarkedText out;
  out_ = &out;
  QWEN2_CHECK(execute(body));
  return out;
}

// Runs `work` with a new scope; one that a macro needs is kept.
template <class Work>
auto Interpreter::in_scope(Scope* parent, Work work) {
  auto scope = std::make_unique<Scope>(Scope{parent, {}});
  Scope* const outer = std::exchange(scope_, scope.get());
  auto result = work();
  scope_ = outer;
  if (scope->captured) captured_.push_back(std::move(scope));
  return result;
}

Result<MarkedText> Interpreter::capture(const Body& body, Scope* parent) {
  MarkedText text;
  MarkedText* const outer = std::exchange(out_, &text);
  const auto done = in_scope(parent, [&] { return execute(body); });
  out_ = outer;
  if (!done) return std::unexpected(done.error());
  return text;
}

const Value* Interpreter::find(std::string_view name) const {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto found = std::ranges::find(scope->values, name, &std::pair<std::string, Value>::first);
    if (found != scope->values.end()) return &found->second;
  }
  return nullptr;
}

void Interpreter::set(std::string_view name, Value value) {
  const auto found = std::ranges::find(scope_->values, name, &std::pair<std::string, Value>::first);
  if (found != scope_->values.end()) {
    found->second = std::move(value);
  } else {
    scope_->values.emplace_back(name, std::move(value));
  }
}

Status Interpreter::assign(const Target& target, const Value& value) {
  if (!target.tuple.empty()) {
    QWEN2_TRY(const std::vector<Value> parts, items(value));
    if (parts.size() != target.tuple.size()) {
      return fail(ErrorKind::kInvalidArgument, "{} values cannot be assigned to {} names", parts.size(),
                  target.tuple.size());
    }
    for (size_t i = 0; i < parts.size(); ++i) QWEN2_CHECK(assign(target.tuple[i], parts[i]));
    return {};
  }
  if (target.attribute.empty()) {
    set(target.name, value);
    return {};
  }
  const Value* object = find(target.name);
  Namespace* const* held = object == nullptr ? nullptr : object->get<Namespace*>();
  if (held == nullptr) {
    return fail(ErrorKind::kInvalidArgument, "'{}' is no namespace, so its attributes cannot be set",
                target.name);
  }
  auto& values = (*held)->values;
  const auto found = std::ranges::find(values, target.attribute, &std::pair<std::string, Value>::first);
  if (found != values.end()) {
    found->second = value;
  } else {
    values.emplace_back(target.attribute, value);
  }
  return {};
}

const Macro* Interpreter::define(const MacroDefinition& definition) {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) scope->captured = true;
  return &macros_.emplace_back(Macro{&definition, scope_});
}

Result<Interpreter::Flow> Interpreter::execute(const Body& body) {
  const Nested nested(depth_);
  if (depth_ > kMaxDepth) return fail(ErrorKind::kInvalidArgument, "more than {} levels deep", kMaxDepth);
  for (const Statement& statement : body) {
    const Status charged = charge(1);
    if (!charged) return located(statement.line, charged.error());
    auto flow = std::visit([&](const auto& node) { return execute(node); }, statement.node);
    if (!flow) return located(statement.line, flow.error());
    if (*flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const Text& node) {
  QWEN2_CHECK(charge(node.text.size() / 64, node.text.size()));
  out_->append(node.text, false);
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const Print& node) {
  QWEN2_TRY(const Value value, evaluate(*node.value));
  QWEN2_CHECK(charge_for(value));
  const MarkedText text = to_text(value);
  QWEN2_CHECK(charge(text.size() / 64, text.size()));
  out_->append(text);
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const If& node) {
  for (const If::Branch& branch : node.branches) {
    QWEN2_TRY(const Value condition, evaluate(*branch.condition));
    if (is_true(condition)) return execute(branch.body);
  }
  return execute(node.otherwise);
}

Status read_items(Loop& loop, size_t count) {
  while (loop.items.size() < count && loop.read < loop.source.size()) {
    const Value& item = loop.source[loop.read++];
    bool taken = true;
    if (loop.fulfils) {
      QWEN2_TRY(taken, loop.fulfils(item));
    }
    if (taken) loop.items.push_back(item);
  }
  return {};
}

Result<Interpreter::Flow> Interpreter::execute(const For& node) {
  QWEN2_TRY(const Value iterable, evaluate(*node.iterable));
  const auto loop = std::make_shared<Loop>();
  QWEN2_TRY(loop->source, items(iterable));
  loop->depth = loops_;
  if (node.condition != nullptr) {
    // The condition sees the loop's names, and none of the body's.
    loop->fulfils = [this, &node, scope = scope_](const Value& item) {
      return in_scope(scope, [&]() -> Result<bool> {
        QWEN2_CHECK(assign(node.target, item));
        QWEN2_TRY(const Value value, evaluate(*node.condition));
        return is_true(value);
      });
    };
  }
  ++loops_;
  const Status done = run_loop(node, loop);
  --loops_;
  // What it watched may hold the loop itself.
  loop->ended = true;
  loop->watched.reset();
  loop->fulfils = nullptr;
  loop->read = loop->source.size();
  QWEN2_CHECK(done);
  if (!loop->items.empty()) return Flow::kNext;
  return in_scope(scope_, [&] { return execute(node.otherwise); });
}

Status Interpreter::run_loop(const For& node, const std::shared_ptr<Loop>& loop) {
  for (;; ++loop->index) {
    QWEN2_CHECK(read_items(*loop, loop->index + 1));
    if (loop->index >= loop->items.size()) return {};
    QWEN2_CHECK(charge(1, sizeof(Scope)));
    QWEN2_TRY(const Flow flow, in_scope(scope_, [&]() -> Result<Flow> {
                QWEN2_CHECK(assign(node.target, loop->items[loop->index]));
                set("loop", Value(Value::Data(loop)));
                return execute(node.body);
              }));
    if (flow == Flow::kBreak) return {};
  }
}

Result<Interpreter::Flow> Interpreter::execute(const Set& node) {
  QWEN2_TRY(const Value value, evaluate(*node.value));
  QWEN2_CHECK(assign(node.target, value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const SetBlock& node) {
  QWEN2_TRY(MarkedText text, capture(node.body, scope_));
  QWEN2_TRY(Value value, make_text(std::move(text)));
  if (node.filter != nullptr) {
    QWEN2_TRY(value, apply(*node.filter, value));
  }
  QWEN2_CHECK(assign(node.target, value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const DefineMacro& node) {
  QWEN2_CHECK(charge(1, sizeof(Macro) + sizeof(Scope)));
  set(node.macro.name, Value(Value::Data(define(node.macro))));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const CallBlock& node) {
  QWEN2_CHECK(charge(1, sizeof(Macro) + sizeof(Scope)));
  const auto& call_node = std::get<Call>(node.call->node);
  QWEN2_TRY(const Value function, evaluate(*call_node.function));
  QWEN2_TRY(Arguments arguments, evaluate(call_node.arguments));
  arguments.named.emplace_back("caller", Value(Value::Data(define(node.caller))));
  QWEN2_TRY(const Value value, call(function, arguments));
  out_->append(to_text(value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const FilterBlock& node) {
  QWEN2_TRY(MarkedText text, capture(node.body, scope_));
  QWEN2_TRY(Value input, make_text(std::move(text)));
  QWEN2_TRY(const Value value, apply(*node.filter, std::move(input)));
  out_->append(to_text(value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::execute(const With& node) {
  std::vector<Value> values;  // evaluated outside of the new scope
  for (const auto& [target, expression] : node.values) {
    QWEN2_TRY(Value value, evaluate(*expression));
    values.push_back(std::move(value));
  }
  return in_scope(scope_, [&]() -> Result<Flow> {
    for (size_t i = 0; i < values.size(); ++i) QWEN2_CHECK(assign(node.values[i].first, values[i]));
    return execute(node.body);
  });
}

Result<Value> Interpreter::call(const Value& function, const Arguments& arguments) {
  QWEN2_CHECK(charge(1));
  if (const auto* built_in = function.get<std::shared_ptr<const Function>>())
    return (*built_in)->call(*this, arguments);
  if (const Macro* const* macro = function.get<const Macro*>()) return call_macro(**macro, arguments);
  if (const Undefined* missing = function.get<Undefined>())
    return fail(ErrorKind::kInvalidArgument, "{}", missing->what);
  return fail(ErrorKind::kInvalidArgument, "a {} cannot be called", type_name(function));
}

Result<Value> Interpreter::call_macro(const Macro& macro, const Arguments& arguments) {
  const Nested nested(depth_);
  if (depth_ > kMaxDepth) return fail(ErrorKind::kInvalidArgument, "more than {} levels deep", kMaxDepth);
  QWEN2_CHECK(charge(1, sizeof(Scope)));
  MarkedText text;
  MarkedText* const outer = std::exchange(out_, &text);
  const uint32_t loops = std::exchange(loops_, 0);
  const auto done = in_scope(macro.scope, [&]() -> Result<Flow> {
    QWEN2_CHECK(bind(macro, arguments));
    return execute(macro.definition->body);
  });
  out_ = outer;
  loops_ = loops;
  if (!done) return std::unexpected(done.error());
  return make_text(std::move(text));
}

Status Interpreter::bind(const Macro& macro, const Arguments& arguments) {
  const MacroDefinition& definition = *macro.definition;
  const auto& parameters = definition.signature.parameters;
  const size_t count = std::min(parameters.size(), arguments.positional.size());
  if (arguments.positional.size() > count && !definition.takes_more) {
    return fail(ErrorKind::kInvalidArgument, "macro '{}' takes {} arguments, not {}", definition.name,
                parameters.size(), arguments.positional.size());
  }
  std::vector<std::pair<Value, Value>> more;
  std::vector<const Value*> values(parameters.size());
  for (size_t i = 0; i < count; ++i) values[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::ranges::find(parameters, name, &Signature::Parameter::name);
    if (found != parameters.end()) {
      const Value*& slot = values[static_cast<size_t>(found - parameters.begin())];
      if (slot != nullptr)
        return fail(ErrorKind::kInvalidArgument, "macro '{}' got '{}' twice", definition.name, name);
      slot = &value;
    } else if (name == "caller" && definition.takes_caller) {
      set("caller", value);
    } else if (definition.takes_named) {
      more.emplace_back(Value::own(name), value);
    } else {
      return fail(ErrorKind::kInvalidArgument, "macro '{}' takes no argument '{}'", definition.name, name);
    }
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    Value value = Value::undefined(fmt::format("parameter '{}' was not given", parameters[i].name));
    if (values[i] != nullptr) {
      value = *values[i];
    } else if (parameters[i].fallback != nullptr) {
      QWEN2_TRY(value, evaluate(*parameters[i].fallback));
    }
    set(parameters[i].name, std::move(value));
  }
  if (definition.takes_more) {
    QWEN2_TRY(Value rest, make_list({arguments.positional.begin() + static_cast<ptrdiff_t>(count),
                                     arguments.positional.end()},
                                    ListKind::kTuple));
    set("varargs", std::move(rest));
  }
  if (definition.takes_named) {
    QWEN2_TRY(Value rest, make_dict(std::move(more)));
    set("kwargs", std::move(rest));
  }
  if (definition.takes_caller &&
      std::ranges::find(scope_->values, "caller", &std::pair<std::string, Value>::first) ==
          scope_->values.end()) {
    set("caller", Value::undefined("no caller is defined"));
  }
  return {};
}

}  // namespace qwen2::jinja
