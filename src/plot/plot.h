// Charts as SVG: what is drawn, and the drawing. One drawing serves the HTML report, the Markdown and single
// files.
//
// Colours are CSS variables with a light and a dark value (chart_css()); series differ by dashes and markers
// too, for print and for the colour-blind. Values that are not finite are left out, and lines break there.
#pragma once

#include <limits>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "plot/scale.h"

namespace qwen2::plot {

constexpr double kNoValue = std::numeric_limits<double>::quiet_NaN();

// g++ warns of members that a designated initialiser leaves out, unless they have an initialiser.
// NOLINTBEGIN(readability-redundant-member-init)

struct Axis {
  std::string title{};
  std::string unit{};  // "ms", "B" and so on: the axis shows the unit that suits; may be empty
  ScaleKind scale = ScaleKind::kLinear;
  bool from_zero = false;       // a linear axis starts at 0; intervals that reach below are cut
  std::vector<double> marks{};  // values that get ticks, such as an experiment's own; empty: round ones
  std::vector<std::string> categories{};  // of kCategory: a sample's x is the index of one
};

struct Sample {
  double x = kNoValue;
  double y = kNoValue;
  double low = kNoValue;  // of the interval around y
  double high = kNoValue;
  std::string label{};  // beside the point, where there is room
  std::string tip{};    // shown when a pointer rests on the point
};

enum class Mark {
  kLine,     // line, markers, band of the intervals
  kPoints,   // markers with whiskers
  kStep,     // each value holds until the next sample
  kArea,     // kStep, filled to the axis
  kRefused,  // crosses; without y, at the upper edge
};

struct Series {
  std::string name{};
  Mark mark = Mark::kLine;
  int colour = 0;       // of kColours
  int pattern = 0;      // of dashes
  int shape = 0;        // of markers
  bool hollow = false;  // markers
  bool markers = true;  // on lines
  std::vector<Sample> samples{};
};
constexpr int kColours = 6;

// A level that means something, such as a budget.
struct Rule {
  double y;
  std::string name{};
};

struct XyChart {
  Axis x, y;
  std::vector<Series> series{};
  std::vector<Rule> rules{};
};

// One horizontal bar a row, of parts that add up, with a marker at what was measured and a line at the limit.
struct StackedBars {
  struct Row {
    std::string label{};
    std::vector<double> values{};  // one for each of `parts`
    double measured = kNoValue;
    double limit = kNoValue;
    std::string tip{};
  };
  std::string title{};
  std::string unit{};
  std::vector<std::string> parts{};
  std::string measured_name{};
  std::string limit_name{};
  std::vector<Row> rows{};
};

// A row a request, in seconds since the start of the measurement.
struct Gantt {
  struct Row {
    std::string name{};
    double sent = kNoValue;      // the queue begins
    double admitted = kNoValue;  // the prompt begins; without a value, the queue is counted to the prompt
    double first = kNoValue;     // the answer begins
    double end = kNoValue;
    bool failed = false;
    std::string tip{};
  };
  std::vector<Row> rows{};
};

struct Chart {
  std::string id{};  // of [a-z0-9-]: the file's name
  std::string title{};
  std::string note{};  // what the reader must know: what was left out, what an interval is
  std::variant<XyChart, StackedBars, Gantt> body;
};

struct SvgOptions {
  int width = 720;  // pixels for which text and room are laid out
  // With its own style sheet, background and title, to be read by itself.
  bool standalone = true;
};

std::string render_svg(const Chart& chart, const SvgOptions& options);

// The style that inlined charts need, with the variables of both colour schemes.
std::string_view chart_css();

// NOLINTEND(readability-redundant-member-init)

}  // namespace qwen2::plot
