#include "tokenizer/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "tokenizer/utf8.h"

namespace qwen2::jinja {
namespace {

constexpr std::string_view kSpace = " \t\n\r\f\v";

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

// Lines end in \n, and the last line break of the template is dropped.
std::string normal_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else if (i + 1 >= source.size() || source[i + 1] != '\n') {
      out += '\n';
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

// The length of a number with digits of `allowed`, single underscores between them.
size_t digits_length(std::string_view text, std::string_view allowed) {
  size_t length = 0;
  while (length < text.size()) {
    const bool underscore = text[length] == '_' && length > 0;
    const size_t digit = length + (underscore ? 1 : 0);
    if (digit >= text.size() || allowed.find(text[digit]) == std::string_view::npos) break;
    length = digit + 1;
  }
  return length;
}

constexpr std::string_view kDecimal = "0123456789";

// The length of a float at the start of `text`, or 0: digits, then a fraction, an exponent or both.
size_t float_length(std::string_view text) {
  const size_t whole = digits_length(text, kDecimal);
  if (whole == 0) return 0;
  size_t length = whole;
  if (length < text.size() && text[length] == '.') {
    const size_t fraction = digits_length(text.substr(length + 1), kDecimal);
    if (fraction > 0) length += 1 + fraction;
  }
  if (length < text.size() && (text[length] == 'e' || text[length] == 'E')) {
    size_t exponent = length + 1;
    if (exponent < text.size() && (text[exponent] == '+' || text[exponent] == '-')) ++exponent;
    const size_t digits = digits_length(text.substr(exponent), kDecimal);
    if (digits > 0) return exponent + digits;
  }
  return length > whole ? length : 0;
}

size_t integer_length(std::string_view text) {
  struct Base {
    std::string_view prefix, digits;
  };
  static constexpr std::array kBases = {Base{"0b", "01"},
                                        Base{"0B", "01"},
                                        Base{"0o", "01234567"},
                                        Base{"0O", "01234567"},
                                        Base{"0x", "0123456789abcdefABCDEF"},
                                        Base{"0X", "0123456789abcdefABCDEF"}};
  for (const Base& base : kBases) {
    if (!text.starts_with(base.prefix)) continue;
    const size_t digits = digits_length(text.substr(2), base.digits);
    if (digits > 0) return 2 + digits;
  }
  return digits_length(text, text.starts_with('0') ? "0" : kDecimal);
}

std::string without_underscores(std::string_view text) {
  std::string out(text);
  std::erase(out, '_');
  return out;
}

// Python's escapes. `\N{NAME}` is refused; an unknown escape stays as it is written.
Result<std::string> unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 >= text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
      out += kTo[known];
      continue;
    }
    if (c == '\n') continue;
    const bool octal = c >= '0' && c <= '7';
    if (!octal && c != 'x' && c != 'u' && c != 'U') {
      if (c == 'N')
        return fail(ErrorKind::kUnsupported, "the escape \\N of a character's name is not supported");
      out += '\\';
      out += c;
      continue;
    }
    const size_t wanted = octal ? 3 : c == 'x' ? 2 : c == 'u' ? 4 : 8;
    const std::string_view digits = octal ? "01234567" : "0123456789abcdefABCDEF";
    const std::string_view rest = text.substr(octal ? i : i + 1);
    const size_t length = std::min(rest.find_first_not_of(digits), std::min(rest.size(), wanted));
    if (!octal && length < wanted)
      return fail(ErrorKind::kFormat, "the escape \\{} needs {} hexadecimal digits", c, wanted);
    const unsigned long code = std::stoul(std::string(rest.substr(0, length)), nullptr, octal ? 8 : 16);
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
      return fail(ErrorKind::kFormat, "the escape \\{}{} is no character", c, rest.substr(0, length));
    }
    append_utf8(out, static_cast<char32_t>(code));
    i += octal ? length - 1 : length;
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  Result<std::vector<Token>> run() {
    while (position_ < source_.size()) {
      auto status = text_and_tag();
      if (!status) return within(fmt::format("line {}", line_), status.error());
    }
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  [[nodiscard]] std::string_view rest() const { return source_.substr(position_); }

  void advance(size_t count) {
    line_ += static_cast<uint32_t>(std::ranges::count(source_.substr(position_, count), '\n'));
    position_ += count;
  }

  void skip_space() { advance(std::min(rest().find_first_not_of(kSpace), rest().size())); }

  // Text up to the next {{, {% or {#, and then that tag.
  Status text_and_tag() {
    const auto opens_tag = [&](size_t at) {
      return at + 1 < source_.size() &&
             std::string_view("{%#").find(source_[at + 1]) != std::string_view::npos;
    };
    size_t open = source_.find('{', position_);
    while (open != std::string_view::npos && !opens_tag(open)) open = source_.find('{', open + 1);
    if (open == std::string_view::npos) {
      add_text(rest());
      advance(rest().size());
      return {};
    }
    const char kind = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    add_text(text_before_tag(source_.substr(position_, open - position_), sign, kind != '{'));
    advance(open - position_ + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return comment();
    if (kind == '{') return tag(TokenKind::kPrintBegin, TokenKind::kPrintEnd, "}}");
    if (is_raw()) return raw();
    return tag(TokenKind::kBlockBegin, TokenKind::kBlockEnd, "%}");
  }

  void add_text(std::string_view text) {
    if (!text.empty()) tokens_.push_back({TokenKind::kText, std::string(text), line_});
  }

  // `-` strips white space before a tag; a block or a comment strips what stands before it on its line.
  [[nodiscard]] std::string_view text_before_tag(std::string_view text, char sign, bool strips_line) const {
    if (sign == '-') return text.substr(0, text.find_last_not_of(kSpace) + 1);
    if (sign == '+' || !strips_line) return text;
    const size_t newline = text.rfind('\n');
    if (newline == std::string_view::npos && !at_line_start_) return text;
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    return text.find_first_not_of(kSpace, line) == std::string_view::npos ? text.substr(0, line) : text;
  }

  // Behind a tag's end: `-` strips white space, a block or a comment the line break that follows it.
  void behind_tag(char sign, bool trims_line_break) {
    const size_t before = position_;
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && trims_line_break && rest().starts_with('\n')) {
      advance(1);
    }
    at_line_start_ = position_ > before && source_[position_ - 1] == '\n';
  }

  Status comment() {
    const size_t end = rest().find("#}");
    if (end == std::string_view::npos) return fail(ErrorKind::kFormat, "the comment has no end #}}");
    const char sign = end > 0 ? rest()[end - 1] : '\0';
    advance(end + 2);
    behind_tag(sign, true);
    return {};
  }

  // Is this `{% raw %}`? Stands behind its `{%`.
  [[nodiscard]] bool is_raw() const {
    const std::string_view body = rest();
    const size_t name = std::min(body.find_first_not_of(kSpace), body.size());
    if (!body.substr(name).starts_with("raw")) return false;
    const size_t end = std::min(body.find_first_not_of(kSpace, name + 3), body.size());
    return body.substr(end).starts_with("%}") || body.substr(end).starts_with("-%}");
  }

  Status raw() {
    const size_t open = rest().find("%}");
    const char sign = rest()[open - 1];
    advance(open + 2);
    if (sign == '-') skip_space();
    at_line_start_ = sign == '-' && source_[position_ - 1] == '\n';
    for (size_t end = rest().find("{%"); end != std::string_view::npos; end = rest().find("{%", end + 2)) {
      size_t at = end + 2;
      const char before = at < rest().size() ? rest()[at] : '\0';
      if (before == '-' || before == '+') ++at;
      at = std::min(rest().find_first_not_of(kSpace, at), rest().size());
      if (!rest().substr(at).starts_with("endraw")) continue;
      at = std::min(rest().find_first_not_of(kSpace, at + 6), rest().size());
      char after = '\0';
      if (at < rest().size() && (rest()[at] == '-' || rest()[at] == '+')) after = rest()[at++];
      if (!rest().substr(at).starts_with("%}")) continue;
      add_text(text_before_tag(rest().substr(0, end), before, true));
      advance(at + 2);
      behind_tag(after, true);
      return {};
    }
    return fail(ErrorKind::kFormat, "the raw block has no {{% endraw %}}");
  }

  Status tag(TokenKind begin, TokenKind end, std::string_view closing) {
    const uint32_t line = line_;
    tokens_.push_back({begin, "", line_});
    open_brackets_.clear();
    while (true) {
      skip_space();
      if (position_ >= source_.size()) {
        return fail(ErrorKind::kFormat, "the tag that begins in line {} has no end {}", line, closing);
      }
      if (open_brackets_.empty() && tag_end(end, closing)) return {};
      QWEN2_CHECK(expression_token());
    }
  }

  // Inside of brackets, `}}` closes two dicts.
  bool tag_end(TokenKind end, std::string_view closing) {
    const char sign = rest().front();
    const bool block = end == TokenKind::kBlockEnd;
    const bool is_signed = sign == '-' || (sign == '+' && block);
    if (!rest().substr(is_signed ? 1 : 0).starts_with(closing)) return false;
    tokens_.push_back({end, "", line_});
    advance(closing.size() + (is_signed ? 1 : 0));
    behind_tag(is_signed ? sign : '\0', block);
    return true;
  }

  Status expression_token() {
    const char c = rest().front();
    if (is_digit(c)) return number();
    if (is_name_start(c)) {
      const auto end = std::ranges::find_if_not(rest(), is_name);
      return take(TokenKind::kName, static_cast<size_t>(end - rest().begin()));
    }
    if (c == '\'' || c == '"') return string(c);
    return operator_token();
  }

  Status take(TokenKind kind, size_t length) {
    tokens_.push_back({kind, std::string(rest().substr(0, length)), line_});
    advance(length);
    return {};
  }

  Status number() {
    const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
    const size_t real = after_dot ? 0 : float_length(rest());
    QWEN2_CHECK(
        take(real > 0 ? TokenKind::kFloat : TokenKind::kInteger, real > 0 ? real : integer_length(rest())));
    tokens_.back().text = without_underscores(tokens_.back().text);
    return {};
  }

  Status string(char quote) {
    size_t end = 1;
    while (end < rest().size() && rest()[end] != quote) end += rest()[end] == '\\' ? 2 : 1;
    if (end >= rest().size()) return fail(ErrorKind::kFormat, "a string has no closing {}", quote);
    QWEN2_TRY(std::string text, unescape(rest().substr(1, end - 1)));
    tokens_.push_back({TokenKind::kString, std::move(text), line_});
    advance(end + 1);
    return {};
  }

  Status operator_token() {
    static constexpr std::array<std::string_view, 25> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};
    const auto found =
        std::ranges::find_if(kOperators, [&](std::string_view o) { return rest().starts_with(o); });
    if (found == kOperators.end()) {
      size_t end = 0;
      next_code_point(rest(), end);
      return fail(ErrorKind::kFormat, "unexpected character '{}'", rest().substr(0, end));
    }
    static constexpr std::string_view kOpening = "([{";
    static constexpr std::string_view kClosing = ")]}";
    const char c = found->front();
    if (kOpening.find(c) != std::string_view::npos) open_brackets_ += kClosing[kOpening.find(c)];
    if (kClosing.find(c) != std::string_view::npos) {
      if (open_brackets_.empty() || open_brackets_.back() != c)
        return fail(ErrorKind::kFormat, "unexpected '{}'", c);
      open_brackets_.pop_back();
    }
    return take(TokenKind::kOperator, found->size());
  }

  std::string_view source_;
  size_t position_ = 0;
  uint32_t line_ = 1;
  bool at_line_start_ = true;  // does the text behind the last tag begin a line?
  std::string open_brackets_;  // what closes them, innermost last
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> tokenize(std::string_view source) {
  const std::string text = normal_lines(valid_utf8(source));
  return Lexer(text).run();
}

}  // namespace qwen2::jinja
