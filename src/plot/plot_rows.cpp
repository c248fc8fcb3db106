// Charts of rows: stacked bars and the Gantt chart of requests.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "plot/plot_frame.h"

namespace qwen2::plot {
namespace {

constexpr int kPartClasses = 5;  // p0 to p4

std::string part_class(size_t part) {
  return fmt::format("p{}", part % kPartClasses);
}

double total(const StackedBars::Row& row) {
  double sum = 0;
  for (const double value : row.values) sum += std::isfinite(value) ? std::max(value, 0.0) : 0;
  return sum;
}

std::vector<Tick> ticks_of(double high, double width) {
  const auto values = linear_ticks(0, high, std::max(2, static_cast<int>(width / 80)));
  std::vector<Tick> ticks;
  ticks.reserve(values.size());
  for (const double value : values) ticks.push_back({value, format_tick(value, values[1] - values[0])});
  return ticks;
}

void draw_columns(Svg& svg, const std::vector<Tick>& ticks, const Scale& scale, const Area& area) {
  for (const Tick& tick : ticks)
    svg.line("grid", scale(tick.value), area.top, scale(tick.value), area.bottom);
}

std::vector<Key> keys_of(const StackedBars& chart) {
  std::vector<Key> keys;
  keys.reserve(chart.parts.size() + 2);
  for (size_t i = 0; i < chart.parts.size(); ++i) {
    keys.push_back({.name = chart.parts[i], .shape = KeyShape::kBox, .box_class = part_class(i)});
  }
  const auto any = [&](double StackedBars::Row::* field) {
    return std::any_of(chart.rows.begin(), chart.rows.end(),
                       [&](const auto& row) { return std::isfinite(row.*field); });
  };
  if (any(&StackedBars::Row::measured))
    keys.push_back({.name = chart.measured_name, .shape = KeyShape::kTick});
  if (any(&StackedBars::Row::limit)) keys.push_back({.name = chart.limit_name, .shape = KeyShape::kRule});
  return keys;
}

void draw_bar(Svg& svg, const StackedBars::Row& row, const Scale& scale, double divisor, double y,
              double thick) {
  svg.open("row", row.tip);
  double sum = 0;
  for (size_t i = 0; i < row.values.size(); ++i) {
    if (!std::isfinite(row.values[i]) || row.values[i] <= 0) continue;
    const double from = scale(sum / divisor);
    sum += row.values[i];
    // A pixel of ground keeps neighbours apart.
    svg.rect(part_class(i), from, y, std::max(scale(sum / divisor) - from - 1, 0.5), thick);
  }
  if (std::isfinite(row.limit)) {
    const double x = scale(row.limit / divisor);
    svg.path("rule", path_data({{x, y - 4}, {x, y + thick + 4}}), "5 4");
  }
  if (std::isfinite(row.measured)) {
    const double x = scale(row.measured / divisor);
    svg.line("measured", x, y - 4, x, y + thick + 4);
  }
  svg.close();
}

}  // namespace

double draw(Svg& svg, const StackedBars& chart, double top, double width) {
  constexpr double kThick = 16;
  constexpr double kStep = 44;  // the label stands above its bar: room for long ones
  top = draw_legend(svg, keys_of(chart), top, width) + 4;
  double high = 0;
  for (const auto& row : chart.rows) {
    for (const double value : {total(row), row.measured, row.limit}) {
      if (std::isfinite(value)) high = std::max(high, value);
    }
  }
  if (high <= 0) {
    svg.text("title", width / 2, top + 40, "nothing was measured", Anchor::kMiddle);
    return top + 70;
  }
  const DisplayUnit unit = display_unit(chart.unit, high);
  const Area area{kEdge + 4, top, width - 24, top + kStep * static_cast<double>(chart.rows.size()) + 4};
  std::vector<Tick> ticks = ticks_of(high / unit.divisor, area.width());
  const Scale scale(ScaleKind::kLinear, 0, ticks.back().value, area.left, area.right);
  draw_columns(svg, ticks, scale, area);
  for (size_t i = 0; i < chart.rows.size(); ++i) {
    const double y = top + kStep * static_cast<double>(i);
    svg.text("label halo", area.left + 2, y + 14, fit_text(chart.rows[i].label, area.width() - 8, kFont));
    draw_bar(svg, chart.rows[i], scale, unit.divisor, y + 20, kThick);
  }
  return draw_x_axis(svg, thin_ticks(ticks, scale), scale,
                     axis_title({.title = chart.title, .unit = ""}, unit), area);
}

namespace {

const std::vector<Key>& gantt_keys() {
  static const std::vector<Key> kKeys{{.name = "in the queue", .shape = KeyShape::kBox, .box_class = "p4"},
                                      {.name = "prompt", .shape = KeyShape::kBox, .box_class = "p2"},
                                      {.name = "answer", .shape = KeyShape::kBox, .box_class = "p0"},
                                      {.name = "failed", .shape = KeyShape::kCross}};
  return kKeys;
}

void draw_request(Svg& svg, const Gantt::Row& row, const Scale& scale, double y, double thick) {
  const auto bar = [&](std::string_view classes, double from, double to) {
    if (std::isfinite(from) && std::isfinite(to) && to > from)
      svg.rect(classes, scale(from), y, std::max(scale(to) - scale(from), 0.5), thick);
  };
  svg.open("row", row.tip);
  const double first = std::isfinite(row.first) ? row.first : row.end;
  const double admitted = std::isfinite(row.admitted) ? std::min(row.admitted, first) : row.sent;
  bar("p4", row.sent, admitted);
  bar("p2", admitted, first);
  bar("p0", row.first, row.end);
  if (row.failed && std::isfinite(row.end)) draw_cross(svg, scale(row.end), y + thick / 2);
  svg.close();
}

}  // namespace

double draw(Svg& svg, const Gantt& chart, double top, double width) {
  std::vector<Key> keys = gantt_keys();
  double high = 0;
  double labels = 0;
  bool failed = false;
  for (const auto& row : chart.rows) {
    if (std::isfinite(row.end)) high = std::max(high, row.end);
    labels = std::max(labels, text_width(row.name, kFont));
    failed = failed || row.failed;
  }
  if (!failed) keys.pop_back();
  top = draw_legend(svg, keys, top, width);
  if (high <= 0) {
    svg.text("title", width / 2, top + 40, "nothing was measured", Anchor::kMiddle);
    return top + 70;
  }
  // Rows as thick as reads well, thinner where there are many; as many names as there is room for.
  const auto n = static_cast<double>(chart.rows.size());
  const double step = std::clamp(420 / n, 6.0, 18.0);
  const auto every = static_cast<size_t>(std::ceil(15 / step));
  svg.text("title", kEdge, top + 14, "request");
  const Area area{kEdge + labels + 8, top + 24, width - 18, top + 28 + step * n};
  const DisplayUnit unit = display_unit("s", high);
  std::vector<Tick> ticks = ticks_of(high / unit.divisor, area.width());
  const Scale scale(ScaleKind::kLinear, 0, ticks.back().value * unit.divisor, area.left, area.right);
  for (Tick& tick : ticks) tick.value *= unit.divisor;
  draw_columns(svg, ticks, scale, area);
  for (size_t i = 0; i < chart.rows.size(); ++i) {
    const double y = area.top + 2 + step * static_cast<double>(i);
    draw_request(svg, chart.rows[i], scale, y, step - (step > 8 ? 3 : 1.5));
  }
  svg.open("ticks y");
  for (size_t i = 0; i < chart.rows.size(); i += every) {
    svg.text("tick", area.left - 8, area.top + 2 + step * (static_cast<double>(i) + 0.5) + 3,
             chart.rows[i].name, Anchor::kEnd);
  }
  svg.close();
  return draw_x_axis(svg, thin_ticks(ticks, scale), scale, fmt::format("since the start ({})", unit.name),
                     area);
}

}  // namespace qwen2::plot
