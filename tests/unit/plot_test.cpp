#include "plot/plot.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>

#include "plot/svg.h"
#include "random_data.h"

namespace qwen2::plot {
namespace {

using boost::property_tree::ptree;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Throws where the text is not well-formed XML.
ptree parsed(const std::string& text) {
  std::istringstream in(text);
  ptree tree;
  boost::property_tree::read_xml(in, tree);
  return tree;
}

struct Element {
  std::string name, classes, text;
};

void collect(const ptree& tree, std::vector<Element>& out) {
  for (const auto& [name, child] : tree) {
    if (name == "<xmlattr>") continue;
    out.push_back({name, child.get("<xmlattr>.class", ""), child.data()});
    collect(child, out);
  }
}

std::vector<Element> elements(const std::string& svg) {
  std::vector<Element> out;
  collect(parsed(svg), out);
  return out;
}

int64_t count(const std::string& svg, const std::string& name, const std::string& class_start) {
  const auto all = elements(svg);
  return std::count_if(all.begin(), all.end(), [&](const Element& e) {
    return e.name == name && e.classes.starts_with(class_start);
  });
}

bool has_text(const std::string& svg, const std::string& text) {
  const auto all = elements(svg);
  return std::any_of(all.begin(), all.end(), [&](const Element& e) { return e.text == text; });
}

TEST(Ticks, LinearOnesAreRoundEvenAndCoverTheRange) {
  for (int round = 0; round < 2000; ++round) {
    const double scale = std::pow(10, static_cast<double>(test::uniform(-9, 12)));
    const double low = static_cast<double>(test::uniform(-1000, 1000)) * scale;
    const double high = low + static_cast<double>(test::uniform(1, 5000)) * scale;
    const int wanted = static_cast<int>(test::uniform(2, 10));
    const auto ticks = linear_ticks(low, high, wanted);
    ASSERT_GE(ticks.size(), 2U);
    ASSERT_LE(ticks.size(), static_cast<size_t>(wanted) + 2);
    const double step = ticks[1] - ticks[0];
    EXPECT_LE(ticks.front(), low + step * 1e-6);
    EXPECT_GE(ticks.back(), high - step * 1e-6);
    const double mantissa = step / std::pow(10, std::floor(std::log10(step) + 1e-9));
    EXPECT_TRUE(std::abs(mantissa - 1) < 1e-6 || std::abs(mantissa - 2) < 1e-6 ||
                std::abs(mantissa - 5) < 1e-6)
        << mantissa;
    for (size_t i = 1; i < ticks.size(); ++i) EXPECT_NEAR(ticks[i] - ticks[i - 1], step, step * 1e-6);
  }
}

TEST(Ticks, LinearOnesEndForAnyFiniteRange) {
  EXPECT_EQ(linear_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_GE(linear_ticks(5, 5, 4).size(), 2U);
  EXPECT_GE(linear_ticks(0, 0, 4).size(), 2U);
  EXPECT_LE(linear_ticks(1e300, std::nextafter(1e300, kInfinity), 4).size(), 10U);
}

TEST(Ticks, LogOnesLieInside) {
  EXPECT_EQ(log_ticks(1, 100, 9), (std::vector<double>{1, 2, 5, 10, 20, 50, 100}));
  EXPECT_EQ(log_ticks(1, 10000, 6).size(), 5U);
  for (int round = 0; round < 1000; ++round) {
    const double low = std::pow(10, static_cast<double>(test::uniform(-900, 900)) / 100);
    const double high = low * std::pow(10, static_cast<double>(test::uniform(1, 800)) / 100);
    const auto ticks = log_ticks(low, high, 6);
    ASSERT_GE(ticks.size(), 2U);
    EXPECT_LE(ticks.size(), 10U);
    for (const double tick : ticks) {
      EXPECT_GE(tick, low * (1 - 1e-6));
      EXPECT_LE(tick, high * (1 + 1e-6));
    }
  }
}

TEST(Scale, MapsEndsToEnds) {
  const Scale linear(ScaleKind::kLinear, 10, 30, 100, 300);
  EXPECT_DOUBLE_EQ(linear(10), 100);
  EXPECT_DOUBLE_EQ(linear(20), 200);
  EXPECT_DOUBLE_EQ(linear(30), 300);
  const Scale log(ScaleKind::kLog, 1, 100, 400, 0);
  EXPECT_DOUBLE_EQ(log(1), 400);
  EXPECT_NEAR(log(10), 200, 1e-9);
  EXPECT_DOUBLE_EQ(log(100), 0);
  EXPECT_TRUE(std::isnan(log(0)));
  EXPECT_TRUE(std::isnan(log(-1)));
  EXPECT_DOUBLE_EQ(Scale(ScaleKind::kLinear, 7, 7, 0, 100)(7), 50);
  EXPECT_NEAR(Scale(ScaleKind::kLog, 7, 7, 0, 100)(7), 50, 1e-9);
}

TEST(Numbers, AreWrittenForPeople) {
  EXPECT_EQ(format_number(32768), "32,768");
  EXPECT_EQ(format_number(0), "0");
  EXPECT_EQ(format_number(-1234.5), "−1,234");
  EXPECT_EQ(format_number(12.345), "12.3");
  EXPECT_EQ(format_number(0.01234), "0.0123");
  EXPECT_EQ(format_number(2e-5), "2.00e-5");
  EXPECT_EQ(format_number(3e10), "3.00e10");
  EXPECT_EQ(format_number(kNoValue), "–");
  EXPECT_EQ(format_fixed(-0.001, 1), "0.0");
  EXPECT_EQ(format_fixed(1234567.891, 2), "1,234,567.89");
  EXPECT_EQ(format_tick(0.25, 0.05), "0.25");
  EXPECT_EQ(format_tick(1500, 500), "1,500");
  EXPECT_EQ(format_tick(0.1), "0.1");
  EXPECT_EQ(format_tick(100.0), "100");
  EXPECT_EQ(format_quantity(5.5 * 1073741824, "B"), "5.50 GiB");
  EXPECT_EQ(format_quantity(0.0123, "s"), "12.3 ms");
  EXPECT_EQ(format_quantity(12345, "ms"), "12.3 s");
  EXPECT_EQ(format_quantity(0.974, "fraction"), "97.4 %");
}

TEST(Escaping, LeavesNothingThatIsMarkup) {
  EXPECT_EQ(xml_escape("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(xml_escape("µs – 字"), "µs – 字");
  EXPECT_EQ(xml_escape(std::string_view("a\0b\x01", 4)),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD");
  EXPECT_EQ(xml_escape("\xFF\xC3"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (int64_t i = test::uniform(0, 40); i > 0; --i) bytes += static_cast<char>(test::uniform(0, 255));
    EXPECT_NO_THROW(parsed("<t a=\"" + xml_escape(bytes) + "\">" + xml_escape(bytes) + "</t>"));
  }
}

TEST(Text, IsCutToItsRoom) {
  EXPECT_EQ(fit_text("short", 500, 12), "short");
  const std::string cut = fit_text("a long name that has no room", 60, 12);
  EXPECT_TRUE(cut.ends_with("…")) << cut;
  EXPECT_LE(text_width(cut, 12), 60);
  EXPECT_NO_THROW(parsed("<t>" + fit_text("字字字字字字字字", 40, 12) + "</t>"));
}

Sample sample(double x, double y, double low = kNoValue, double high = kNoValue) {
  return {.x = x, .y = y, .low = low, .high = high, .tip = "a <tip>"};
}

Chart chart_of(XyChart body) {
  return {.id = "id", .title = "A & B", .body = std::move(body)};
}

TEST(XyCharts, DrawEveryFiniteSample) {
  XyChart chart;
  chart.x = {.title = "x"};
  chart.y = {.title = "y", .unit = "ms"};
  chart.series.push_back({.name = "s",
                          .samples = {sample(1, 1, 0.9, 1.1), sample(2, 4, 3, 5), sample(3, kNoValue),
                                      sample(kInfinity, 2), sample(5, 5)}});
  const std::string svg = render_svg(chart_of(chart), {});
  EXPECT_EQ(count(svg, "circle", "mark"), 3);
  EXPECT_EQ(count(svg, "path", "band"), 1);
  EXPECT_EQ(count(svg, "path", "line"), 2);  // broken where there is no value
  EXPECT_TRUE(has_text(svg, "a <tip>"));
  EXPECT_TRUE(has_text(svg, "y (ms)"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(XyCharts, SayWhenThereIsNothingToDraw) {
  XyChart chart;
  EXPECT_TRUE(has_text(render_svg(chart_of(chart), {}), "nothing was measured"));
  chart.series.push_back({.samples = {sample(kNoValue, kNoValue)}});
  EXPECT_TRUE(has_text(render_svg(chart_of(chart), {}), "nothing was measured"));
}

TEST(XyCharts, LogAxesLeaveOutWhatIsNotPositive) {
  XyChart chart;
  chart.y.scale = ScaleKind::kLog;
  chart.series.push_back(
      {.mark = Mark::kPoints,
       .samples = {sample(1, 0), sample(2, -1), sample(3, 10), sample(4, 1000, -5, 2000)}});
  const std::string svg = render_svg(chart_of(chart), {});
  EXPECT_EQ(count(svg, "circle", "mark"), 2);
  EXPECT_EQ(count(svg, "line", "whisker"), 3);
}

TEST(XyCharts, IntervalsEndWhereTheAxisDoes) {
  XyChart chart;
  chart.y.from_zero = true;
  chart.series.push_back({.mark = Mark::kPoints, .samples = {sample(1, 5, -20, 30)}});
  const std::string svg = render_svg(chart_of(chart), {});
  EXPECT_TRUE(has_text(svg, "0"));
  EXPECT_FALSE(has_text(svg, "−10"));
  EXPECT_FALSE(has_text(svg, "−20"));
}

TEST(XyCharts, SeriesDifferInMoreThanColour) {
  XyChart chart;
  for (int i = 0; i < 3; ++i) {
    chart.series.push_back({.name = fmt::format("series {}", i),
                            .colour = i,
                            .pattern = i,
                            .shape = i,
                            .samples = {sample(1, i), sample(2, i)}});
  }
  const std::string svg = render_svg(chart_of(chart), {});
  EXPECT_NE(svg.find("stroke-dasharray=\"6 4\""), std::string::npos);
  EXPECT_NE(svg.find("stroke-dasharray=\"2 3\""), std::string::npos);
  EXPECT_EQ(count(svg, "circle", "mark"), 3);  // two samples and the legend's
  EXPECT_EQ(count(svg, "rect", "mark"), 3);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(has_text(svg, fmt::format("series {}", i)));
}

TEST(XyCharts, LabelsStayApart) {
  XyChart chart;
  for (int i = 0; i < 30; ++i) {
    Sample s = sample(static_cast<double>(test::uniform(0, 50)), static_cast<double>(test::uniform(0, 50)));
    s.label = fmt::format("label {}", i);
    chart.series.push_back({.mark = Mark::kPoints, .samples = {s}});
  }
  const ptree tree = parsed(render_svg(chart_of(chart), {}));
  struct Box {
    double x, y, width;
  };
  std::vector<Box> boxes;
  for (const auto& [name, child] : tree.get_child("svg")) {
    if (name != "text" || child.get<std::string>("<xmlattr>.class") != "label halo") continue;
    boxes.push_back(
        {child.get<double>("<xmlattr>.x"), child.get<double>("<xmlattr>.y"), text_width(child.data(), 12)});
  }
  EXPECT_GE(boxes.size(), 5U);
  for (size_t i = 0; i < boxes.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      const bool apart = boxes[i].x >= boxes[k].x + boxes[k].width - 0.1 ||
                         boxes[k].x >= boxes[i].x + boxes[i].width - 0.1 ||
                         std::abs(boxes[i].y - boxes[k].y) >= 14.9;
      EXPECT_TRUE(apart) << i << " and " << k;
    }
  }
}

TEST(RowCharts, BarsAddUp) {
  StackedBars bars{.title = "memory",
                   .unit = "B",
                   .parts = {"a", "b"},
                   .measured_name = "measured",
                   .limit_name = "budget"};
  bars.rows.push_back({.label = "one", .values = {3e9, 1e9}, .measured = 3.5e9, .limit = 5e9});
  bars.rows.push_back({.label = "two", .values = {3e9, kNoValue}});
  const std::string svg = render_svg({.id = "bars", .title = "t", .body = bars}, {});
  EXPECT_EQ(count(svg, "line", "measured"), 2);  // one bar's and the legend's
  const ptree tree = parsed(svg);
  std::vector<double> widths;
  for (const auto& [name, child] : tree.get_child("svg")) {
    if (name != "g" || child.get("<xmlattr>.class", "") != "row") continue;
    for (const auto& [inner, rect] : child) {
      if (inner == "rect") widths.push_back(rect.get<double>("<xmlattr>.width"));
    }
  }
  ASSERT_EQ(widths.size(), 3U);
  EXPECT_NEAR((widths[0] + 1) / (widths[1] + 1), 3, 0.02);
  EXPECT_NEAR(widths[0], widths[2], 0.02);
}

TEST(RowCharts, RequestsHaveTheirPhases) {
  Gantt gantt;
  gantt.rows.push_back({.name = "0", .sent = 0, .admitted = 1, .first = 2, .end = 4});
  gantt.rows.push_back({.name = "1", .sent = 0, .end = 3, .failed = true});
  gantt.rows.push_back({.name = "2", .sent = kNoValue, .end = kNoValue});
  const std::string svg = render_svg({.id = "gantt", .title = "t", .body = gantt}, {});
  EXPECT_EQ(count(svg, "g", "row"), 3);
  EXPECT_EQ(count(svg, "rect", "p0"), 2);  // one answer and the legend's
  EXPECT_EQ(count(svg, "line", "cross"), 4);
  EXPECT_TRUE(has_text(render_svg({.id = "g", .title = "t", .body = Gantt{}}, {}), "nothing was measured"));
}

TEST(Files, CarryTheirOwnStyle) {
  const std::string alone = render_svg(chart_of({}), {});
  EXPECT_EQ(count(alone, "style", ""), 1);
  EXPECT_NE(alone.find("prefers-color-scheme:dark"), std::string::npos);
  EXPECT_TRUE(has_text(alone, "A & B"));
  const std::string inlined = render_svg(chart_of({}), {.width = 350, .standalone = false});
  EXPECT_EQ(count(inlined, "style", ""), 0);
  EXPECT_FALSE(has_text(inlined, "A & B"));
}

}  // namespace
}  // namespace qwen2::plot
