// What a model will take, before anything is allocated.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/qwen2_config.h"

namespace qwen2 {

// What the user asks for; zero means "choose".
struct Limits {
  int64_t max_model_len = 0;     // tokens of one request, prompt and answer together
  int64_t max_num_seqs = 8;      // requests that run at once
  int64_t prefill_chunk = 0;     // prompt tokens of one forward pass; part of the arithmetic, see backend.h
  int64_t max_batch_tokens = 0;  // tokens of one step, decodes first; zero: one prompt chunk and every decode
  uint64_t memory_budget = 0;    // bytes of the whole process, on a GPU its memory there; zero: what is free
};

struct MemoryPlan {
  Limits limits;  // with every choice made
  uint64_t weights = 0;
  uint64_t kv_pool = 0;
  uint64_t workspace = 0;
  uint64_t graphs = 0;   // recorded steps, on a GPU
  uint64_t runtime = 0;  // the program itself, the libraries, the tokeniser; on a GPU, the context
  uint64_t budget = 0;
  int64_t kv_pages = 0;
  int64_t kv_bytes_per_token = 0;

  [[nodiscard]] uint64_t total() const { return weights + kv_pool + workspace + graphs + runtime; }
  [[nodiscard]] std::string table() const;
};

// The bytes of every part, of all and of the budget.
boost::json::object to_json(const MemoryPlan& plan);

// What a backend says of itself for the plan.
struct BackendCosts {
  uint64_t weights = 0;
  uint64_t workspace = 0;
  uint64_t graphs = 0;
  uint64_t runtime = 0;
  uint64_t available = 0;  // what a plan without a budget may take
  int64_t page_tokens = 0;
  int64_t page_bytes = 0;  // of all layers
};

// `limits` with every choice made but the budget's; what is out of range is an error.
Result<Limits> choose_limits(const Qwen2Config& config, Limits limits, int64_t default_chunk);

// The plan whether it fits or not; `cure` is empty, or names the smallest change that would make one request
// of max_model_len fit. `limits` as choose_limits() returns them.
struct PlanDraft {
  MemoryPlan plan;
  std::string cure;
};
PlanDraft draft_memory_plan(const Limits& limits, const BackendCosts& costs);

// The error of a plan that does not fit: `why` and the table. Programs that start this one know it by
// kPlanFollows.
inline constexpr std::string_view kPlanFollows = "The plan was:";
std::unexpected<Error> refuse_plan(std::string_view why, const MemoryPlan& plan);

// Fails with the table and the smallest change that would fit when
// one request of max_model_len does not.
Result<MemoryPlan> plan_memory(const Limits& limits, const BackendCosts& costs);

}  // namespace qwen2
