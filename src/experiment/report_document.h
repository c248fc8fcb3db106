// What a report says, before it is HTML or Markdown.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "experiment/report_data.h"
#include "plot/plot.h"

namespace qwen2::report {

enum class Tone { kPlain, kGood, kBad, kSoft };

// g++ warns of members that a designated initialiser leaves out, unless they have an initialiser.
// NOLINTBEGIN(readability-redundant-member-init)

struct Cell {
  std::string text{};
  Tone tone = Tone::kPlain;
  double value = kNoValue;  // exactly what `text` rounds
  std::string tip{};
};

struct Table {
  struct Column {
    std::string title{};
    bool numeric = false;
  };
  struct Row {
    std::vector<Cell> cells{};
    std::string command{};  // that measured the row; may be empty
  };
  std::vector<Column> columns{};
  std::vector<Row> rows{};
  bool folded = false;    // long: shown on demand
  std::string summary{};  // of a folded one
};

struct Paragraph {
  std::string text{};
  bool notice = false;  // what the reader must not miss
};

struct Heading {
  std::string text{};
};

using Block = std::variant<Paragraph, Heading, Table, plot::Chart>;

struct Section {
  std::string title{};
  std::vector<Block> blocks{};
};

struct Document {
  std::string title, question, dates;
  std::vector<Section> sections{};
};

Document make_document(const Experiment& experiment);

std::string to_html(const Document& document);

// Plots are linked as plots/ID.svg.
std::string to_markdown(const Document& document);

// NOLINTEND(readability-redundant-member-init)

}  // namespace qwen2::report
