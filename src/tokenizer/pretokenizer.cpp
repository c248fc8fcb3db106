#include "tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>

namespace qwen2 {
namespace {

constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Copies one escape (`\s`, `\p{L}`, `\r`) at `i`, rewriting white space; moves `i` behind it.
Status copy_escape(std::string_view pattern, size_t& i, bool in_class, std::string& out) {
  if (i + 1 >= pattern.size()) return fail(ErrorKind::kFormat, "the pattern ends in a backslash");
  const char c = pattern[i + 1];
  i += 2;
  if (c == 's') {
    out += in_class ? std::string(kWhiteSpace) : "[" + std::string(kWhiteSpace) + "]";
  } else if (c == 'S' && !in_class) {
    out += "[^" + std::string(kWhiteSpace) + "]";
  } else if (c == 'S') {
    return fail(ErrorKind::kUnsupported, "\\S inside a character class is not supported");
  } else {
    out += '\\';
    out += c;
  }
  return {};
}

}  // namespace

Result<std::string> pcre2_pattern(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  std::string folds;  // one flag for each open group: does it ignore case?
  for (size_t i = 0; i < pattern.size();) {
    const char c = pattern[i];
    const bool fold = !folds.empty() && folds.back() == 'i';
    if (c == '\\') {
      QWEN2_CHECK(copy_escape(pattern, i, in_class, out));
      continue;
    }
    if (!in_class && pattern.substr(i).starts_with("(?i:")) {
      folds += 'i';
      out += "(?:";
      i += 4;
      continue;
    }
    if (!in_class && c == '(') folds += fold ? 'i' : '-';
    if (!in_class && c == ')' && !folds.empty()) folds.pop_back();
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    if (fold && std::isalpha(static_cast<unsigned char>(c)) != 0) {
      const char upper = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      out += in_class ? std::string{lower, upper} : std::string{'[', lower, upper, ']'};
    } else {
      out += c;
    }
    ++i;
  }
  return out;
}

struct Pretokenizer::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Pretokenizer::Pretokenizer(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;
Pretokenizer::~Pretokenizer() = default;

Result<Pretokenizer> Pretokenizer::compile(std::string_view pattern) {
  QWEN2_TRY(const std::string translated, pcre2_pattern(pattern));
  int code = 0;
  size_t offset = 0;
  auto compiled = std::make_unique<Code>();
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr);
  if (compiled->code == nullptr) {
    std::array<unsigned char, 256> message{};
    pcre2_get_error_message(code, message.data(), message.size());
    return fail(ErrorKind::kFormat, "the pre-tokeniser's pattern does not compile: {}",
                reinterpret_cast<const char*>(message.data()));
  }
  pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);  // without JIT the interpreter runs it, slower
  return Pretokenizer(std::move(compiled));
}

Status Pretokenizer::split(std::string_view text, const std::function<void(std::string_view)>& piece) const {
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code_->code, nullptr), pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!match || !context) return fail(ErrorKind::kOutOfMemory, "cannot allocate a regular expression match");
  pcre2_set_match_limit(context.get(), UINT32_MAX);
  const size_t* bounds = pcre2_get_ovector_pointer(match.get());
  size_t position = 0;
  while (position < text.size()) {
    const int count = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                  position, PCRE2_NO_UTF_CHECK, match.get(), context.get());
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) return fail(ErrorKind::kInternal, "the pre-tokeniser failed with PCRE2 error {}", count);
    if (bounds[1] <= bounds[0]) break;  // an empty match would not move on
    if (bounds[0] > position) piece(text.substr(position, bounds[0] - position));
    piece(text.substr(bounds[0], bounds[1] - bounds[0]));
    position = bounds[1];
  }
  if (position < text.size()) piece(text.substr(position));
  return {};
}

}  // namespace qwen2
