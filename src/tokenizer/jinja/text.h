// Python's methods of strings, on text that keeps its marks. Characters are code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "tokenizer/marked_text.h"

namespace qwen2::jinja {

// Where each character begins, and behind them the text's size.
std::vector<size_t> character_starts(const MarkedText& text);

bool is_space(char32_t c);
bool is_digit(char32_t c);
bool is_letter(char32_t c);
bool is_letter_or_number(char32_t c);
bool all_characters(const MarkedText& text, bool (*is)(char32_t));

enum class Side { kLeft, kRight, kBoth };
// Without the characters of `characters` (nothing: white space) at its ends.
MarkedText strip(const MarkedText& text, std::optional<std::string_view> characters, Side side);

// Parts between `separator`, at most `limit` cuts, from the right where `from_right`. `limit` < 0: all.
std::vector<MarkedText> split(const MarkedText& text, std::string_view separator, int64_t limit,
                              bool from_right);
// Parts between white space, none empty.
std::vector<MarkedText> split_at_space(const MarkedText& text, int64_t limit);
std::vector<MarkedText> split_lines(const MarkedText& text);

// An empty `old` stands before each character and at the end. `limit` < 0: all.
MarkedText replace(const MarkedText& text, std::string_view old, const MarkedText& with, int64_t limit);

MarkedText upper(const MarkedText& text);
MarkedText lower(const MarkedText& text);
// The first character as in a title, the others small.
MarkedText capitalize(const MarkedText& text);
// Python's str.title(): letters behind what is no letter.
MarkedText title(const MarkedText& text);
// Jinja's filter: words between white space and one of -({[<.
MarkedText title_words(const MarkedText& text);

MarkedText reversed(const MarkedText& text);
MarkedText join(const std::vector<MarkedText>& parts, const MarkedText& separator);

}  // namespace qwen2::jinja
