#include "tokenizer/utf8.h"

#include <algorithm>
#include <cstdint>

namespace qwen2 {
namespace {

struct Sequence {
  size_t length;  // bytes of the character, or of the ill-formed part
  bool well_formed;
  bool truncated;  // ill-formed only because the text ends
};

// Table 3-7 of the Unicode standard: what the second byte may be depends on the first.
Sequence scan(std::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[position + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  if (lead < 0xc2 || lead > 0xf4) return {1, false, false};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (position + i >= text.size()) return {i, false, true};
    uint8_t low = 0x80;
    uint8_t high = 0xbf;
    if (i == 1 && lead == 0xe0) low = 0xa0;
    if (i == 1 && lead == 0xed) high = 0x9f;
    if (i == 1 && lead == 0xf0) low = 0x90;
    if (i == 1 && lead == 0xf4) high = 0x8f;
    if (byte(i) < low || byte(i) > high) return {i, false, false};
  }
  return {length, true, false};
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Sequence s = scan(text, i);
    if (s.well_formed) {
      out.append(text, i, s.length);
    } else {
      out += "\xef\xbf\xbd";
    }
    i += s.length;
  }
  return out;
}

size_t incomplete_utf8_suffix(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto lead = static_cast<uint8_t>(text[text.size() - back]);
    if ((lead & 0xc0U) == 0x80U) continue;  // a continuation byte: the lead lies further back
    const Sequence s = scan(text, text.size() - back);
    return s.truncated && s.length == back ? back : 0;
  }
  return 0;
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0U | (c >> 6));
    put(0x80U | (c & 0x3fU));
  } else if (c < 0x10000) {
    put(0xe0U | (c >> 12));
    put(0x80U | ((c >> 6) & 0x3fU));
    put(0x80U | (c & 0x3fU));
  } else {
    put(0xf0U | (c >> 18));
    put(0x80U | ((c >> 12) & 0x3fU));
    put(0x80U | ((c >> 6) & 0x3fU));
    put(0x80U | (c & 0x3fU));
  }
}

char32_t next_code_point(std::string_view text, size_t& position) {
  const auto byte = [&](size_t i) -> char32_t { return static_cast<uint8_t>(text[position + i]); };
  const char32_t lead = byte(0);
  const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (position + length > text.size()) {
    position = text.size();
    return 0xfffd;
  }
  char32_t c = length == 1 ? lead : length == 2 ? lead & 0x1fU : length == 3 ? lead & 0x0fU : lead & 0x07U;
  for (size_t i = 1; i < length; ++i) c = (c << 6) | (byte(i) & 0x3fU);
  position += length;
  return c;
}

}  // namespace qwen2
