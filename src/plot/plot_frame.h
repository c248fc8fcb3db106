// What all kinds of charts share: sizes, series' looks, legend, and ticks that do not touch each other.
#pragma once

#include <string>
#include <vector>

#include "plot/plot.h"
#include "plot/svg.h"

namespace qwen2::plot {

constexpr double kFont = 12;  // pixels, of every text but a standalone title
constexpr double kLineHeight = 18;
constexpr double kEdge = 8;  // free pixels at the left and right edge

// g++ warns of members that a designated initialiser leaves out, unless they have an initialiser.
// NOLINTBEGIN(readability-redundant-member-init)

// The rectangle in which values are drawn.
struct Area {
  double left, top, right, bottom;
  [[nodiscard]] double width() const { return right - left; }
  [[nodiscard]] double height() const { return bottom - top; }
};

// The class of a colour: "s3" for strokes, "f3" for fills.
std::string stroke_class(int colour);
std::string fill_class(int colour);
std::string_view dashes(int pattern);

// A marker of about 8 pixels with its middle at (x, y).
void draw_marker(Svg& svg, int shape, int colour, bool hollow, double x, double y);
void draw_cross(Svg& svg, double x, double y);

enum class KeyShape { kLine, kMarker, kBox, kCross, kRule, kTick };
struct Key {
  std::string name{};
  KeyShape shape;
  int colour = 0, pattern = 0, marker = 0;
  bool hollow = false;
  std::string box_class{};
};

// Draws the keys in rows from `top` on and returns where they end.
double draw_legend(Svg& svg, const std::vector<Key>& keys, double top, double width);

struct Tick {
  double value;
  std::string label{};
};

// Those of `ticks` whose labels have room beside each other, the first and the last before the others.
std::vector<Tick> thin_ticks(const std::vector<Tick>& ticks, const Scale& scale);

// The divisor of `unit`'s display and the axis' title with it: "TTFT (ms)".
std::string axis_title(const Axis& axis, const DisplayUnit& unit);

// Ticks of a horizontal axis below `area`: lines, labels and the title; returns where it ends.
double draw_x_axis(Svg& svg, const std::vector<Tick>& ticks, const Scale& scale, const std::string& title,
                   const Area& area);

// Each draws a chart's body from `top` on into a width and returns the height that is used.
double draw(Svg& svg, const XyChart& chart, double top, double width);
double draw(Svg& svg, const StackedBars& chart, double top, double width);
double draw(Svg& svg, const Gantt& chart, double top, double width);

// NOLINTEND(readability-redundant-member-init)

}  // namespace qwen2::plot
