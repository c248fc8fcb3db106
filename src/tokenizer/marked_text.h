// Text that knows which of its bytes a message brought. A chat template and a user's words meet in one prompt;
// only the template's own characters may form special tokens.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace qwen2 {

class MarkedText {
 public:
  struct Range {
    size_t begin, end;
    bool operator==(const Range&) const = default;
  };

  MarkedText() = default;
  // All of `text` is the template's own, or all of it is a message's.
  explicit MarkedText(std::string text, bool from_message = false);

  void append(std::string_view text, bool from_message);
  void append(const MarkedText& text) { append_part(text, 0, text.size()); }
  // Appends the bytes [begin, end) of `text` with their marks.
  void append_part(const MarkedText& text, size_t begin, size_t end);
  [[nodiscard]] MarkedText part(size_t begin, size_t end) const;

  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] size_t size() const { return text_.size(); }
  [[nodiscard]] bool empty() const { return text_.empty(); }

  // Byte ranges that messages brought: in order, not empty, not touching each other.
  [[nodiscard]] const std::vector<Range>& from_messages() const { return ranges_; }
  // Is any byte of [begin, end) a message's? O(log of the number of ranges).
  [[nodiscard]] bool is_from_message(size_t begin, size_t end) const;

 private:
  std::string text_;
  std::vector<Range> ranges_;
};

}  // namespace qwen2
