// The report as Markdown in GitHub's flavour.
#include <fmt/format.h>

#include <iterator>
#include <string_view>

#include "experiment/report_document.h"

namespace qwen2::report {
namespace {

// Text of one line in which nothing is markup, also inside of a table.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n' || c == '\r') {
      out += ' ';
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      if (std::string_view("\\`*_[]|#~").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

// A code span in a table; a text with backticks needs a fence that is longer than any of its own.
std::string code(std::string_view text) {
  size_t longest = 0;
  size_t run = 0;
  std::string out;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
    if (c == '|') out += '\\';
    out += c == '\n' || c == '\r' ? ' ' : c;
  }
  const std::string fence(longest + 1, '`');
  const std::string_view pad = longest > 0 ? " " : "";
  return fmt::format("{}{}{}{}{}", fence, pad, out, pad, fence);
}

void put(std::string& out, const Paragraph& p) {
  out += (p.notice ? "> **Note:** " : "") + escaped(p.text) + "\n\n";
}

void put(std::string& out, const Heading& h) {
  out += "### " + escaped(h.text) + "\n\n";
}

void put(std::string& out, const plot::Chart& chart) {
  fmt::format_to(std::back_inserter(out), "### {0}\n\n![{0}](plots/{1}.svg)\n\n", escaped(chart.title),
                 chart.id);
  if (!chart.note.empty()) out += escaped(chart.note) + "\n\n";
}

void put(std::string& out, const Table& table) {
  bool commands = false;
  for (const Table::Row& row : table.rows) commands = commands || !row.command.empty();
  if (table.folded) out += "<details>\n<summary>" + escaped(table.summary) + "</summary>\n\n";
  for (const Table::Column& column : table.columns) out += "| " + escaped(column.title) + " ";
  out += commands ? "| command |\n" : "|\n";
  for (const Table::Column& column : table.columns) out += column.numeric ? "| ---: " : "| --- ";
  out += commands ? "| --- |\n" : "|\n";
  for (const Table::Row& row : table.rows) {
    for (const Cell& cell : row.cells) {
      const std::string_view strong = cell.tone == Tone::kBad || cell.tone == Tone::kGood ? "**" : "";
      fmt::format_to(std::back_inserter(out), "| {0}{1}{0} ", strong, escaped(cell.text));
    }
    out += commands ? "| " + (row.command.empty() ? std::string() : code(row.command)) + " |\n" : "|\n";
  }
  out += "\n";
  if (table.folded) out += "</details>\n\n";
}

}  // namespace

std::string to_markdown(const Document& document) {
  std::string out = "# " + escaped(document.title) + "\n\n";
  for (const std::string& text : {document.question, document.dates}) {
    if (!text.empty()) out += escaped(text) + "\n\n";
  }
  for (const Section& section : document.sections) {
    out += "## " + escaped(section.title) + "\n\n";
    for (const Block& block : section.blocks) std::visit([&](const auto& b) { put(out, b); }, block);
  }
  while (out.ends_with("\n\n")) out.pop_back();
  return out;
}

}  // namespace qwen2::report
