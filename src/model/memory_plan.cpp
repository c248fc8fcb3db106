#include "model/memory_plan.h"

#include <algorithm>

#include "base/units.h"

namespace qwen2 {
namespace {

constexpr int64_t kDefaultModelLen = 4096;

}  // namespace

Result<Limits> choose_limits(const Qwen2Config& config, Limits limits, int64_t default_chunk) {
  if (limits.prefill_chunk == 0) limits.prefill_chunk = default_chunk;
  if (limits.max_model_len == 0)
    limits.max_model_len = std::min(kDefaultModelLen, config.max_position_embeddings);
  if (limits.max_model_len < 1 || limits.max_model_len > config.max_position_embeddings) {
    return fail(ErrorKind::kInvalidArgument, "--max-model-len {} is out of range: the model allows 1 to {}",
                limits.max_model_len, config.max_position_embeddings);
  }
  if (limits.max_num_seqs < 1 || limits.max_num_seqs > 1024) {
    return fail(ErrorKind::kInvalidArgument, "--max-num-seqs {} is out of range: 1 to 1024",
                limits.max_num_seqs);
  }
  if (limits.prefill_chunk < 16 || limits.prefill_chunk > 8192) {
    return fail(ErrorKind::kInvalidArgument, "--prefill-chunk {} is out of range: 16 to 8192",
                limits.prefill_chunk);
  }
  if (limits.max_batch_tokens == 0) limits.max_batch_tokens = limits.prefill_chunk + limits.max_num_seqs;
  if (limits.max_batch_tokens < 1) {
    return fail(ErrorKind::kInvalidArgument, "--max-batch-tokens must be at least 1");
  }
  return limits;
}

std::string MemoryPlan::table() const {
  const auto row = [](std::string_view name, uint64_t bytes, std::string_view note) {
    return fmt::format("  {:<12} {:>12}  {}\n", name, format_bytes(bytes), note);
  };
  return row("weights", weights, "") +
         row("KV pool", kv_pool,
             fmt::format("{} pages, {} B a token, {} requests of {} tokens", kv_pages, kv_bytes_per_token,
                         limits.max_num_seqs, limits.max_model_len)) +
         row("workspace", workspace, fmt::format("chunks of {} prompt tokens", limits.prefill_chunk)) +
         (graphs > 0 ? row("graphs", graphs, "recorded steps") : std::string()) +
         row("runtime", runtime, graphs > 0 ? "context, code, libraries" : "program, libraries, tokeniser") +
         row("total", total(), "") + row("budget", budget, "");
}

boost::json::object to_json(const MemoryPlan& plan) {
  return {{"weights", plan.weights}, {"kv_pool", plan.kv_pool}, {"workspace", plan.workspace},
          {"graphs", plan.graphs},   {"runtime", plan.runtime}, {"total", plan.total()},
          {"budget", plan.budget}};
}

PlanDraft draft_memory_plan(const Limits& limits, const BackendCosts& costs) {
  PlanDraft draft;
  MemoryPlan& plan = draft.plan;
  plan.limits = limits;
  plan.weights = costs.weights;
  plan.workspace = costs.workspace;
  plan.graphs = costs.graphs;
  plan.runtime = costs.runtime;
  plan.kv_bytes_per_token = costs.page_bytes / costs.page_tokens;
  plan.budget = limits.memory_budget > 0 ? limits.memory_budget : costs.available;

  const int64_t pages_each = (plan.limits.max_model_len + costs.page_tokens - 1) / costs.page_tokens;
  const uint64_t fixed = plan.total();
  const uint64_t left = plan.budget - std::min(plan.budget, fixed);
  const auto affordable = static_cast<int64_t>(left / static_cast<uint64_t>(costs.page_bytes));
  const bool fits = affordable >= pages_each;
  plan.kv_pages = fits ? std::min(plan.limits.max_num_seqs * pages_each, affordable) : pages_each;
  plan.kv_pool = static_cast<uint64_t>(plan.kv_pages * costs.page_bytes);
  if (!fits) {
    draft.cure = affordable > 0 ? fmt::format("--max-model-len {} would fit", affordable * costs.page_tokens)
                                : fmt::format("a budget of at least {} is needed for this length",
                                              format_bytes(plan.total()));
  }
  return draft;
}

std::unexpected<Error> refuse_plan(std::string_view why, const MemoryPlan& plan) {
  return fail(ErrorKind::kOutOfMemory, "{}. {}\n{}", why, kPlanFollows, plan.table());
}

Result<MemoryPlan> plan_memory(const Limits& limits, const BackendCosts& costs) {
  const PlanDraft draft = draft_memory_plan(limits, costs);
  if (draft.cure.empty()) return draft.plan;
  return refuse_plan(fmt::format("the memory budget does not hold one request of {} tokens; {}",
                                 limits.max_model_len, draft.cure),
                     draft.plan);
}

}  // namespace qwen2
