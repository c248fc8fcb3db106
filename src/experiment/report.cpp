#include "experiment/report.h"

#include "base/memory.h"
#include "experiment/report_document.h"

namespace qwen2 {

namespace fs = std::filesystem;

namespace {

Status write_plots(const report::Document& document, const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return fail(ErrorKind::kIo, "cannot make '{}': {}", folder.string(), error.message());
  for (const report::Section& section : document.sections) {
    for (const report::Block& block : section.blocks) {
      const auto* chart = std::get_if<plot::Chart>(&block);
      if (chart == nullptr) continue;
      QWEN2_CHECK(write_file(folder / (chart->id + ".svg"), plot::render_svg(*chart, {})));
    }
  }
  return {};
}

}  // namespace

Status write_report(const fs::path& directory, const fs::path& html) {
  QWEN2_TRY(const report::Experiment experiment, report::load_experiment(directory));
  const report::Document document = report::make_document(experiment);
  QWEN2_CHECK(write_plots(document, html.parent_path() / "plots"));
  QWEN2_CHECK(write_file(fs::path(html).replace_extension(".md"), report::to_markdown(document)));
  return write_file(html, report::to_html(document));
}

}  // namespace qwen2
