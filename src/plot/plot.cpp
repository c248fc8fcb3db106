#include "plot/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot/plot_frame.h"

namespace qwen2::plot {

std::string stroke_class(int colour) {
  return fmt::format("s{}", colour % kColours);
}
std::string fill_class(int colour) {
  return fmt::format("f{}", colour % kColours);
}

std::string_view dashes(int pattern) {
  static constexpr std::string_view kPatterns[] = {"", "6 4", "2 3", "9 3 2 3"};
  return kPatterns[static_cast<size_t>(pattern) % std::size(kPatterns)];
}

void draw_marker(Svg& svg, int shape, int colour, bool hollow, double x, double y) {
  const std::string classes =
      fmt::format("mark {} {}", stroke_class(colour), hollow ? "hollow" : fill_class(colour));
  const auto polygon = [&](const Points& points) { svg.path(classes, path_data(points) + "Z"); };
  switch (shape % 5) {
    case 0:
      svg.circle(classes, x, y, 3.6);
      break;
    case 1:
      svg.rect(classes, x - 3.4, y - 3.4, 6.8, 6.8);
      break;
    case 2:
      polygon({{x, y - 4.6}, {x + 4.3, y + 3.4}, {x - 4.3, y + 3.4}});
      break;
    case 3:
      polygon({{x, y - 4.9}, {x + 4.9, y}, {x, y + 4.9}, {x - 4.9, y}});
      break;
    default:
      polygon({{x, y + 4.6}, {x + 4.3, y - 3.4}, {x - 4.3, y - 3.4}});
  }
}

void draw_cross(Svg& svg, double x, double y) {
  svg.line("cross", x - 4, y - 4, x + 4, y + 4);
  svg.line("cross", x - 4, y + 4, x + 4, y - 4);
}

namespace {

void draw_key(Svg& svg, const Key& key, double x, double y) {
  switch (key.shape) {
    case KeyShape::kLine:
      svg.path("line " + stroke_class(key.colour), path_data({{x, y}, {x + 24, y}}), dashes(key.pattern));
      if (key.marker >= 0) draw_marker(svg, key.marker, key.colour, key.hollow, x + 12, y);
      break;
    case KeyShape::kMarker:
      draw_marker(svg, key.marker, key.colour, key.hollow, x + 12, y);
      break;
    case KeyShape::kBox:
      svg.rect(key.box_class, x + 6, y - 6, 16, 12, 2);
      break;
    case KeyShape::kCross:
      draw_cross(svg, x + 12, y);
      break;
    case KeyShape::kRule:
      svg.path("rule", path_data({{x, y}, {x + 24, y}}), "5 4");
      break;
    case KeyShape::kTick:
      svg.line("measured", x + 12, y - 7, x + 12, y + 7);
      break;
  }
}

}  // namespace

double draw_legend(Svg& svg, const std::vector<Key>& keys, double top, double width) {
  constexpr double kSwatch = 30;
  constexpr double kGap = 16;
  if (keys.empty()) return top;
  double x = kEdge;
  double y = top + kLineHeight / 2;
  svg.open("legend");
  for (const Key& key : keys) {
    const std::string name = fit_text(key.name, width - 2 * kEdge - kSwatch, kFont);
    const double needed = kSwatch + text_width(name, kFont);
    if (x > kEdge && x + needed > width - kEdge) {
      x = kEdge;
      y += kLineHeight;
    }
    draw_key(svg, key, x, y);
    svg.text("key", x + kSwatch, y + 4, name);
    x += needed + kGap;
  }
  svg.close();
  return y + kLineHeight / 2 + 4;
}

std::vector<Tick> thin_ticks(const std::vector<Tick>& ticks, const Scale& scale) {
  constexpr double kGap = 8;
  if (ticks.empty()) return {};
  const auto half = [](const Tick& tick) { return text_width(tick.label, kFont) / 2 + kGap / 2; };
  std::vector<Tick> kept{ticks.front()};
  const Tick& last = ticks.back();
  const double last_start = scale(last.value) - half(last);
  for (size_t i = 1; i + 1 < ticks.size(); ++i) {
    const double x = scale(ticks[i].value);
    const double room = half(ticks[i]);
    if (x - room >= scale(kept.back().value) + half(kept.back()) && x + room <= last_start)
      kept.push_back(ticks[i]);
  }
  if (ticks.size() > 1 && scale(kept.back().value) + half(kept.back()) <= last_start) kept.push_back(last);
  return kept;
}

std::string axis_title(const Axis& axis, const DisplayUnit& unit) {
  return unit.name.empty() ? axis.title : fmt::format("{} ({})", axis.title, unit.name);
}

double draw_x_axis(Svg& svg, const std::vector<Tick>& ticks, const Scale& scale, const std::string& title,
                   const Area& area) {
  svg.line("axis", area.left, area.bottom, area.right, area.bottom);
  svg.open("ticks x");
  for (const Tick& tick : ticks) {
    const double x = scale(tick.value);
    if (scale.kind() != ScaleKind::kCategory) svg.line("axis", x, area.bottom, x, area.bottom + 4);
    svg.text("tick", x, area.bottom + 18, tick.label, Anchor::kMiddle);
  }
  svg.close();
  if (title.empty()) return area.bottom + 24;
  svg.text("title", (area.left + area.right) / 2, area.bottom + 38, fit_text(title, area.right, kFont),
           Anchor::kMiddle);
  return area.bottom + 46;
}

std::string_view chart_css() {
  // Hues after Okabe and Ito, made darker for a light and lighter for a dark ground: each has a contrast of
  // at least 3 to it. Parts of a bar (p0 to p4) are steps of lightness, which print keeps apart.
  return R"css(:root{color-scheme:light dark;--ground:#fff;--ink:#1c2128;--soft:#57606a;--grid:#e4e7eb;--axis:#8c959f;
--s0:#0969b8;--s1:#c2410c;--s2:#0b7a5b;--s3:#9a3b8f;--s4:#8a6500;--s5:#4b5563;--bad:#c01c28;
--p0:#0b4f8a;--p1:#3d86c6;--p2:#8fbde3;--p3:#c3b1e1;--p4:#b8bec6}
@media (prefers-color-scheme:dark){:root{--ground:#12161c;--ink:#e8ebef;--soft:#a2abb6;--grid:#2a313a;--axis:#6b7480;
--s0:#5fb3f6;--s1:#ff8f57;--s2:#3ecf9f;--s3:#e793d3;--s4:#e9b949;--s5:#aab4c0;--bad:#ff7b72;
--p0:#2f7fc4;--p1:#68abe2;--p2:#aed4f3;--p3:#8f7cc0;--p4:#5d6773}}
@media print{:root{color-scheme:light;--ground:#fff;--ink:#000;--soft:#333;--grid:#ddd;--axis:#777;
--s0:#0969b8;--s1:#c2410c;--s2:#0b7a5b;--s3:#9a3b8f;--s4:#8a6500;--s5:#4b5563;--bad:#c01c28;
--p0:#0b4f8a;--p1:#3d86c6;--p2:#8fbde3;--p3:#c3b1e1;--p4:#b8bec6}}
.chart{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.chart text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
.chart .tick,.chart .title{fill:var(--soft)}.chart text.heading{font-size:15px;font-weight:600}
.chart .ground{fill:var(--ground)}.chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--axis)}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:butt}.chart .whisker{stroke-width:1.4}
.chart .mark{stroke-width:1.6;stroke-linejoin:round}.chart .hollow{fill:var(--ground)}.chart .band{opacity:.16}
.chart .area{opacity:.2}.chart .hit{fill:transparent}.chart .cross{stroke:var(--bad);stroke-width:2}
.chart .rule{stroke:var(--soft);stroke-width:1.4;fill:none}.chart .measured{stroke:var(--bad);stroke-width:3}
.chart .halo{paint-order:stroke;stroke:var(--ground);stroke-width:4px;stroke-linejoin:round}
.chart .s0{stroke:var(--s0)}.chart .s1{stroke:var(--s1)}.chart .s2{stroke:var(--s2)}.chart .s3{stroke:var(--s3)}
.chart .s4{stroke:var(--s4)}.chart .s5{stroke:var(--s5)}.chart .f0{fill:var(--s0)}.chart .f1{fill:var(--s1)}
.chart .f2{fill:var(--s2)}.chart .f3{fill:var(--s3)}.chart .f4{fill:var(--s4)}.chart .f5{fill:var(--s5)}
.chart .p0{fill:var(--p0)}.chart .p1{fill:var(--p1)}.chart .p2{fill:var(--p2)}.chart .p3{fill:var(--p3)}
.chart .p4{fill:var(--p4)}.chart .point:hover .mark{stroke-width:4}.chart .row:hover rect{opacity:.75}
)css";
}

std::string render_svg(const Chart& chart, const SvgOptions& options) {
  Svg body;
  double top = 4;
  const double width = options.width;
  if (options.standalone) {
    body.text("heading", kEdge, top + 18, fit_text(chart.title, width - 2 * kEdge, 15 * 1.08));
    top += 32;
  }
  const double height =
      std::ceil(std::visit([&](const auto& kind) { return draw(body, kind, top, width); }, chart.body));
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" "
      "aria-label=\"{}\"",
      options.width, height, xml_escape(chart.title));
  if (!options.standalone) return out + ">" + body.str() + "</svg>";
  out += fmt::format(" width=\"{}\" height=\"{}\">\n<style>{}</style>\n", options.width, height, chart_css());
  out += fmt::format("<rect class=\"ground\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n", options.width, height);
  return out + body.str() + "\n</svg>\n";
}

}  // namespace qwen2::plot
