// Text of an SVG file: escaped, with numbers that are always finite, and an estimate of how wide a text will
// be.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace qwen2::plot {

// For XML and HTML, in text and in attributes. Control characters that XML forbids and bytes that are no
// UTF-8 become U+FFFD.
std::string xml_escape(std::string_view text);

// Pixels that `text` takes at most in the usual sans-serif fonts. An SVG cannot measure itself: the widths
// are those of DejaVu Sans, which is wider than the others.
double text_width(std::string_view text, double font_size);

// `text` cut, with an ellipsis, to at most `width` pixels.
std::string fit_text(std::string_view text, double width, double font_size);

enum class Anchor { kStart, kMiddle, kEnd };

using Points = std::vector<std::pair<double, double>>;

class Svg {
 public:
  // Opens a group; where `tip` is not empty, a pointer that rests on it shows the text.
  void open(std::string_view classes, std::string_view tip = {});
  void close();
  void line(std::string_view classes, double x1, double y1, double x2, double y2);
  void rect(std::string_view classes, double x, double y, double width, double height, double radius = 0);
  void circle(std::string_view classes, double x, double y, double radius);
  void path(std::string_view classes, std::string_view data, std::string_view dashes = {});
  // `y` is the baseline.
  void text(std::string_view classes, double x, double y, std::string_view text,
            Anchor anchor = Anchor::kStart);

  [[nodiscard]] const std::string& str() const { return out_; }

 private:
  std::string out_;
};

// "M x y L x y ..."; fewer than one point: empty.
std::string path_data(const Points& points);

}  // namespace qwen2::plot
