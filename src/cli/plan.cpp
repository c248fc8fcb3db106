#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>

#include "backend/cuda/layout.h"
#include "base/units.h"
#include "cli/cli.h"
#include "model/gpu_card.h"

namespace qwen2::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

struct PlanFlags {
  ModelFlags model;
  std::string gpu;
  int64_t ctx_len = 2048;
  int64_t max_new_tokens = 64;
  std::string output;
};

Result<GpuCard> find_card(const std::string& gpu) {
  if (fs::is_regular_file(gpu)) {
    QWEN2_TRY(const auto cards, read_gpu_cards(gpu));
    if (cards.size() == 1) return cards.front();
    return fail(ErrorKind::kInvalidArgument, "--gpu '{}' has {} cards; a file of one is expected", gpu,
                cards.size());
  }
  const fs::path table = shipped_path("data/gpus.json");
  if (table.empty())
    return fail(ErrorKind::kNotFound, "data/gpus.json was not found above the program or the current folder");
  QWEN2_TRY(const auto cards, read_gpu_cards(table));
  std::string names;
  for (const GpuCard& card : cards) {
    if (card.name == gpu) return card;
    names += (names.empty() ? "" : ", ") + card.name;
  }
  return fail(ErrorKind::kInvalidArgument, "--gpu '{}' is neither a file nor one of {}", gpu, names);
}

// The least time that the card's memory and its tensor cores allow.
struct Roofline {
  double ttft = 0;  // seconds, of one prompt
  double tpot = 0;  // seconds, of one request alone
  double tpot_full = 0;
  double throughput = 0;  // tokens a second of all resident requests
};

Roofline roofline_of(const Qwen2Config& c, const GpuCard& card, const CudaPlanDraft& draft,
                     const PlanFlags& flags) {
  const auto context = static_cast<double>(flags.ctx_len);
  const auto depth = context + static_cast<double>(flags.max_new_tokens) / 2;
  const auto layers = static_cast<double>(c.layers);
  const auto hidden = static_cast<double>(c.hidden_size);
  const double weights =
      layers * hidden * static_cast<double>(c.qkv_size() + c.q_size() + 3 * c.intermediate_size);
  const double head = hidden * static_cast<double>(c.vocab_size);
  // Two operations a weight and token; scores and sums of values, under the diagonal.
  const double prompt =
      2 * weights * context + 2 * head + 2 * layers * static_cast<double>(c.q_size()) * context * context;
  const auto step = [&](double requests) {
    const double kv = requests * depth * static_cast<double>(draft.plan.kv_bytes_per_token);
    const double bytes = static_cast<double>(draft.decode_bytes) + kv;
    const double operations = 2 * (weights + head) * requests;
    return std::max(bytes / card.bandwidth, operations / card.fp16_flops);
  };
  Roofline r;
  r.ttft = std::max(prompt / card.fp16_flops, static_cast<double>(draft.decode_bytes) / card.bandwidth);
  r.tpot = step(1);
  const auto resident = static_cast<double>(std::max<int64_t>(draft.resident_requests, 1));
  r.tpot_full = step(resident);
  r.throughput = resident / r.tpot_full;
  return r;
}

json::object to_json(const PlanFlags& flags, const GpuCard& card, const CudaPlanDraft& draft,
                     const Roofline& r) {
  const MemoryPlan& plan = draft.plan;
  json::object root;
  json::object parameters = to_json(flags.model);
  parameters["gpu"] = card.name;
  parameters["ctx_len"] = flags.ctx_len;
  parameters["max_new_tokens"] = flags.max_new_tokens;
  root["parameters"] = std::move(parameters);
  root["fits"] = draft.fits;
  root["cure"] = draft.cure;
  root["kv_tokens"] = draft.fits ? plan.kv_pages * cuda::kPageTokens : 0;
  root["kv_bytes_per_token"] = plan.kv_bytes_per_token;
  root["resident_requests"] = draft.resident_requests;
  root["bytes"] = qwen2::to_json(plan);
  root["roofline"] = json::object{{"ttft_seconds", r.ttft},
                                  {"tpot_seconds", r.tpot},
                                  {"tpot_seconds_all_resident", r.tpot_full},
                                  {"output_tokens_per_second", r.throughput},
                                  {"bandwidth_bytes_per_second", card.bandwidth},
                                  {"fp16_flops", card.fp16_flops},
                                  {"measured_card", card.measured}};
  return root;
}

Status plan(PlanFlags& flags) {
  if (flags.ctx_len < 1 || flags.max_new_tokens < 1 || flags.ctx_len > 1'000'000 ||
      flags.max_new_tokens > 1'000'000)
    return fail(ErrorKind::kInvalidArgument, "--ctx-len and --max-new-tokens must be from 1 to 1000000");
  QWEN2_TRY(const GpuCard card, find_card(flags.gpu));
  QWEN2_TRY(const auto checkpoint, open_checkpoint(flags.model.model));
  QWEN2_TRY(const Qwen2Config config,
            parse_qwen2_config(checkpoint->config_json(), checkpoint->generation_config_json()));
  QWEN2_TRY(Limits limits, limits_of(flags.model));
  limits.max_model_len = flags.ctx_len + flags.max_new_tokens;
  QWEN2_TRY(const CpuOptions options, cpu_options_of(flags.model));
  const CudaOptions cuda{options.precision, options.kv_bits, options.key_bias};
  const CudaOverhead overhead{card.context_bytes, kCudaGraphBytes, card.memory_bytes};
  QWEN2_TRY(const CudaPlanDraft draft, draft_cuda_plan(*checkpoint, config, limits, cuda, overhead));
  const Roofline r = roofline_of(config, card, draft, flags);
  fmt::print("{} on {} ({}), {} + {} tokens a request\n{}", model_name(flags.model.model), card.title,
             card.measured ? "measured" : "datasheet", flags.ctx_len, flags.max_new_tokens,
             draft.plan.table());
  if (draft.fits) {
    fmt::print("fits: {} requests at once, {} tokens of KV cache\n", draft.resident_requests,
               draft.plan.kv_pages * cuda::kPageTokens);
    fmt::print(
        "at best: TTFT {:.1f} ms, TPOT {:.2f} ms alone ({:.0f} tok/s); {:.2f} ms with all of them ({:.0f} "
        "tok/s)\n",
        r.ttft * 1e3, r.tpot * 1e3, 1 / r.tpot, r.tpot_full * 1e3, r.throughput);
  } else {
    fmt::print("does not fit: {}\n", draft.cure);
  }
  if (flags.output.empty()) return {};
  return write_result(flags.output, to_json(flags, card, draft, r), flags.model.model, std::nullopt);
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command = app.add_subcommand("plan", "What fits a GPU, and how fast it could be; needs none");
  flags->model.model = "synthetic:qwen2-1.5b";
  flags->model.limits.max_num_seqs = 1024;
  flags->model.add_to(*command);
  command->get_option("--model")->required(false);
  command->add_option("--gpu", flags->gpu, "A card of data/gpus.json, or a JSON file of one")->required();
  command->add_option("--ctx-len", flags->ctx_len, "Prompt tokens of a request");
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Tokens of its answer");
  command->add_option("--output", flags->output, "JSON file");
  command->callback([flags, &action] { action = [flags] { return plan(*flags); }; });
}

}  // namespace qwen2::cli
