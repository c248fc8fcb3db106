#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <random>

#include "base/machine.h"
#include "base/units.h"
#include "cli/cli.h"

namespace qwen2::cli {
namespace {

namespace json = boost::json;

constexpr uint32_t kSeed = 0;  // of the prompts

struct BenchEngineFlags {
  ModelFlags model;
  int64_t prompt = 256;
  int64_t generate = 32;
  int64_t batch = 1;
  int64_t runs = 5;
  std::string output;
};

struct Spread {
  double median, min, max;
};

Spread spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

json::object to_json(const Spread& s) {
  return {{"median", s.median}, {"min", s.min}, {"max", s.max}};
}

struct Run {
  double prefill_seconds = 0;
  double decode_seconds = 0;
};

// One batch of sequences: their prompts one after the other in chunks, then `generate` decode steps together.
class Batch {
 public:
  Batch(Backend& backend, const BenchEngineFlags& flags) : backend_(backend), flags_(flags) {
    const int64_t pages_each = (flags.prompt + flags.generate) / backend.page_tokens() + 1;
    std::mt19937 random(kSeed);
    uint32_t page = 0;
    for (int64_t b = 0; b < flags.batch; ++b) {
      std::vector<uint32_t>& pages = pages_.emplace_back();
      for (int64_t i = 0; i < pages_each; ++i) pages.push_back(page++);
      std::vector<TokenId>& prompt = prompts_.emplace_back();
      for (int64_t i = 0; i < flags.prompt; ++i) {
        prompt.push_back(static_cast<TokenId>(random() % static_cast<uint64_t>(backend.config().vocab_size)));
      }
      samplers_.emplace_back(SamplingParams{.temperature = 0}, prompt, backend.config().vocab_size);
    }
    for (Sampler& sampler : samplers_) greedy_.push_back(&sampler);
  }

  Result<Run> run() {
    Run run;
    std::vector<TokenId> last;
    last.reserve(prompts_.size());
    double start = now_seconds();
    for (size_t b = 0; b < prompts_.size(); ++b) {
      QWEN2_TRY(const TokenId token, prefill(b));
      last.push_back(token);
    }
    run.prefill_seconds = now_seconds() - start;
    start = now_seconds();
    QWEN2_CHECK(decode(std::move(last)));
    run.decode_seconds = now_seconds() - start;
    return run;
  }

 private:
  // As the engine does: where the backend overlaps, each step is begun before the last one's tokens are
  // there.
  Status decode(std::vector<TokenId> last) {
    const bool overlaps = backend_.overlaps();
    for (int64_t step = 0; step < flags_.generate; ++step) {
      std::vector<Chunk> chunks;
      chunks.reserve(last.size());
      for (size_t b = 0; b < last.size(); ++b) {
        const int64_t pending = overlaps && step > 0 ? static_cast<int64_t>(b) : -1;
        chunks.push_back({std::span(&last[b], 1), flags_.prompt + step, pages_[b], true, pending});
      }
      QWEN2_CHECK(backend_.begin(chunks, greedy_));
      if (overlaps && step == 0) continue;
      QWEN2_TRY(last, backend_.finish());
    }
    if (!overlaps) return {};
    QWEN2_TRY(last, backend_.finish());
    return {};
  }

  Result<TokenId> prefill(size_t b) {
    const int64_t chunk_tokens = backend_.plan().limits.prefill_chunk;
    TokenId token = 0;
    for (int64_t position = 0; position < flags_.prompt; position += chunk_tokens) {
      const int64_t count = std::min(chunk_tokens, flags_.prompt - position);
      const bool last = position + count == flags_.prompt;
      const Chunk chunk{
          std::span(prompts_[b]).subspan(static_cast<size_t>(position), static_cast<size_t>(count)), position,
          pages_[b], last};
      const auto samplers = std::span(greedy_).first(last ? 1 : 0);
      QWEN2_TRY(const std::vector<TokenId> tokens, backend_.sample(std::span(&chunk, 1), samplers));
      if (last) token = tokens.front();
    }
    return token;
  }

  Backend& backend_;
  const BenchEngineFlags& flags_;
  std::vector<Sampler> samplers_;
  std::vector<Sampler*> greedy_;
  std::vector<std::vector<TokenId>> prompts_;
  std::vector<std::vector<uint32_t>> pages_;
};

Status check(const BenchEngineFlags& flags) {
  for (const auto& [name, value] : {std::pair{"--prompt", flags.prompt},
                                    {"--generate", flags.generate},
                                    {"--batch", flags.batch},
                                    {"--runs", flags.runs}}) {
    if (value < 1 || value > 1'000'000)
      return fail(ErrorKind::kInvalidArgument, "{} must be from 1 to 1000000", name);
  }
  return {};
}

Status bench_engine(BenchEngineFlags& flags) {
  QWEN2_CHECK(check(flags));
  flags.model.limits.max_num_seqs = flags.batch;
  flags.model.limits.max_model_len = flags.prompt + flags.generate + 1;
  QWEN2_TRY(OpenModel open, open_model(flags.model, false));
  Backend& backend = *open.backend;
  const MemoryPlan& plan = backend.plan();
  const int64_t pages = flags.batch * ((flags.prompt + flags.generate) / backend.page_tokens() + 1);
  if (pages > plan.kv_pages) {
    return refuse_plan(
        fmt::format("--batch {} needs {} KV pages, the budget holds {}", flags.batch, pages, plan.kv_pages),
        plan);
  }
  Batch batch(backend, flags);
  QWEN2_TRY(const Run warm, batch.run());  // compiles the prompt products, touches every page
  static_cast<void>(warm);
  std::vector<double> prefill, decode, bandwidth;
  for (int64_t i = 0; i < flags.runs; ++i) {
    bandwidth.push_back(backend.measure_read_bandwidth());
    QWEN2_TRY(const Run run, batch.run());
    prefill.push_back(static_cast<double>(flags.batch * flags.prompt) / run.prefill_seconds);
    decode.push_back(static_cast<double>(flags.batch * flags.generate) / run.decode_seconds);
    fmt::print(stderr, "run {}: prefill {:.1f} tok/s, decode {:.2f} tok/s, read {:.1f} GB/s\n", i + 1,
               prefill.back(), decode.back(), bandwidth.back() / 1e9);
  }
  const Spread read = spread(bandwidth);
  const Spread decoded = spread(decode);
  // Bytes of a step: the weights, and the KV of every sequence at the middle of the measured depths.
  const double kv = static_cast<double>(flags.batch * plan.kv_bytes_per_token) *
                    (static_cast<double>(flags.prompt) + static_cast<double>(flags.generate) / 2);
  const double bytes = static_cast<double>(backend.bytes_per_decode_step()) + kv;
  const double fraction = bytes * decoded.median / static_cast<double>(flags.batch) / read.median;
  json::object root;
  json::object parameters = to_json(flags.model);
  parameters["prompt"] = flags.prompt;
  parameters["generate"] = flags.generate;
  parameters["batch"] = flags.batch;
  parameters["runs"] = flags.runs;
  parameters["backend"] = backend.describe();
  parameters["prefill_chunk"] = plan.limits.prefill_chunk;
  root["parameters"] = std::move(parameters);
  root["prefill_tokens_per_second"] = to_json(spread(prefill));
  root["decode_tokens_per_second"] = to_json(decoded);
  root["bytes_per_decode_step"] = bytes;
  root["read_bandwidth_bytes_per_second"] = read.median;
  root["read_bandwidth_spread"] = to_json(read);
  root["bandwidth_fraction"] = fraction;
  root["peak_memory_bytes"] = peak_resident_memory_bytes();
  if (const auto held = backend.device_memory()) root["device_memory_bytes"] = *held;
  root["weight_bytes"] = plan.weights;
  root["kv_bytes_per_token"] = plan.kv_bytes_per_token;
  root["memory_plan"] = qwen2::to_json(plan);
  fmt::print("{} on {}, prompt {}, generate {}, batch {}: medians of {} runs\n",
             model_name(flags.model.model), backend.describe(), flags.prompt, flags.generate, flags.batch,
             flags.runs);
  const Spread prefilled = spread(prefill);
  fmt::print("prefill  {:8.1f} tok/s  [{:.1f}, {:.1f}]\n", prefilled.median, prefilled.min, prefilled.max);
  fmt::print(
      "decode   {:8.2f} tok/s  [{:.2f}, {:.2f}], {:.2f} GB a step, {:.1f} GB/s = {:.0f} % of the {:.1f} GB/s "
      "read\n",
      decoded.median, decoded.min, decoded.max, bytes / 1e9, fraction * read.median / 1e9, 100 * fraction,
      read.median / 1e9);
  fmt::print("memory   {} at the peak, {} of weights\n", format_bytes(peak_resident_memory_bytes()),
             format_bytes(plan.weights));
  if (const auto held = backend.device_memory()) {
    fmt::print("device   {} held, {} planned, of a budget of {}\n", format_bytes(*held),
               format_bytes(plan.total()), format_bytes(plan.budget));
  }
  if (flags.output.empty()) return {};
  return write_result(flags.output, std::move(root), flags.model.model, kSeed);
}

}  // namespace

void add_bench_engine(CLI::App& app, Action& action) {
  auto flags = std::make_shared<BenchEngineFlags>();
  CLI::App* command = app.add_subcommand("engine", "Measure the forward pass without HTTP");
  flags->model.add_to(*command);
  command->add_option("--prompt", flags->prompt, "Prompt tokens");
  command->add_option("--generate", flags->generate, "Decode steps");
  command->add_option("--batch", flags->batch, "Sequences that decode together");
  command->add_option("--runs", flags->runs, "Measured repetitions, after one to warm up");
  command->add_option("--output", flags->output, "JSON file");
  command->callback([flags, &action] { action = [flags] { return bench_engine(*flags); }; });
}

}  // namespace qwen2::cli
