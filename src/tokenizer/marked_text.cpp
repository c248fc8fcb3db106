#include "tokenizer/marked_text.h"

#include <algorithm>

namespace qwen2 {
namespace {

// The first range that ends behind `position`.
auto first_behind(const std::vector<MarkedText::Range>& ranges, size_t position) {
  return std::upper_bound(ranges.begin(), ranges.end(), position,
                          [](size_t at, const MarkedText::Range& range) { return at < range.end; });
}

}  // namespace

MarkedText::MarkedText(std::string text, bool from_message) : text_(std::move(text)) {
  if (from_message && !text_.empty()) ranges_.push_back({0, text_.size()});
}

void MarkedText::append(std::string_view text, bool from_message) {
  if (text.empty()) return;
  const size_t begin = text_.size();
  text_ += text;
  if (!from_message) return;
  if (!ranges_.empty() && ranges_.back().end == begin) {
    ranges_.back().end = text_.size();
  } else {
    ranges_.push_back({begin, text_.size()});
  }
}

void MarkedText::append_part(const MarkedText& text, size_t begin, size_t end) {
  size_t position = begin;
  for (auto range = first_behind(text.ranges_, begin); range != text.ranges_.end() && range->begin < end;
       ++range) {
    const size_t from = std::max(range->begin, begin);
    const size_t to = std::min(range->end, end);
    append(std::string_view(text.text_).substr(position, from - position), false);
    append(std::string_view(text.text_).substr(from, to - from), true);
    position = to;
  }
  append(std::string_view(text.text_).substr(position, end - position), false);
}

MarkedText MarkedText::part(size_t begin, size_t end) const {
  MarkedText out;
  out.append_part(*this, begin, end);
  return out;
}

bool MarkedText::is_from_message(size_t begin, size_t end) const {
  const auto range = first_behind(ranges_, begin);
  return range != ranges_.end() && range->begin < end;
}

}  // namespace qwen2
