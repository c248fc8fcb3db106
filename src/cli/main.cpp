#include <cstdio>
#include <string>
#include <vector>

#include "base/machine.h"
#include "cli/cli.h"

namespace {

// "--ctx_len" is taken as "--ctx-len".
std::vector<std::string> with_hyphens(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {  // CLI11 takes them in reverse order
    std::string argument = argv[i];
    if (argument.starts_with("--")) {
      const size_t end = std::min(argument.find('='), argument.size());
      std::replace(argument.begin(), argument.begin() + static_cast<std::ptrdiff_t>(end), '_', '-');
    }
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

constexpr int kUsageError = 2;
constexpr int kInterrupted = 130;  // as a shell says of a program that Ctrl-C ended

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Serves a Qwen2 model inside a memory budget, and measures it.", "qwen2");
  app.require_subcommand(1);
  app.set_version_flag("--version", qwen2::describe_machine().version);
  qwen2::cli::Action action;
  qwen2::cli::add_serve(app, action);
  qwen2::cli::add_generate(app, action);
  qwen2::cli::add_info(app, action);
  qwen2::cli::add_plan(app, action);
  qwen2::cli::add_evaluate(app, action);
  qwen2::cli::add_quantize(app, action);
  qwen2::cli::add_report(app, action);
  CLI::App* bench = app.add_subcommand("bench", "Benchmarks");
  bench->require_subcommand(1);
  qwen2::cli::add_bench_engine(*bench, action);
  qwen2::cli::add_bench_serve(*bench, action);
  int exit_code = 0;
  qwen2::cli::add_experiment(app, action, exit_code);
  try {
    app.parse(with_hyphens(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsageError;
  }
  const qwen2::Status status = action();
  if (!status) {
    std::fprintf(stderr, "qwen2: %s\n", status.error().message.c_str());
    return status.error().kind == qwen2::ErrorKind::kInterrupted ? kInterrupted : 1;
  }
  return exit_code;
}
