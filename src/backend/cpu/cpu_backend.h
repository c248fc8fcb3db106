// The forward pass on the CPU, read top to bottom in cpu_backend.cpp.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "base/memory.h"
#include "kernels/cpu/dense.h"
#include "kernels/cpu/int8_products.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/row_products.h"
#include "model/rope.h"
#include "model/weights.h"

namespace qwen2 {

class CpuBackend final : public Backend {
 public:
  CpuBackend(Qwen2Config config, const MemoryPlan& plan, const cpu::Kernels& kernels, CpuOptions options)
      : config_(std::move(config)), plan_(plan), kernels_(kernels), options_(std::move(options)) {}
  Status start(const Checkpoint& checkpoint);

  [[nodiscard]] const Qwen2Config& config() const override { return config_; }
  [[nodiscard]] const MemoryPlan& plan() const override { return plan_; }
  [[nodiscard]] int64_t page_tokens() const override { return cpu::kPageTokens; }
  [[nodiscard]] size_t bytes_per_decode_step() const override { return weights_.bytes_per_decode_step(); }
  [[nodiscard]] double measure_read_bandwidth() const override;
  [[nodiscard]] std::string describe() const override;
  Result<Logits> forward(std::span<const Chunk> chunks) override;
  Status forward_all(const Chunk& chunk, const LogitSink& sink) override;

 private:
  // Token rows that go through the layers together.
  struct Row {
    TokenId token;
    int64_t position;
    std::span<const uint32_t> pages;
    int64_t logits_index;  // -1: none wanted
  };
  enum class Products { kRowByRow, kDense };

  Status run_rows(std::span<const Row> rows, Products products);
  void embed(std::span<const Row> rows);
  Status attention_block(const LayerWeights& w, int64_t layer, std::span<const Row> rows, Products products);
  Status mlp_block(const LayerWeights& w, int64_t count, Products products);
  Status linear(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t count, Products products,
                float* y, int64_t y_stride, bool accumulate,
                cpu::Rounding rounding = cpu::Rounding::kOneBf16);
  void normalise(const float* weight, int64_t count);
  void rotate_and_store(const LayerWeights& w, int64_t layer, std::span<const Row> rows);
  void attend_single_rows(int64_t layer, std::span<const Row> rows);
  void attend_chunk(int64_t layer, std::span<const Row> rows);
  Status head(std::span<const int64_t> places, int64_t first);
  Status separate_key_bias();
  [[nodiscard]] int64_t head_page_bytes() const;
  [[nodiscard]] std::byte* layer_cache(int64_t layer) const;
  [[nodiscard]] const cpu::KeyBias* key_bias(int64_t layer, int64_t head) const;

  Qwen2Config config_;
  MemoryPlan plan_;
  const cpu::Kernels& kernels_;
  CpuOptions options_;
  Qwen2Weights weights_;
  std::unique_ptr<cpu::Dense> dense_;
  std::optional<cpu::RowProducts> row_products_;
  std::optional<cpu::Int8Products> int8_products_;
  std::vector<int64_t> logits_order_;
  Rotation rope_;

  std::vector<std::vector<cpu::KeyBias>> key_bias_;  // [layers][kv_heads]; empty: all of it is in the keys
  LargeBuffer angles_;                               // see AttentionArgs; empty without key_bias_
  LargeBuffer kv_pool_;  // [layers][pages][kv_heads] of one page's K and V, see AttentionArgs
  LargeBuffer workspace_;
  // Parts of the workspace; [rows] is the largest group of rows.
  float* hidden_ = nullptr;        // [rows][hidden_stride]
  float* normed_ = nullptr;        // [rows][hidden_stride]
  float* qkv_ = nullptr;           // [rows][qkv_stride]
  float* attended_ = nullptr;      // [rows][q_size]
  float* gate_up_ = nullptr;       // [rows][gate_up_stride]
  float* activated_ = nullptr;     // [rows][intermediate]
  float* rotation_ = nullptr;      // [rows][head_dim]: cosines, then sines
  float* logits_ = nullptr;        // [max_num_seqs][vocab_stride]
  float* partial_sums_ = nullptr;  // [rows][kv_heads][splits][group][head_dim]
  float* partial_maxima_ = nullptr;
  float* partial_denominators_ = nullptr;
};

}  // namespace qwen2
