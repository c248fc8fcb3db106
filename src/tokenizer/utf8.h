// UTF-8 as bytes arrive: validation with replacement, and splitting where characters end.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace qwen2 {

// `text` with every maximal ill-formed part replaced by U+FFFD, as the WHATWG decoder does.
std::string valid_utf8(std::string_view text);

// Bytes at the end of `text` that begin a character which further bytes may complete; 0 to 3.
size_t incomplete_utf8_suffix(std::string_view text);

// Appends the code point as UTF-8.
void append_utf8(std::string& out, char32_t code_point);

// Decodes the character at `position` of valid UTF-8 and moves behind it.
char32_t next_code_point(std::string_view text, size_t& position);

}  // namespace qwen2
