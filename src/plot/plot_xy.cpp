// Charts with two axes: lines, points, steps and areas.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "plot/plot_frame.h"

namespace qwen2::plot {
namespace {

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void take(double value, bool positive_only) {
    if (!std::isfinite(value) || (positive_only && value <= 0)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  [[nodiscard]] bool empty() const { return !(low <= high); }
};

Range x_range(const XyChart& chart) {
  if (chart.x.scale == ScaleKind::kCategory) return {0, static_cast<double>(chart.x.categories.size()) - 1};
  Range range;
  for (const Series& series : chart.series) {
    for (const Sample& sample : series.samples) range.take(sample.x, chart.x.scale == ScaleKind::kLog);
  }
  return range;
}

Range y_range(const XyChart& chart) {
  const bool log = chart.y.scale == ScaleKind::kLog;
  Range range;
  for (const Series& series : chart.series) {
    for (const Sample& sample : series.samples) {
      for (const double value : {sample.y, sample.low, sample.high}) range.take(value, log);
    }
  }
  for (const Rule& rule : chart.rules) range.take(rule.y, log);
  // What starts at 0 ends there: intervals of few repeats may reach below.
  if (chart.y.from_zero && !log && !range.empty()) range.low = 0;
  return range;
}

std::vector<Tick> numbered(const std::vector<double>& values, const Axis& axis, double step) {
  std::vector<Tick> ticks;
  ticks.reserve(values.size());
  for (const double value : values) {
    const bool round = axis.scale == ScaleKind::kLog || !axis.marks.empty();
    ticks.push_back({value, round ? format_tick(value) : format_tick(value, step)});
  }
  return ticks;
}

std::vector<Tick> y_ticks(const Axis& axis, const Range& range, int count) {
  if (axis.scale == ScaleKind::kLog)
    return numbered(log_ticks(range.low, range.high, count + count / 2), axis, 0);
  const std::vector<double> values = linear_ticks(range.low, range.high, count);
  return numbered(values, axis, values[1] - values[0]);
}

// Draws one chart; values are divided by the axes' display units as they are read.
class XyDrawing {
 public:
  XyDrawing(Svg& svg, const XyChart& chart, double width) : svg_(svg), chart_(chart), width_(width) {}

  double draw(double top) {
    top = draw_legend(svg_, keys(), top, width_);
    Range xs = x_range(chart_);
    Range ys = y_range(chart_);
    if (xs.empty() || ys.empty()) {
      svg_.text("title", width_ / 2, top + 40, "nothing was measured", Anchor::kMiddle);
      return top + 70;
    }
    x_unit_ = display_unit(chart_.x.unit, xs.high);
    y_unit_ = display_unit(chart_.y.unit, std::max(std::abs(ys.low), std::abs(ys.high)));
    xs = {xs.low / x_unit_.divisor, xs.high / x_unit_.divisor};
    ys = {ys.low / y_unit_.divisor, ys.high / y_unit_.divisor};
    return draw_inside(top, xs, ys);
  }

 private:
  std::vector<Key> keys() const {
    std::vector<Key> keys;
    for (const Series& s : chart_.series) {
      if (s.name.empty() || s.samples.empty()) continue;
      const KeyShape shape = s.mark == Mark::kRefused  ? KeyShape::kCross
                             : s.mark == Mark::kPoints ? KeyShape::kMarker
                                                       : KeyShape::kLine;
      const bool marked = s.mark == Mark::kPoints || (s.mark == Mark::kLine && s.markers);
      keys.push_back({s.name, shape, s.colour, s.pattern, marked ? s.shape : -1, s.hollow, ""});
    }
    if (keys.size() == 1 && chart_.rules.empty() && keys[0].shape != KeyShape::kCross) keys.clear();
    return keys;
  }

  double draw_inside(double top, Range xs, Range ys) {
    const double height = std::clamp(width_ * 0.46, 200.0, 330.0);
    std::vector<Tick> rows = y_ticks(chart_.y, ys, static_cast<int>(height / 44));
    if (chart_.y.scale == ScaleKind::kLinear) ys = {rows.front().value, rows.back().value};
    if (chart_.y.scale == ScaleKind::kLog) ys = {ys.low / 1.15, ys.high * 1.15};
    double labels = 0;
    for (const Tick& tick : rows) labels = std::max(labels, text_width(tick.label, kFont));
    svg_.text("title", kEdge, top + 14, fit_text(axis_title(chart_.y, y_unit_), width_ - 2 * kEdge, kFont));
    area_ = {kEdge + labels + 8, top + 30, width_ - kEdge - 10, top + 30 + height};
    y_.emplace(chart_.y.scale, ys.low, ys.high, area_.bottom, area_.top);
    place_x(xs);
    draw_rows(rows);
    const double bottom = draw_x_axis(svg_, x_ticks(), *x_, axis_title(chart_.x, x_unit_), area_);
    draw_rules();
    for (const Series& series : chart_.series) draw_series(series);
    draw_rule_labels();
    draw_labels();
    return bottom;
  }

  void place_x(const Range& xs) {
    if (chart_.x.scale == ScaleKind::kCategory) {
      x_.emplace(chart_.x.scale, -0.5, static_cast<double>(chart_.x.categories.size()) - 0.5, area_.left,
                 area_.right);
      return;
    }
    double low = xs.low;
    double high = xs.high;
    if (chart_.x.from_zero && chart_.x.scale == ScaleKind::kLinear) low = std::min(low, 0.0);
    if (chart_.x.marks.empty() && chart_.x.scale == ScaleKind::kLinear) {
      const auto ticks = linear_ticks(low, high, x_count());
      low = std::max(ticks.front(), low - (high - low) * 0.04);
      high = std::min(ticks.back(), high + (high - low) * 0.04);
    }
    // Room for the markers at the ends, unless the axis starts at 0.
    const double room = low == 0 && chart_.x.from_zero ? 0 : 10;
    x_.emplace(chart_.x.scale, low, high, area_.left + room, area_.right - 6);
  }

  [[nodiscard]] int x_count() const { return std::max(4, static_cast<int>(area_.width() / 72)); }

  [[nodiscard]] std::vector<Tick> x_ticks() const {
    std::vector<Tick> ticks;
    if (chart_.x.scale == ScaleKind::kCategory) {
      const size_t n = chart_.x.categories.size();
      const double slot = area_.width() / static_cast<double>(n) - 8;
      for (size_t i = 0; i < n; ++i) {
        ticks.push_back({static_cast<double>(i), fit_text(chart_.x.categories[i], slot, kFont)});
      }
      return ticks;
    }
    if (!chart_.x.marks.empty()) {
      std::vector<double> values;
      values.reserve(chart_.x.marks.size());
      for (const double mark : chart_.x.marks) values.push_back(mark / x_unit_.divisor);
      ticks = numbered(values, chart_.x, 0);
    } else if (chart_.x.scale == ScaleKind::kLog) {
      ticks = numbered(log_ticks(x_->low(), x_->high(), x_count()), chart_.x, 0);
    } else {
      const auto values = linear_ticks(x_->low(), x_->high(), x_count());
      ticks = numbered(values, chart_.x, values[1] - values[0]);
    }
    std::erase_if(ticks, [&](const Tick& t) {
      const double x = (*x_)(t.value);
      return !(x >= area_.left - 1 && x <= area_.right + 1);
    });
    return thin_ticks(ticks, *x_);
  }

  void draw_rows(const std::vector<Tick>& ticks) {
    svg_.open("ticks y");
    for (const Tick& tick : ticks) {
      const double y = (*y_)(tick.value);
      svg_.line("grid", area_.left, y, area_.right, y);
      svg_.text("tick", area_.left - 8, y + 4, tick.label, Anchor::kEnd);
    }
    svg_.close();
  }

  void draw_rules() {
    for (const Rule& rule : chart_.rules) {
      const double y = (*y_)(rule.y / y_unit_.divisor);
      if (std::isfinite(y)) svg_.path("rule", path_data({{area_.left, y}, {area_.right, y}}), "5 4");
    }
  }

  [[nodiscard]] bool crosses_a_line(const Area& box) const {
    return std::any_of(drawn_.begin(), drawn_.end(), [&](const auto& point) {
      const auto& [x, y] = point;
      return x > box.left - 3 && x < box.right + 3 && y > box.top - 2 && y < box.bottom + 2;
    });
  }

  // At either end of its rule, above or below, wherever no line passes.
  void draw_rule_labels() {
    for (const Rule& rule : chart_.rules) {
      const double y = (*y_)(rule.y / y_unit_.divisor);
      if (!std::isfinite(y)) continue;
      const std::string name = fit_text(rule.name, area_.width() - 8, kFont);
      const double wide = text_width(name, kFont);
      const Area places[] = {{area_.right - 2 - wide, y - 17, area_.right - 2, y - 2},
                             {area_.left + 4, y - 17, area_.left + 4 + wide, y - 2},
                             {area_.right - 2 - wide, y + 3, area_.right - 2, y + 18},
                             {area_.left + 4, y + 3, area_.left + 4 + wide, y + 18}};
      const auto free = std::find_if(std::begin(places), std::end(places),
                                     [&](const Area& box) { return is_free(box) && !crosses_a_line(box); });
      const Area& box = free == std::end(places) ? places[0] : *free;
      svg_.text("title halo", box.left, box.top + 12, name);
      taken_.push_back(box);
    }
  }

  // Series of one category stand beside each other.
  [[nodiscard]] double shift(const Series& series) const {
    if (chart_.x.scale != ScaleKind::kCategory) return 0;
    const auto n = static_cast<double>(chart_.series.size());
    const double slot = area_.width() / static_cast<double>(chart_.x.categories.size());
    const auto at = static_cast<double>(&series - chart_.series.data());
    return (at - (n - 1) / 2) * std::min(18.0, 0.7 * slot / n);
  }

  struct Placed {
    double x, y, low, high;
    const Sample* sample;
  };

  // The samples' pixels; the y of a refused one without value is at the upper edge.
  [[nodiscard]] std::vector<Placed> place(const Series& series) const {
    std::vector<Placed> placed;
    for (const Sample& s : series.samples) {
      double y = (*y_)(s.y / y_unit_.divisor);
      if (series.mark == Mark::kRefused && !std::isfinite(y)) y = area_.top + 8;
      const auto inside = [&](double value) {
        return std::isfinite(value) ? std::clamp(value, area_.top, area_.bottom) : value;
      };
      double low = inside((*y_)(s.low / y_unit_.divisor));
      // An interval that reaches below a log axis ends at its foot.
      if (chart_.y.scale == ScaleKind::kLog && s.low <= 0) low = area_.bottom;
      placed.push_back({(*x_)(s.x / x_unit_.divisor) + shift(series), y, low,
                        inside((*y_)(s.high / y_unit_.divisor)), &s});
    }
    return placed;
  }

  static bool visible(const Placed& p) { return std::isfinite(p.x) && std::isfinite(p.y); }
  static bool has_interval(const Placed& p) {
    return visible(p) && std::isfinite(p.low) && std::isfinite(p.high);
  }

  // Calls draw(points) for each run of visible neighbours.
  template <class Keep, class Draw>
  static void for_runs(const std::vector<Placed>& placed, Keep keep, Draw draw) {
    std::vector<Placed> run;
    for (const Placed& p : placed) {
      if (keep(p)) {
        run.push_back(p);
        continue;
      }
      if (!run.empty()) draw(run);
      run.clear();
    }
    if (!run.empty()) draw(run);
  }

  void draw_series(const Series& series) {
    const std::vector<Placed> placed = place(series);
    if (series.mark == Mark::kLine || series.mark == Mark::kStep || series.mark == Mark::kArea) {
      for_runs(placed, visible, [&](const std::vector<Placed>& run) { draw_line(series, run); });
    }
    if (series.mark == Mark::kLine && chart_.x.scale != ScaleKind::kCategory) {
      for_runs(placed, has_interval, [&](const std::vector<Placed>& run) { draw_band(series, run); });
    }
    if (series.mark == Mark::kStep || series.mark == Mark::kArea) return;
    for (const Placed& p : placed) {
      if (visible(p)) draw_point(series, p);
    }
  }

  void draw_line(const Series& series, const std::vector<Placed>& run) {
    Points points;
    for (const Placed& p : run) {
      if (series.mark != Mark::kLine && !points.empty()) points.emplace_back(p.x, points.back().second);
      points.emplace_back(p.x, p.y);
    }
    if (series.mark == Mark::kArea) {
      Points outline = points;
      outline.emplace_back(points.back().first, area_.bottom);
      outline.emplace_back(points.front().first, area_.bottom);
      svg_.path("area " + fill_class(series.colour), path_data(outline) + "Z");
    }
    svg_.path("line " + stroke_class(series.colour), path_data(points), dashes(series.pattern));
    remember(points);
  }

  // Points every few pixels along a line.
  void remember(const Points& points) {
    for (size_t i = 1; i < points.size(); ++i) {
      const auto& [x0, y0] = points[i - 1];
      const auto& [x1, y1] = points[i];
      const int steps = 1 + static_cast<int>(std::hypot(x1 - x0, y1 - y0) / 6);
      for (int k = 0; k <= steps; ++k) {
        const double part = static_cast<double>(k) / steps;
        drawn_.emplace_back(x0 + part * (x1 - x0), y0 + part * (y1 - y0));
      }
    }
  }

  void draw_band(const Series& series, const std::vector<Placed>& run) {
    if (run.size() < 2) return draw_whisker(series, run.front());
    Points outline;
    for (const Placed& p : run) outline.emplace_back(p.x, p.high);
    for (auto p = run.rbegin(); p != run.rend(); ++p) outline.emplace_back(p->x, p->low);
    svg_.path("band " + fill_class(series.colour), path_data(outline) + "Z");
  }

  void draw_whisker(const Series& series, const Placed& p) {
    const std::string classes = "whisker " + stroke_class(series.colour);
    svg_.line(classes, p.x, p.low, p.x, p.high);
    for (const double y : {p.low, p.high}) svg_.line(classes, p.x - 4, y, p.x + 4, y);
  }

  void draw_point(const Series& series, const Placed& p) {
    const bool marked = series.mark != Mark::kLine || series.markers;
    if (!marked && p.sample->tip.empty()) return;
    svg_.open("point", p.sample->tip);
    if (series.mark == Mark::kPoints && has_interval(p)) draw_whisker(series, p);
    if (!p.sample->tip.empty()) svg_.circle("hit", p.x, p.y, 10);
    if (series.mark == Mark::kRefused) {
      draw_cross(svg_, p.x, p.y);
    } else if (marked) {
      draw_marker(svg_, series.shape, series.colour, series.hollow, p.x, p.y);
    }
    svg_.close();
    if (marked) taken_.push_back({p.x - 5, p.y - 5, p.x + 5, p.y + 5});
    if (!p.sample->label.empty()) labels_.push_back({p.x, p.y, p.sample->label});
  }

  [[nodiscard]] bool is_free(const Area& box) const {
    if (box.left < area_.left || box.right > width_ - 2 || box.top < area_.top - 12 ||
        box.bottom > area_.bottom)
      return false;
    return std::none_of(taken_.begin(), taken_.end(), [&](const Area& other) {
      return box.left < other.right && other.left < box.right && box.top < other.bottom &&
             other.top < box.bottom;
    });
  }

  // Each label goes to the first free place around its point; without one it is left to the point's tip.
  void draw_labels() {
    for (const auto& [x, y, text] : labels_) {
      const double wide = text_width(text, kFont);
      const std::pair<double, double> corners[] = {
          {x + 8, y - 8},         {x - wide / 2, y - 22}, {x + 8, y - 18},       {x + 8, y + 4},
          {x - wide - 8, y - 8},  {x - wide - 8, y - 20}, {x - wide / 2, y + 8}, {x - wide - 8, y + 4},
          {x - wide / 2, y - 34}, {x - wide / 2, y + 22}};
      for (const auto& [left, top] : corners) {
        const Area box{left, top, left + wide, top + 15};
        if (!is_free(box)) continue;
        svg_.text("label halo", left, top + 12, text);
        taken_.push_back(box);
        break;
      }
    }
  }

  struct Label {
    double x, y;
    std::string text;
  };

  Svg& svg_;
  const XyChart& chart_;
  double width_;
  DisplayUnit x_unit_, y_unit_;
  Area area_{};
  std::optional<Scale> x_, y_;
  std::vector<Area> taken_;  // by markers and labels
  Points drawn_;             // of lines
  std::vector<Label> labels_;
};

}  // namespace

double draw(Svg& svg, const XyChart& chart, double top, double width) {
  return XyDrawing(svg, chart, width).draw(top);
}

}  // namespace qwen2::plot
