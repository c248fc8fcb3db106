#include "plot/svg.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <cmath>
#include <iterator>

namespace qwen2::plot {
namespace {

// Two decimals without trailing zeros; what is not finite would break the file, and is 0.
std::string coordinate(double value) {
  if (!std::isfinite(value)) return "0";
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

// The next character of `text` at `at`, which moves behind it; negative for a byte that is no UTF-8.
int32_t next_character(std::string_view text, size_t& at) {
  utf8proc_int32_t code = -1;
  const auto rest = text.substr(at);
  const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(rest.data()),
                                     static_cast<utf8proc_ssize_t>(rest.size()), &code);
  at += size > 0 ? static_cast<size_t>(size) : 1;
  return size > 0 ? code : -1;
}

// Of one character, in parts of the font size.
double character_width(int32_t code) {
  if (code < 0) return 1;
  if (code >= 0x1100) return code >= 0x2000 && code < 0x2E80 ? 0.85 : 1.05;
  if (code > 0x7F) return 0.72;
  const char c = static_cast<char>(code);
  if (std::string_view("iIjl.,:;'|! ").find(c) != std::string_view::npos) return 0.34;
  if (std::string_view("frt()[]/-\"").find(c) != std::string_view::npos) return 0.43;
  if (std::string_view("mwMW@%+=<>~").find(c) != std::string_view::npos) return 0.95;
  if (c >= 'A' && c <= 'Z') return 0.73;
  return 0.64;
}

}  // namespace

std::string xml_escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    const int32_t code = next_character(text, at);
    const bool control = code >= 0 && code < 0x20 && code != '\t' && code != '\n' && code != '\r';
    if (code < 0 || control || code == 0xFFFE || code == 0xFFFF) {
      out += "\xEF\xBF\xBD";
      continue;
    }
    switch (code) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += text.substr(start, at - start);
    }
  }
  return out;
}

double text_width(std::string_view text, double font_size) {
  double width = 0;
  for (size_t at = 0; at < text.size();) width += character_width(next_character(text, at));
  return width * font_size;
}

std::string fit_text(std::string_view text, double width, double font_size) {
  if (text_width(text, font_size) <= width) return std::string(text);
  const double room = width - text_width("…", font_size);
  size_t end = 0;
  for (size_t at = 0; at < text.size();) {
    next_character(text, at);
    if (text_width(text.substr(0, at), font_size) > room) break;
    end = at;
  }
  return std::string(text.substr(0, end)) + "…";
}

void Svg::open(std::string_view classes, std::string_view tip) {
  fmt::format_to(std::back_inserter(out_), "<g class=\"{}\">", classes);
  if (!tip.empty()) fmt::format_to(std::back_inserter(out_), "<title>{}</title>", xml_escape(tip));
}

void Svg::close() {
  out_ += "</g>";
}

void Svg::line(std::string_view classes, double x1, double y1, double x2, double y2) {
  fmt::format_to(std::back_inserter(out_), "<line class=\"{}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
                 classes, coordinate(x1), coordinate(y1), coordinate(x2), coordinate(y2));
}

void Svg::rect(std::string_view classes, double x, double y, double width, double height, double radius) {
  fmt::format_to(std::back_inserter(out_), "<rect class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"",
                 classes, coordinate(x), coordinate(y), coordinate(std::max(width, 0.0)),
                 coordinate(std::max(height, 0.0)));
  if (radius > 0) fmt::format_to(std::back_inserter(out_), " rx=\"{}\"", coordinate(radius));
  out_ += "/>";
}

void Svg::circle(std::string_view classes, double x, double y, double radius) {
  fmt::format_to(std::back_inserter(out_), "<circle class=\"{}\" cx=\"{}\" cy=\"{}\" r=\"{}\"/>", classes,
                 coordinate(x), coordinate(y), coordinate(radius));
}

void Svg::path(std::string_view classes, std::string_view data, std::string_view dashes) {
  if (data.empty()) return;
  fmt::format_to(std::back_inserter(out_), "<path class=\"{}\" d=\"{}\"", classes, data);
  if (!dashes.empty()) fmt::format_to(std::back_inserter(out_), " stroke-dasharray=\"{}\"", dashes);
  out_ += "/>";
}

void Svg::text(std::string_view classes, double x, double y, std::string_view text, Anchor anchor) {
  static constexpr std::string_view kAnchors[] = {"start", "middle", "end"};
  fmt::format_to(std::back_inserter(out_),
                 "<text class=\"{}\" x=\"{}\" y=\"{}\" text-anchor=\"{}\">{}</text>", classes, coordinate(x),
                 coordinate(y), kAnchors[static_cast<size_t>(anchor)], xml_escape(text));
}

std::string path_data(const Points& points) {
  std::string data;
  for (const auto& [x, y] : points) {
    fmt::format_to(std::back_inserter(data), "{}{} {}", data.empty() ? "M" : "L", coordinate(x),
                   coordinate(y));
  }
  return data;
}

}  // namespace qwen2::plot
