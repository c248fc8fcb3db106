// The report of an experiment directory, see docs/report.md.
#pragma once

#include <filesystem>

#include "base/error.h"

namespace qwen2 {

// Reads `directory` and writes the HTML file `html`, the same as Markdown beside it (report.html: report.md),
// and plots/*.svg, which the Markdown shows.
Status write_report(const std::filesystem::path& directory, const std::filesystem::path& html);

}  // namespace qwen2
