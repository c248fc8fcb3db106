// All layers in one kernel against the single kernels, bit by bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "gpu/gpu_data.h"
#include "kernels/cuda/layers/layers.h"

namespace qwen2::cuda {
namespace {

using namespace test_data;

// One row and what its layers work in.
struct LayersCase {
  MatrixForm form;
  int group;
  int layers, hidden, intermediate, q_heads, kv_heads, dim, length, pairs;
};
class RowOfLayers {
 public:
  explicit RowOfLayers(const LayersCase& c)
      : c_(c),
        cache_(c.dim, c.kv_heads, c.length, 16),
        bias_(c.pairs, c.kv_heads, c.dim),
        rotations_(cache_.rotations),
        first_(bias_.first),
        second_(bias_.second),
        index_(bias_.index),
        table_(cache_.table),
        info_(std::vector<Row>{{0, c.length - 1, 0, c.length - 1}}),
        start_(test::normal(static_cast<size_t>(c.hidden))),
        hidden_(static_cast<size_t>(2 * c.hidden)),
        partials_(static_cast<size_t>(4 * c.hidden)),
        q_(static_cast<size_t>(q_size())),
        products_(static_cast<size_t>(c.intermediate)),
        x_(static_cast<size_t>(q_size())),
        row_max_(static_cast<size_t>(c.layers)),
        arrived_(static_cast<size_t>(c.q_heads)) {
    for (int i = 0; i < c.layers; ++i) weights_.push_back(std::make_unique<Weights>(c, qkv_rows(), q_size()));
    for (int i = 0; i < c.layers; ++i) layers_.push_back(layer(i));
  }
  [[nodiscard]] const std::vector<LayerArgs>& layers() const { return layers_; }

  // What is left in every buffer that later kernels or steps read, after all layers.
  template <class Run>
  std::vector<std::vector<float>> after(const Run& run) {
    std::vector<float> hidden(static_cast<size_t>(2 * c_.hidden));
    std::copy(start_.begin(), start_.end(), hidden.begin());
    check(cudaMemcpy(hidden_.get(), hidden.data(), hidden.size() * sizeof(float), cudaMemcpyHostToDevice));
    partials_.zero();
    row_max_.zero();
    arrived_.zero();
    for (const auto& w : weights_)
      check(cudaMemcpy(w->pages.get(), cache_.pages.data(), cache_.pages.size(), cudaMemcpyHostToDevice));
    run();
    check(cudaGetLastError());
    std::vector<std::vector<float>> left{hidden_.read(), partials_.read(), q_.read(), products_.read()};
    for (const auto& w : weights_) {
      const auto bytes = w->pages.read();
      std::vector<uint16_t> halves(bytes.size() / 2);
      std::memcpy(halves.data(), bytes.data(), bytes.size());
      left.push_back(from_half(halves));
    }
    return left;
  }
  void one_by_one() const {
    for (const LayerArgs& layer : layers_) {
      product(layer.qkv, nullptr);
      attend_rows(layer.attention, nullptr);
      product(layer.output, nullptr);
      product(layer.gate_up, nullptr);
      product(layer.down, nullptr);
    }
  }
  void together(int blocks) const {
    const Buffer<std::byte> table(layers_table(layers_, blocks));
    const Buffer<uint32_t> arrived(1);
    arrived.zero();
    run_layers(layers_args(layers_, blocks, table.get(), arrived.get()), nullptr);
    check(cudaDeviceSynchronize());
  }

 private:
  struct Weights {
    RandomMatrix qkv, output, gate_up, down;
    Buffer<float> norm, post_norm, bias;
    Buffer<std::byte> pages;
    Weights(const LayersCase& c, int qkv_rows, int q_size)
        : qkv(c.form, qkv_rows, c.hidden, group(c, c.hidden)),
          output(c.form, c.hidden, q_size, group(c, q_size)),
          gate_up(c.form, 2 * c.intermediate, c.hidden, group(c, c.hidden)),
          down(c.form, c.hidden, c.intermediate, group(c, c.intermediate)),
          norm(test::normal(static_cast<size_t>(c.hidden))),
          post_norm(test::normal(static_cast<size_t>(c.hidden))),
          bias(test::normal(static_cast<size_t>(qkv_rows))),
          pages(Cache(c.dim, c.kv_heads, c.length, 16).pages) {}
    static int group(const LayersCase& c, int cols) { return c.group == 0 ? cols : c.group; }
  };
  [[nodiscard]] int q_size() const { return c_.q_heads * c_.dim; }
  [[nodiscard]] int qkv_rows() const { return (c_.q_heads + 2 * c_.kv_heads) * c_.dim; }

  [[nodiscard]] ProductArgs base(const RandomMatrix& w, ProductOutput output) const {
    ProductArgs args;
    args.w = w.device;
    args.rows = 1;
    args.output = output;
    args.row_info = info_.get();
    args.heads = {c_.q_heads, c_.kv_heads, c_.dim};
    args.q = q_.get();
    args.q_scale = 0.1F;
    return args;
  }
  [[nodiscard]] ProductInput normed(const Buffer<float>& norm, int splits, int from) const {
    return {.hidden = hidden_.get() + from * c_.hidden,
            .partials = partials_.get(),
            .splits = splits,
            .norm = norm.get(),
            .epsilon = 1e-6F,
            .hidden_out = hidden_.get() + (1 - from) * c_.hidden};
  }
  void stores_parts(ProductArgs& args) const {
    args.out_rows = c_.hidden;
    args.y = partials_.get();
    args.y_stride = c_.hidden;
    args.split_k = 4;
  }
  [[nodiscard]] LayerArgs layer(int i) const {
    const Weights& w = *weights_[static_cast<size_t>(i)];
    LayerArgs l;
    l.qkv = base(w.qkv, ProductOutput::kQkv);
    l.qkv.input = normed(w.norm, i == 0 ? 0 : 4, 0);
    l.qkv.cache = {.data = w.pages.get(),
                   .kv_bits = 16,
                   .pages = table_.get(),
                   .rotations = rotations_.get(),
                   .bias = w.bias.get(),
                   .key_bias = {c_.pairs, index_.get(), first_.get(), second_.get()}};
    l.attention.rows = 1;
    l.attention.row_info = info_.get();
    l.attention.heads = l.qkv.heads;
    l.attention.cache = l.qkv.cache;
    l.attention.q = q_.get();
    l.attention.max_splits = split_count(c_.length);
    l.attention.out = x_.get();
    l.attention.out_stride = q_size();
    l.attention.arrived = arrived_.get();
    l.output = base(w.output, ProductOutput::kStore);
    l.output.input.x = x_.get();
    stores_parts(l.output);
    l.gate_up = base(w.gate_up, ProductOutput::kSwiglu);
    l.gate_up.input = normed(w.post_norm, 4, 1);
    l.gate_up.y = products_.get();
    l.gate_up.y_stride = c_.intermediate;
    if (c_.form == MatrixForm::kF16) l.gate_up.row_max = row_max_.get() + i;
    l.down = base(w.down, ProductOutput::kStore);
    l.down.input.values = products_.get();
    l.down.input.row_max = l.gate_up.row_max;
    stores_parts(l.down);
    return l;
  }

  LayersCase c_;
  Cache cache_;
  Bias bias_;
  Buffer<float> rotations_, first_, second_;
  Buffer<int32_t> index_;
  Buffer<uint32_t> table_;
  Buffer<Row> info_;
  std::vector<float> start_;
  Buffer<float> hidden_, partials_, q_, products_;
  Buffer<uint16_t> x_;
  Buffer<uint32_t> row_max_, arrived_;
  std::vector<std::unique_ptr<Weights>> weights_;
  std::vector<LayerArgs> layers_;
};

// The single kernels are held against their references elsewhere.
TEST(GpuLayers, OneKernelGivesWhatManyGive) {
  using enum MatrixForm;
  if (!card_runs_layers()) GTEST_SKIP() << "made for chips below sm_80";
  for (const LayersCase& c : {LayersCase{kF16, 0, 2, 1536, 256, 12, 2, 128, 129, 0},
                              {kInt8, 0, 2, 1536, 256, 12, 2, 128, 160, 0},
                              {kInt4, 128, 2, 256, 8960, 2, 1, 128, 192, 0},
                              {kF16, 0, 2, 256, 8960, 2, 2, 128, 200, 0},
                              {kInt4, 0, 2, 1536, 256, 12, 2, 128, 193, 2},
                              {kInt8, 128, 3, 896, 1280, 14, 2, 64, 256, 3},
                              {kF16, 0, 3, 896, 256, 14, 2, 64, 16, 0},
                              {kF16, 0, 3, 80, 48, 2, 1, 64, 17, 0},
                              {kInt4, 0, 3, 144, 272, 1, 1, 128, 1, 0},
                              {kInt8, 64, 1, 64, 64, 1, 1, 64, 2, 1}}) {
    RowOfLayers row(c);
    ASSERT_TRUE(can_run_layers(row.layers()))
        << "form " << static_cast<int>(c.form) << " hidden " << c.hidden;
    const auto expected = row.after([&] { row.one_by_one(); });
    // As many blocks as the card has room for, twice; as an RTX 2060 has; hardly enough.
    for (const int blocks :
         {layers_blocks(), layers_blocks(), std::min(layers_blocks(), 30), kMaxSplitK + 1}) {
      const auto actual = row.after([&] { row.together(blocks); });
      for (size_t i = 0; i < expected.size(); ++i) {
        const auto differs = std::mismatch(actual[i].begin(), actual[i].end(), expected[i].begin()).first;
        EXPECT_EQ(differs, actual[i].end())
            << "form " << static_cast<int>(c.form) << " hidden " << c.hidden << " length " << c.length
            << " blocks " << blocks << " buffer " << i << " element " << differs - actual[i].begin();
      }
    }
  }
}

}  // namespace
}  // namespace qwen2::cuda
