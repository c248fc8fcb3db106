// A chat template in Jinja, as model files carry it: parsed once, rendered for each request.
// The language: https://jinja.palletsprojects.com/templates/; what Transformers adds:
// https://huggingface.co/docs/transformers/chat_templating_writing
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/value.h"
#include "tokenizer/marked_text.h"

namespace qwen2::jinja {

inline constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

class Template {
 public:
  // An error names the line and what is wrong or not supported there.
  static Result<Template> parse(std::string_view source);

  // The text for these variables. The template may refuse them (raise_exception), fail, or reach one of the
  // limits; the error then names the line. Thread-safe.
  [[nodiscard]] Result<MarkedText> render(std::vector<std::pair<std::string, Value>> variables,
                                          std::time_t now, const Limits& limits = {}) const;

 private:
  explicit Template(Body body) : body_(std::make_shared<const Body>(std::move(body))) {}

  std::shared_ptr<const Body> body_;
};

}  // namespace qwen2::jinja
