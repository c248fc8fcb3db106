// The forward pass on a GPU. cuda_backend.cpp has the steps; rows that decode go through recorded graphs of
// cuda_layers.cpp, prompts through cuda_prompt.cpp; cuda_start.cpp prepares all of it.
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
#include "kernels/cuda/kernels.h"

namespace qwen2 {

// Chunks up to this length go row by row with those that decode: reading the weights once for all is then
// cheaper than a product of their own.
constexpr int64_t kShortChunk = 16;
// Grids of the attention of rows that graphs are recorded for: parts of the longest row.
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
  // Rows that go through the layers together.
  struct Group {
    std::vector<Chunk> pieces;
    int64_t rows = 0;
    bool is_prompt = false;  // one long chunk
    struct Wanted {
      int64_t row, place;  // in the group, and among the step's logits
      int64_t pending;     // of its chunk
    };
    std::vector<Wanted> wanted;
  };

  // In cuda_start.cpp.
  Status open_device();
  Status allocate();
  Status record_steps();
  Status record_step(int rows, int splits);
  Status load_kernels();
  Status separate_key_bias();
  Status prepare_layers();
  Result<std::vector<Group>> group(std::span<const Chunk> chunks);
  // `done` is recorded behind the group: the last of a step that has such an event.
  Status run_group(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done = nullptr);
  Status run_rows(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done);
  Result<cuda::FetchArgs> write_inputs(const Group& group, int64_t padded_rows,
                                       std::span<Sampler* const> samplers);
  Status inputs_are_free_at(cudaEvent_t event);
  [[nodiscard]] cuda::EmbedArgs embedding(int64_t rows, float* hidden) const;
  void write_samples(const Group& group, std::span<Sampler* const> samplers, cuda::SampleRow* samples,
                     uint32_t* words, int32_t& word) const;
  // Where this step's tokens, or the one's before it, lie among all.
  [[nodiscard]] int64_t token_place(int64_t step) const { return step % 2 * plan_.limits.max_num_seqs; }
  void enqueue_sampling(const Group& group, std::span<Sampler* const> samplers) const;
  [[nodiscard]] cuda::SampleArgs sample_args(int count) const;
  static bool sampled_in_step(const Group& group, const Sampler& sampler);
  // In cuda_prompt.cpp.
  Status run_prompt(const Chunk& chunk);
  Status prompt_attention(int layer, const Chunk& chunk);
  Status prompt_mlp(int layer, int rows);
  Status prompt_product(const CudaMatrix& matrix, const uint16_t* x, int64_t x_stride, int64_t rows,
                        float* y);
  void prompt_norm(const float* norm, int rows, int parts, const uint32_t* row_max) const;
  Status prompt_head(int64_t first, int64_t rows) const;
  // In cuda_layers.cpp.
  void enqueue_rows(int count, int max_splits) const;
  void enqueue_layer(int layer, int count, int max_splits, int& current) const;
  // What the stages of a layer are given. Where several rows share an input, it is made here.
  [[nodiscard]] std::vector<cuda::LayerArgs> layers_of_a_row() const;
  [[nodiscard]] uint32_t* layers_arrived() const { return w_.row_max + config_.layers * cuda::kMaxRows; }
  [[nodiscard]] cuda::ProductArgs qkv_product(int layer, int count, int max_splits, int& current) const;
  [[nodiscard]] uint16_t* attended(cuda::XOrder order) const;
  [[nodiscard]] cuda::RowAttentionArgs row_attention(int layer, int count, int max_splits) const;
  [[nodiscard]] cuda::ProductArgs output_product(int layer, int count) const;
  [[nodiscard]] uint32_t* products_max(int layer) const;
  [[nodiscard]] cuda::ProductArgs gate_up_product(int layer, int count, int& current) const;
  [[nodiscard]] cuda::ProductArgs down_product(int layer, int count) const;
  [[nodiscard]] cuda::ProductArgs head_product(int count, int parts, int& current) const;
  [[nodiscard]] cuda::KvCache cache(int layer) const;
  [[nodiscard]] cuda::ProductInput input_of(const float* norm, const CudaMatrix& matrix, int count, int parts,
                                            int& current, bool keeps) const;
  void multiply(const CudaMatrix& matrix, cuda::ProductArgs args) const;
  // In cuda_backend.cpp again.
  [[nodiscard]] cuda::HeadShape heads() const;
  Status fetch_logits(int64_t row, int64_t place);
  [[nodiscard]] int64_t vocabulary_stride() const;
  // Rows of the recorded steps: powers of two.
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
  // Inputs go to the card from two buffers in turn. A buffer is free again when a prompt's inputs are there,
  // or when rows are through: behind the last ones of a step, the step's own event says so.
  struct Inputs {
    PinnedBuffer host;
    cudaEvent_t sent = nullptr;
    cudaEvent_t free = nullptr;  // one of both
  };
  std::array<Inputs, 2> inputs_;
  size_t next_inputs_ = 0;
  PinnedBuffer host_logits_, host_tokens_;
  // Steps begun and not finished; each has one of two places for its tokens.
  struct Begun {
    std::vector<Sampler*> samplers;
    std::vector<int64_t> order;  // of each sampler's token in the step's place
    int64_t first_token;         // that place
    cudaEvent_t done;
  };
  std::deque<Begun> begun_;
  std::array<cudaEvent_t, 2> done_{};
  int64_t steps_ = 0;
  int64_t seen_offset_ = 0;  // of the seen tokens among the input's words
  std::unique_ptr<CublasLt> dense_;
  CudaWeights weights_;
  CudaWorkspace w_;
  std::vector<int> layer_bias_pairs_;
  std::optional<cuda::LayersArgs> layers_;  // of a short row, where all layers are one kernel
  // A step as it was recorded. Its first node fetches the inputs: its arguments are new each time.
  struct RecordedStep {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaGraphNode_t fetch = nullptr;
  };
  std::map<std::pair<int, int>, RecordedStep> recorded_;  // by rows and splits
  int64_t row_limit_ = 0;                                 // of a group
  std::vector<int64_t> logits_order_;
  std::vector<int64_t> pending_order_;  // of the tokens of the step begun last
};

}  // namespace qwen2
