#include <cstdio>

#include "base/machine.h"
#include "base/units.h"
#include "cli/cli.h"
#include "kernels/cpu/kernels.h"

namespace qwen2::cli {
namespace {

Status info(const ModelFlags& flags) {
  QWEN2_TRY(const auto checkpoint, open_checkpoint(flags.model));
  QWEN2_TRY(const Qwen2Config c,
            parse_qwen2_config(checkpoint->config_json(), checkpoint->generation_config_json()));
  QWEN2_TRY(const Limits limits, limits_of(flags));
  const Machine machine = describe_machine();
  fmt::print(
      "model    {}: {} layers, hidden {}, {} query and {} KV heads of {}, FFN {}, vocabulary {}, {} head\n",
      model_name(flags.model), c.layers, c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.intermediate_size,
      c.vocab_size, c.tied_head ? "tied" : "own");
  fmt::print("context  {} tokens, RoPE theta {}\n", c.max_position_embeddings, c.rope_theta);
  fmt::print("machine  {}, {} cores, {}, {} ({})\n", machine.cpu, machine.cores,
             format_bytes(machine.memory_bytes), cpu::isa_name(cpu::detect_isa()), machine.kernel);
  fmt::print("program  commit {}{}, {}\n", machine.commit, machine.dirty ? " with changes" : "",
             machine.compiler);
  QWEN2_TRY(const CpuOptions options, cpu_options_of(flags));
  QWEN2_TRY(const MemoryPlan plan, plan_cpu_backend(*checkpoint, c, limits, options));
  fmt::print("memory plan\n{}", plan.table());
  return {};
}

}  // namespace

void add_info(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ModelFlags>();
  CLI::App* command = app.add_subcommand("info", "Show a model, its memory plan and this machine");
  flags->add_to(*command);
  command->callback([flags, &action] { action = [flags] { return info(*flags); }; });
}

}  // namespace qwen2::cli
