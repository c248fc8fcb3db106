#include <filesystem>

#include "cli/cli.h"
#include "experiment/report.h"

namespace qwen2::cli {

namespace fs = std::filesystem;

namespace {

struct ReportFlags {
  std::string directory;
  std::string output;
};

Status report(const ReportFlags& flags) {
  const fs::path html =
      flags.output.empty() ? fs::path(flags.directory) / "report.html" : fs::path(flags.output);
  if (html.extension() != ".html")
    return fail(ErrorKind::kInvalidArgument, "--output '{}' must end with .html", flags.output);
  QWEN2_CHECK(write_report(flags.directory, html));
  fmt::print("wrote {}, the same as Markdown, and plots/ beside it\n", html.string());
  return {};
}

}  // namespace

void add_report(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* command = app.add_subcommand("report", "An experiment's results as HTML and Markdown");
  command->add_option("DIR", flags->directory, "Directory that `qwen2 experiment run` wrote")->required();
  command->add_option("--output", flags->output, "HTML file (default: DIR/report.html)");
  command->callback([flags, &action] { action = [flags] { return report(*flags); }; });
}

}  // namespace qwen2::cli
