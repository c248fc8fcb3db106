// The report as one HTML file: no script, nothing from the network.
#include <fmt/format.h>

#include <cmath>
#include <iterator>

#include "experiment/report_document.h"
#include "plot/svg.h"

namespace qwen2::report {
namespace {

using plot::xml_escape;

// Charts are drawn twice: text and room suit columns of a desktop page or of paper, and phones.
constexpr int kWideChart = 560;
constexpr int kNarrowChart = 350;

constexpr std::string_view kPageCss = R"css(
*{box-sizing:border-box}
:root{--card:#f6f8fa;--line:#d8dee4;--good:#0b6b3a;--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media (prefers-color-scheme:dark){:root{--card:#1a2028;--line:#303843;--good:#56d39a}}
html{background:var(--ground);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1180px;padding:0 24px 64px;font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{padding:44px 0 20px;border-bottom:1px solid var(--line)}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4em;letter-spacing:-.01em;text-wrap:balance}
.question{font-size:1.15rem;margin:0;max-width:46em}.dates{color:var(--soft);font-size:.9rem;margin:.8em 0 0}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:16px;font-size:.92rem}
a{color:var(--s0);text-underline-offset:3px}
section{padding-top:30px}h2{font-size:1.35rem;margin:0 0 .6em;letter-spacing:-.005em}
h3{font-size:1rem;margin:0}section>h3{margin:1.4em 0 .6em}p{margin:.5em 0 1em;max-width:52em}
.notice{border-left:4px solid var(--bad);background:var(--card);padding:.7em 1em}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:22px;align-items:start}
figure{margin:0;padding:16px 14px 12px;border:1px solid var(--line);border-radius:10px;min-width:0}
figcaption{padding:0 8px 6px}figure .note{color:var(--soft);font-size:.85rem;margin:.4em 8px 0}
svg.chart{display:block;width:100%;height:auto;overflow:hidden}.narrow{display:none}
.scroll{overflow-x:auto;width:fit-content;max-width:100%;border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:left;vertical-align:baseline}td{white-space:nowrap}td.long,.command td{white-space:normal}
th{font-weight:600;background:var(--card);border-bottom:1px solid var(--line);vertical-align:bottom}
tr+tr>td{border-top:1px solid var(--line)}tr.command>td{border-top:0;padding-top:0;max-width:0}
.n{text-align:right}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}.soft{color:var(--soft)}
code{font:.82rem/1.5 var(--mono);color:var(--soft);user-select:all;overflow-wrap:anywhere}
details{margin-top:.5em}summary{cursor:pointer;color:var(--s0);margin-bottom:.6em}
@media screen and (max-width:640px){body{padding:0 14px 40px}header{padding-top:24px}h1{font-size:1.55rem}
.wide{display:none}.narrow{display:block}figure{padding:14px 4px 10px}th,td{padding:5px 9px}table{font-size:.8rem}}
@media print{@page{margin:14mm}html{font-size:10pt}:root{--card:#f3f4f6;--line:#ccc;--good:#0b6b3a}body{max-width:none;padding:0;font-size:10pt}nav{display:none}
header{padding-top:0}section{padding-top:18px}h2,h3{break-after:avoid}figure,tr{break-inside:avoid}thead{display:table-header-group}
.plots{grid-template-columns:1fr 1fr;gap:12px}figure{padding:8px 4px}.scroll{overflow:visible;border:0}
table{font-size:8pt}th,td{padding:3px 6px}code{font-size:7pt}td{white-space:normal}details:not([open]){display:none}}
)css";

std::string_view tone_class(Tone tone) {
  switch (tone) {
    case Tone::kGood:
      return "good";
    case Tone::kBad:
      return "bad";
    case Tone::kSoft:
      return "soft";
    default:
      return "";
  }
}

class HtmlWriter {
 public:
  explicit HtmlWriter(const Document& document) : document_(document) {}

  std::string write() {
    put("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" "
        "href=\"data:,\">\n"
        "<title>{}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n",
        xml_escape(document_.title), plot::chart_css(), kPageCss);
    header();
    out_ += "<main>\n";
    for (size_t i = 0; i < document_.sections.size(); ++i) section(document_.sections[i], i);
    out_ += "</main>\n</body>\n</html>\n";
    return std::move(out_);
  }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }

  void header() {
    put("<header>\n<h1>{}</h1>\n", xml_escape(document_.title));
    if (!document_.question.empty()) put("<p class=\"question\">{}</p>\n", xml_escape(document_.question));
    if (!document_.dates.empty()) put("<p class=\"dates\">{}</p>\n", xml_escape(document_.dates));
    out_ += "<nav>";
    for (size_t i = 0; i < document_.sections.size(); ++i) {
      put("<a href=\"#s{}\">{}</a>", i, xml_escape(document_.sections[i].title));
    }
    out_ += "</nav>\n</header>\n";
  }

  void section(const Section& section, size_t number) {
    put("<section id=\"s{}\">\n<h2>{}</h2>\n", number, xml_escape(section.title));
    bool in_plots = false;
    for (const Block& block : section.blocks) {
      const bool is_plot = std::holds_alternative<plot::Chart>(block);
      if (is_plot != in_plots) out_ += is_plot ? "<div class=\"plots\">\n" : "</div>\n";
      in_plots = is_plot;
      std::visit([this](const auto& b) { put_block(b); }, block);
    }
    if (in_plots) out_ += "</div>\n";
    out_ += "</section>\n";
  }

  void put_block(const Paragraph& p) {
    put("<p{}>{}</p>\n", p.notice ? " class=\"notice\"" : "", xml_escape(p.text));
  }
  void put_block(const Heading& h) { put("<h3>{}</h3>\n", xml_escape(h.text)); }

  void put_block(const plot::Chart& chart) {
    put("<figure id=\"{}\">\n<figcaption><h3>{}</h3></figcaption>\n<div class=\"wide\">{}</div>\n<div "
        "class=\"narrow\">{}</div>\n",
        chart.id, xml_escape(chart.title), plot::render_svg(chart, {kWideChart, false}),
        plot::render_svg(chart, {kNarrowChart, false}));
    if (!chart.note.empty()) put("<p class=\"note\">{}</p>\n", xml_escape(chart.note));
    out_ += "</figure>\n";
  }

  void put_block(const Table& table) {
    if (table.folded) put("<details>\n<summary>{}</summary>\n", xml_escape(table.summary));
    out_ += "<div class=\"scroll\" tabindex=\"0\">\n<table>\n<thead><tr>";
    for (const Table::Column& column : table.columns)
      put("<th{}>{}</th>", column.numeric ? " class=\"n\"" : "", xml_escape(column.title));
    out_ += "</tr></thead>\n<tbody>\n";
    for (const Table::Row& row : table.rows) {
      out_ += "<tr>";
      for (size_t i = 0; i < row.cells.size(); ++i) cell(row.cells[i], table.columns[i].numeric);
      out_ += "</tr>\n";
      if (row.command.empty()) continue;
      put("<tr class=\"command\"><td colspan=\"{}\"><code>{}</code></td></tr>\n", row.cells.size(),
          xml_escape(row.command));
    }
    out_ += "</tbody>\n</table>\n</div>\n";
    if (table.folded) out_ += "</details>\n";
  }

  void cell(const Cell& cell, bool numeric) {
    std::string classes = numeric ? "n" : "";
    if (const std::string_view tone = tone_class(cell.tone); !tone.empty())
      classes += (classes.empty() ? "" : " ") + std::string(tone);
    // Short texts stay on one line.
    if (cell.text.size() > 60) classes += classes.empty() ? "long" : " long";
    out_ += "<td";
    if (!classes.empty()) put(" class=\"{}\"", classes);
    if (!cell.tip.empty()) put(" title=\"{}\"", xml_escape(cell.tip));
    if (std::isfinite(cell.value)) {
      put("><data value=\"{}\">{}</data></td>", cell.value, xml_escape(cell.text));
    } else {
      put(">{}</td>", xml_escape(cell.text));
    }
  }

  const Document& document_;
  std::string out_;
};

}  // namespace

std::string to_html(const Document& document) {
  return HtmlWriter(document).write();
}

}  // namespace qwen2::report
