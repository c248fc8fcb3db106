// What runs the forward pass. One thread calls it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "model/memory_plan.h"
#include "model/qwen2_config.h"
#include "model/weights.h"
#include "sampling/sampler.h"

namespace qwen2 {

// One sequence's share of a step: consecutive tokens, whose K and V go to `pages`.
struct Chunk {
  std::span<const TokenId> tokens;
  int64_t position = 0;             // of tokens[0] in its sequence
  std::span<const uint32_t> pages;  // the sequence's page table, long enough for all tokens
  bool needs_logits = false;        // of the last token
  // The chunk's one token is not known yet: it is the `pending`-th of those that the step begun before this
  // one samples. Only where Backend::overlaps(); -1 otherwise.
  int64_t pending = -1;
};

// Logits of the chunks that need them, in their order.
struct Logits {
  const float* data = nullptr;
  int64_t stride = 0;  // from one row to the next
  int64_t vocab_size = 0;
  std::span<const int64_t> order;  // of the i-th chunk's row in `data`

  [[nodiscard]] std::span<const float> row(size_t index) const {
    return {data + order[index] * stride, static_cast<size_t>(vocab_size)};
  }
};

// A chunk's results depend on its tokens, its length and what its pages hold, never on the other chunks of
// the step: the arithmetic of a row is the same in every batch. Callers that cut prompts at fixed places
// therefore get the same tokens under any load.
class Backend {
 public:
  virtual ~Backend() = default;
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] virtual const Qwen2Config& config() const = 0;
  [[nodiscard]] virtual const MemoryPlan& plan() const = 0;
  [[nodiscard]] virtual int64_t page_tokens() const = 0;
  // Bytes of weights that a decode step of batch 1 reads.
  [[nodiscard]] virtual size_t bytes_per_decode_step() const = 0;
  // Bytes per second of a plain read of the weights (or of a larger buffer, if they fit the caches), now.
  [[nodiscard]] virtual double measure_read_bandwidth() const = 0;
  [[nodiscard]] virtual std::string describe() const = 0;
  // Bytes of a GPU that the process holds, as its driver says; nothing where there is none.
  [[nodiscard]] virtual std::optional<uint64_t> device_memory() const { return std::nullopt; }

  // Runs the chunks. At most max_num_seqs chunks, each of at most prefill_chunk tokens. The logits are valid
  // until the next call.
  virtual Result<Logits> forward(std::span<const Chunk> chunks) = 0;

  // Starts forward() and sampling: the next token of every chunk that needs logits, in their order;
  // `samplers` has one for each of them, which must live until finish(). The n-th token of a sampler depends
  // on its seed, n and the logits alone, but a seed means other tokens on other backends.
  virtual Status begin(std::span<const Chunk> chunks, std::span<Sampler* const> samplers);
  // The tokens of the oldest step that was begun and not finished. They are in their samplers then.
  virtual Result<std::vector<TokenId>> finish();
  // Whether begin() returns before the tokens are there, so that a second step may be begun behind the first.
  [[nodiscard]] virtual bool overlaps() const { return false; }
  // begin() and finish().
  Result<std::vector<TokenId>> sample(std::span<const Chunk> chunks, std::span<Sampler* const> samplers);

  // Runs one chunk and hands the logits [vocab_size] of each of its tokens to `sink`, in order.
  using LogitSink = std::function<void(int64_t index, std::span<const float> logits)>;
  virtual Status forward_all(const Chunk& chunk, const LogitSink& sink) = 0;

 private:
  std::vector<TokenId> begun_;
};

// Where large key biases are added: to the scores, in float, or to the keys before they are cached.
enum class KeyBiasPlace { kScores, kKeys };

struct CpuOptions {
  std::string isa = "auto";  // "baseline", "avx2", "avx512": a cap, for tests and comparisons
  Precision precision = {};
  int kv_bits = 16;  // or 8, with a scale for each token and head
  KeyBiasPlace key_bias = KeyBiasPlace::kScores;
  bool int8_activations = false;  // in products with quantised weights
};

Result<std::unique_ptr<Backend>> create_cpu_backend(const Checkpoint& checkpoint, const Limits& limits,
                                                    const CpuOptions& options);

// The plan alone, without allocating anything.
Result<MemoryPlan> plan_cpu_backend(const Checkpoint& checkpoint, const Qwen2Config& config,
                                    const Limits& limits, const CpuOptions& options);

struct CudaOptions {
  Precision precision = {};
  int kv_bits = 16;  // or 8
  KeyBiasPlace key_bias = KeyBiasPlace::kScores;
};

// Whether this program was built with the CUDA backend, and a usable GPU is here.
bool cuda_is_available();
// One line for the user where the program has only code for an older generation of GPUs than this machine's:
// what that costs, and the command that builds for it.
std::optional<std::string> cuda_build_advice();
// Fails with kNotFound where there is no usable GPU, with kUnsupported where the program was built without
// CUDA.
Result<std::unique_ptr<Backend>> create_cuda_backend(const Checkpoint& checkpoint, const Limits& limits,
                                                     const CudaOptions& options);

}  // namespace qwen2
