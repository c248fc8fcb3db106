// The forward pass on a GPU. start.cpp opens the GPU and prepares everything, step.cpp runs a step.
// Decoding rows go through recorded graphs of layers.cpp, prompts through prompt.cpp. docs/gpu.md explains
// the design.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "backend/cuda/cublaslt.h"
#include "backend/cuda/layout.h"
#include "backend/cuda/memory.h"
#include "kernels/cuda/layers/layers.h"
#include "kernels/cuda/rows/rows.h"
#include "kernels/cuda/sampling/sampling.h"

namespace qwen2 {

// Chunks of up to this many tokens run as rows beside those that decode, so that the weights are read once
// for all.
constexpr int64_t kShortChunk = 16;
// Graphs are recorded for these numbers of attention splits; a step uses the first that covers its longest
// row.
constexpr std::array<int, 3> kSplitClasses{1, 16, cuda::kMaxSplits};

class CudaBackend final : public Backend {
 public:
  CudaBackend(Qwen2Config config, const CudaOptions& options)
      : config_(std::move(config)), options_(options) {}
  ~CudaBackend() override;
  Status start(const Checkpoint& checkpoint, const Limits& limits);

  [[nodiscard]] const Qwen2Config& config() const override { return config_; }
  [[nodiscard]] const MemoryPlan& plan() const override { return plan_; }
  [[nodiscard]] int64_t page_tokens() const override { return cuda::kPageTokens; }
  [[nodiscard]] size_t bytes_per_decode_step() const override;
  [[nodiscard]] double measure_read_bandwidth() const override;
  [[nodiscard]] std::string describe() const override;
  [[nodiscard]] std::optional<uint64_t> device_memory() const override;
  Result<Logits> forward(std::span<const Chunk> chunks) override;
  Status begin(std::span<const Chunk> chunks, std::span<Sampler* const> samplers) override;
  Result<std::vector<TokenId>> finish() override;
  [[nodiscard]] bool overlaps() const override { return true; }
  Status forward_all(const Chunk& chunk, const LogitSink& sink) override;

 private:
  // Rows that run through the layers together.
  struct Group {
    std::vector<Chunk> pieces;
    int64_t rows = 0;
    bool is_prompt = false;  // one long chunk
    struct Wanted {
      int64_t row, place;  // in the group; among the step's logits
      int64_t pending;     // Chunk::pending
    };
    std::vector<Wanted> wanted;
  };

  // In start.cpp.
  Status open_device();
  Status allocate();
  Status record_steps();
  Status record_step(int rows, int splits);
  Status load_kernels();
  Status separate_key_bias();
  Status prepare_layers();
  Result<std::vector<Group>> group(std::span<const Chunk> chunks);
  // Records `done` after the group, if it is not null: it belongs to the last group of a step.
  Status run_group(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done = nullptr);
  Status run_rows(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done);
  Result<cuda::FetchArgs> write_inputs(const Group& group, int64_t padded_rows,
                                       std::span<Sampler* const> samplers);
  Status inputs_are_free_at(cudaEvent_t event);
  [[nodiscard]] cuda::EmbedArgs embedding(int64_t rows, float* hidden) const;
  void write_samples(const Group& group, std::span<Sampler* const> samplers, cuda::SampleRow* samples,
                     uint32_t* words, int32_t& word) const;
  // Index of a step's first token in the token buffers, which two steps use in turn.
  [[nodiscard]] int64_t token_place(int64_t step) const { return step % 2 * plan_.limits.max_num_seqs; }
  void enqueue_sampling(const Group& group, std::span<Sampler* const> samplers) const;
  [[nodiscard]] cuda::SampleArgs sample_args(int count) const;
  static bool sampled_in_step(const Group& group, const Sampler& sampler);
  // In prompt.cpp.
  Status run_prompt(const Chunk& chunk);
  Status prompt_attention(int layer, const Chunk& chunk);
  Status prompt_mlp(int layer, int rows);
  Status prompt_product(const CudaMatrix& matrix, const uint16_t* x, int64_t x_stride, int64_t rows,
                        float* y);
  void prompt_norm(const float* norm, int rows, int splits, const uint32_t* row_max) const;
  Status prompt_head(int64_t first, int64_t rows) const;
  // In layers.cpp.
  void enqueue_rows(int count, int max_splits) const;
  void enqueue_layer(int layer, int count, int max_splits, int& current) const;
  // These make the arguments of a layer's stages. For several rows they also launch the norm or repacking
  // that makes the input, so the order of calls matters.
  [[nodiscard]] std::vector<cuda::LayerArgs> layers_of_a_row() const;
  [[nodiscard]] uint32_t* layers_arrived() const { return w_.row_max + config_.layers * cuda::kMaxRows; }
  [[nodiscard]] cuda::ProductArgs qkv_product(int layer, int count, int max_splits, int& current) const;
  [[nodiscard]] uint16_t* attended(cuda::ActivationLayout order) const;
  [[nodiscard]] cuda::RowAttentionArgs row_attention(int layer, int count, int max_splits) const;
  [[nodiscard]] cuda::ProductArgs output_product(int layer, int count) const;
  [[nodiscard]] uint32_t* products_max(int layer) const;
  [[nodiscard]] cuda::ProductArgs gate_up_product(int layer, int count, int& current) const;
  [[nodiscard]] cuda::ProductArgs down_product(int layer, int count) const;
  [[nodiscard]] cuda::ProductArgs head_product(int count, int splits, int& current) const;
  [[nodiscard]] cuda::KvCache cache(int layer) const;
  [[nodiscard]] cuda::ProductInput input_of(const float* norm, const CudaMatrix& matrix, int count,
                                            int splits, int& current, bool keeps) const;
  void multiply(const CudaMatrix& matrix, cuda::ProductArgs args) const;
  // In step.cpp.
  [[nodiscard]] cuda::HeadShape heads() const;
  Status fetch_logits(int64_t row, int64_t place);
  [[nodiscard]] int64_t vocabulary_stride() const;
  // The number of rows of the recorded step: a power of two.
  static int row_bucket(int64_t rows);
  [[nodiscard]] int split_class(int64_t length) const;
  [[nodiscard]] const cuda::Row* rows() const { return reinterpret_cast<const cuda::Row*>(w_.inputs); }
  [[nodiscard]] const uint32_t* words() const {
    return reinterpret_cast<const uint32_t*>(w_.inputs + w_.words_offset());
  }

  Qwen2Config config_;
  CudaOptions options_;
  MemoryPlan plan_;
  cudaStream_t stream_ = nullptr;
  std::string device_name_;
  std::string bus_id_;
  DeviceBuffer weights_memory_, kv_memory_, workspace_memory_;
  // Inputs are written to two host buffers in turn. A buffer may be overwritten when the GPU has read a
  // prompt's inputs, or when the rows' step is done.
  struct Inputs {
    PinnedBuffer host;
    cudaEvent_t sent = nullptr;
    cudaEvent_t free = nullptr;  // `sent`, or the step's own event
  };
  std::array<Inputs, 2> inputs_;
  size_t next_inputs_ = 0;
  PinnedBuffer host_logits_, host_tokens_;
  // Steps that have begun and not finished. Each has one of two places for its tokens.
  struct Begun {
    std::vector<Sampler*> samplers;
    std::vector<int64_t> order;  // each sampler's token, counted from first_token
    int64_t first_token;         // see token_place()
    cudaEvent_t done;
  };
  std::deque<Begun> begun_;
  std::array<cudaEvent_t, 2> done_{};
  int64_t steps_ = 0;
  int64_t seen_offset_ = 0;  // of the seen tokens in the input's words
  std::unique_ptr<CublasLt> dense_;
  CudaWeights weights_;
  CudaWorkspace w_;
  std::vector<int> layer_bias_pairs_;
  std::optional<cuda::LayersArgs> layers_;  // where a short row's layers are one kernel
  // A recorded step. Its first node fetches the inputs; the arguments of that node are set before each
  // launch.
  struct RecordedStep {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaGraphNode_t fetch = nullptr;
  };
  std::map<std::pair<int, int>, RecordedStep> recorded_;  // by rows and splits
  int64_t row_limit_ = 0;                                 // rows of a group, at most
  std::vector<int64_t> logits_order_;
  std::vector<int64_t> pending_order_;  // of the step that began last
};

}  // namespace qwen2
