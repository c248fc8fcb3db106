#include "tokenizer/jinja/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string>

#include "tokenizer/utf8.h"

namespace qwen2::jinja {
namespace {

enum class Case { kUpper, kLower, kTitle };

utf8proc_int32_t number(char32_t c) {
  return static_cast<utf8proc_int32_t>(c);
}
utf8proc_category_t category(char32_t c) {
  return utf8proc_category(number(c));
}

bool is_cased(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT;
}

// Characters that become several have no simple mapping; their case folding has the letters.
std::u32string folded(char32_t c) {
  std::array<utf8proc_int32_t, 8> out{};
  int boundary = 0;
  const auto count = utf8proc_decompose_char(number(c), out.data(), static_cast<utf8proc_ssize_t>(out.size()),
                                             UTF8PROC_CASEFOLD, &boundary);
  std::u32string text;
  for (utf8proc_ssize_t i = 0; i < count && i < static_cast<utf8proc_ssize_t>(out.size()); ++i) {
    text += static_cast<char32_t>(out[static_cast<size_t>(i)]);
  }
  return text;
}

// Full case mapping: German sharp s becomes two letters.
std::u32string mapped(char32_t c, Case to) {
  if (to == Case::kLower) {
    if (c == 0x130) return U"i̇";
    return {static_cast<char32_t>(utf8proc_tolower(number(c)))};
  }
  if (to == Case::kTitle && c == U'ß') return U"Ss";  // utf8proc has one capital letter for it
  const utf8proc_category_t kind = category(c);
  const std::u32string fold = kind == UTF8PROC_CATEGORY_LU ? std::u32string() : folded(c);
  const auto simple =
      static_cast<char32_t>(to == Case::kUpper ? utf8proc_toupper(number(c)) : utf8proc_totitle(number(c)));
  if (fold.size() < 2 || (to == Case::kTitle && simple != c)) return {simple};
  if (to == Case::kTitle && kind == UTF8PROC_CATEGORY_LT) return {c};
  std::u32string out;
  for (const char32_t letter : fold) {
    const bool first = out.empty();
    if (to == Case::kUpper) {
      out += static_cast<char32_t>(utf8proc_toupper(number(letter)));
    } else {
      out += static_cast<char32_t>(first ? utf8proc_totitle(number(letter)) : number(letter));
    }
  }
  return out;
}

struct Character {
  char32_t code;
  size_t begin, end;
};

std::vector<Character> characters(const MarkedText& text) {
  std::vector<Character> out;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = next_code_point(text.text(), i);
    out.push_back({c, begin, i});
  }
  return out;
}

// Final sigma: behind a letter and before none. Marks between them do not count.
bool is_final_sigma(const std::vector<Character>& all, size_t at) {
  const auto ignored = [](char32_t c) {
    const utf8proc_category_t kind = category(c);
    return kind == UTF8PROC_CATEGORY_MN || kind == UTF8PROC_CATEGORY_ME || kind == UTF8PROC_CATEGORY_CF ||
           kind == UTF8PROC_CATEGORY_LM || kind == UTF8PROC_CATEGORY_SK || c == U'\'' || c == U'.' ||
           c == U':' || c == 0xb7 || c == 0x2019;
  };
  size_t before = at;
  while (before > 0 && ignored(all[before - 1].code)) --before;
  size_t after = at + 1;
  while (after < all.size() && ignored(all[after].code)) ++after;
  return before > 0 && is_cased(all[before - 1].code) && (after >= all.size() || !is_cased(all[after].code));
}

// Maps each character; `to` decides by position.
MarkedText with_case(const MarkedText& text,
                     const std::function<Case(const std::vector<Character>&, size_t)>& to) {
  const std::vector<Character> all = characters(text);
  MarkedText out;
  for (size_t i = 0; i < all.size(); ++i) {
    const Case wanted = to(all, i);
    const bool sigma = wanted == Case::kLower && all[i].code == U'Σ' && is_final_sigma(all, i);
    const std::u32string letters = sigma ? std::u32string(1, U'ς') : mapped(all[i].code, wanted);
    std::string bytes;
    for (const char32_t letter : letters) append_utf8(bytes, letter);
    out.append(bytes, text.is_from_message(all[i].begin, all[i].end));
  }
  return out;
}

}  // namespace

std::vector<size_t> character_starts(const MarkedText& text) {
  std::vector<size_t> out;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text.text()[i]) & 0xc0) != 0x80) out.push_back(i);
  }
  out.push_back(text.size());
  return out;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool is_digit(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

bool is_letter(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return is_cased(c) || kind == UTF8PROC_CATEGORY_LM || kind == UTF8PROC_CATEGORY_LO;
}

bool is_letter_or_number(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return is_letter(c) || kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL ||
         kind == UTF8PROC_CATEGORY_NO;
}

bool all_characters(const MarkedText& text, bool (*is)(char32_t)) {
  const std::vector<Character> all = characters(text);
  return std::ranges::all_of(all, is, &Character::code);
}

MarkedText strip(const MarkedText& text, std::optional<std::string_view> stripped, Side side) {
  std::u32string set;
  for (size_t i = 0; stripped && i < stripped->size();) set += next_code_point(*stripped, i);
  const auto goes = [&](char32_t c) { return stripped ? set.find(c) != std::u32string::npos : is_space(c); };
  const std::string& bytes = text.text();
  size_t begin = 0;
  while (side != Side::kRight && begin < bytes.size()) {
    size_t next = begin;
    if (!goes(next_code_point(bytes, next))) break;
    begin = next;
  }
  size_t end = bytes.size();
  while (side != Side::kLeft && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(bytes[last]) & 0xc0) == 0x80) --last;
    size_t next = last;
    if (!goes(next_code_point(bytes, next))) break;
    end = last;
  }
  return text.part(begin, end);
}

std::vector<MarkedText> split(const MarkedText& text, std::string_view separator, int64_t limit,
                              bool from_right) {
  const std::string& bytes = text.text();
  std::vector<MarkedText> out;
  const auto more = [&] { return limit < 0 || static_cast<int64_t>(out.size()) < limit; };
  if (!from_right) {
    size_t begin = 0;
    for (size_t at = bytes.find(separator); at != std::string::npos && more();
         at = bytes.find(separator, begin)) {
      out.push_back(text.part(begin, at));
      begin = at + separator.size();
    }
    out.push_back(text.part(begin, bytes.size()));
    return out;
  }
  size_t end = bytes.size();
  while (more() && end >= separator.size()) {
    const size_t at = bytes.rfind(separator, end - separator.size());
    if (at == std::string::npos) break;
    out.push_back(text.part(at + separator.size(), end));
    end = at;
  }
  out.push_back(text.part(0, end));
  std::ranges::reverse(out);
  return out;
}

std::vector<MarkedText> split_at_space(const MarkedText& text, int64_t limit) {
  const std::vector<Character> all = characters(text);
  std::vector<MarkedText> out;
  size_t i = 0;
  while (true) {
    while (i < all.size() && is_space(all[i].code)) ++i;
    if (i >= all.size()) return out;
    if (limit >= 0 && static_cast<int64_t>(out.size()) >= limit) {
      out.push_back(strip(text.part(all[i].begin, text.size()), std::nullopt, Side::kRight));
      return out;
    }
    const size_t begin = all[i].begin;
    while (i < all.size() && !is_space(all[i].code)) ++i;
    out.push_back(text.part(begin, i < all.size() ? all[i].begin : text.size()));
  }
}

std::vector<MarkedText> split_lines(const MarkedText& text) {
  const auto ends_line = [](char32_t c) {
    return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
  };
  const std::vector<Character> all = characters(text);
  std::vector<MarkedText> out;
  size_t begin = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!ends_line(all[i].code)) continue;
    out.push_back(text.part(begin, all[i].begin));
    if (all[i].code == U'\r' && i + 1 < all.size() && all[i + 1].code == U'\n') ++i;
    begin = all[i].end;
  }
  if (begin < text.size()) out.push_back(text.part(begin, text.size()));
  return out;
}

MarkedText replace(const MarkedText& text, std::string_view old, const MarkedText& with, int64_t limit) {
  const std::string& bytes = text.text();
  MarkedText out;
  size_t begin = 0;
  size_t at = 0;
  for (int64_t done = 0; limit < 0 || done < limit; ++done) {
    at = bytes.find(old, at);
    if (at == std::string::npos) break;
    out.append_part(text, begin, at);
    out.append(with);
    begin = at + old.size();
    at = begin;
    if (!old.empty()) continue;
    if (at >= bytes.size()) break;
    next_code_point(bytes, at);
  }
  out.append_part(text, begin, bytes.size());
  return out;
}

MarkedText upper(const MarkedText& text) {
  return with_case(text, [](const auto&, size_t) { return Case::kUpper; });
}

MarkedText lower(const MarkedText& text) {
  return with_case(text, [](const auto&, size_t) { return Case::kLower; });
}

MarkedText capitalize(const MarkedText& text) {
  return with_case(text, [](const auto&, size_t i) { return i == 0 ? Case::kTitle : Case::kLower; });
}

MarkedText title(const MarkedText& text) {
  return with_case(text, [](const auto& all, size_t i) {
    return i > 0 && is_cased(all[i - 1].code) ? Case::kLower : Case::kTitle;
  });
}

MarkedText title_words(const MarkedText& text) {
  static constexpr std::u32string_view kOpening = U"-({[<";
  const auto separates = [](char32_t c) {
    return is_space(c) || kOpening.find(c) != std::u32string_view::npos;
  };
  return with_case(text, [&](const auto& all, size_t i) {
    return i == 0 || separates(all[i - 1].code) ? Case::kUpper : Case::kLower;
  });
}

MarkedText reversed(const MarkedText& text) {
  MarkedText out;
  const std::vector<size_t> starts = character_starts(text);
  for (size_t i = starts.size() - 1; i > 0; --i) out.append_part(text, starts[i - 1], starts[i]);
  return out;
}

MarkedText join(const std::vector<MarkedText>& parts, const MarkedText& separator) {
  MarkedText out;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out.append(separator);
    out.append(parts[i]);
  }
  return out;
}

}  // namespace qwen2::jinja
