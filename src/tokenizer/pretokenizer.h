// Splits text into the pieces that BPE works on, by a tokenizer.json pattern.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

// Rewrites a pattern of Hugging Face tokenizers for PCRE2: \s and \S become explicit classes of Unicode's
// White_Space (PCRE2's own \s also takes U+180E), and (?i:...) folds ASCII letters only.
Result<std::string> pcre2_pattern(std::string_view pattern);

class Pretokenizer {
 public:
  static Result<Pretokenizer> compile(std::string_view pattern);

  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;
  ~Pretokenizer();

  // Calls `piece` for every match and every stretch between matches, in order. `text` is valid UTF-8.
  // Thread-safe.
  Status split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

 private:
  struct Code;
  explicit Pretokenizer(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

}  // namespace qwen2
