#include "kernels/cpu/dense.h"

#include <algorithm>
#include <dnnl.hpp>
#include <map>
#include <tuple>

#include "base/memory.h"

namespace qwen2::cpu {
namespace {

using dnnl::memory;

// Row counts are rounded up to this many, so that few distinct products are compiled.
constexpr int64_t kRowStep = 16;
constexpr int64_t kPanelRows = 256;  // of W, widened to float at a time

// One compiled product for each shape that has occurred.
class ProductCache {
 public:
  ProductCache() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {}

  struct Shape {
    int64_t m, n, k, y_stride;
    bool accumulate;
    auto operator<=>(const Shape&) const = default;
  };

  void run(const Shape& shape, memory::data_type type, memory::format_tag weight_layout, const void* x,
           const void* weights, float* y) {
    auto found = products_.find(shape);
    if (found == products_.end()) found = products_.emplace(shape, compile(shape, type, weight_layout)).first;
    const Product& product = found->second;
    const memory source(product.source, engine_, const_cast<void*>(x));
    const memory weight(product.weights, engine_, const_cast<void*>(weights));
    const memory target(product.target, engine_, y);
    product.primitive.execute(stream_,
                              {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, target}});
    stream_.wait();
  }

 private:
  struct Product {
    memory::desc source, weights, target;
    dnnl::matmul primitive;
  };

  Product compile(const Shape& s, memory::data_type type, memory::format_tag weight_layout) {
    Product product;
    product.source = memory::desc({s.m, s.k}, type, memory::format_tag::ab);
    product.weights = memory::desc({s.k, s.n}, type, weight_layout);
    product.target = memory::desc({s.m, s.n}, memory::data_type::f32, memory::dims{s.y_stride, 1});
    dnnl::primitive_attr attributes;
    if (s.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    product.primitive = dnnl::matmul(dnnl::matmul::primitive_desc(
        dnnl::matmul::desc(product.source, product.weights, product.target), attributes, engine_));
    return product;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Shape, Product> products_;
};

class Bf16Dense final : public Dense {
 public:
  Bf16Dense(const Kernels& kernels, LargeBuffer rows) : kernels_(kernels), rows_(std::move(rows)) {}

  Status run(const PackedMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
             bool accumulate, [[maybe_unused]] Rounding rounding) override {
    const bool two = rounding == Rounding::kTwoBf16;
    auto* high = rows_.as<uint16_t>();
    uint16_t* low = high + rows_.size() / 4;  // the second half
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; ++i) {
      if (two) {
        kernels_.split_bf16(x + i * x_stride, w.cols, high + i * w.cols, low + i * w.cols);
      } else {
        kernels_.to_bf16(x + i * x_stride, w.cols, high + i * w.cols);
      }
    }
    const auto multiply = [&](const uint16_t* rows, bool add) {
      products_.run({round_up(m, kRowStep), w.rows, w.cols, y_stride, add}, memory::data_type::bf16,
                    memory::format_tag::BA16a64b2a, rows, w.data, y);
    };
    try {
      multiply(high, accumulate);
      if (two) multiply(low, true);
    } catch (const dnnl::error& error) {
      return fail(ErrorKind::kInternal, "oneDNN bf16 product {}x{}x{}: {}", m, w.rows, w.cols, error.what());
    }
    return {};
  }

 private:
  const Kernels& kernels_;
  LargeBuffer rows_;  // bf16, two terms of [max_rows][cols]
  ProductCache products_;
};

class FloatDense final : public Dense {
 public:
  FloatDense(const Kernels& kernels, LargeBuffer panel, LargeBuffer rows)
      : kernels_(kernels), panel_(std::move(panel)), rows_(std::move(rows)) {}

  Status run(const PackedMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
             bool accumulate, [[maybe_unused]] Rounding rounding) override {
    auto* panel = panel_.as<float>();
    auto* rows = rows_.as<float>();
    for (int64_t i = 0; i < m; ++i) std::copy_n(x + i * x_stride, w.cols, rows + i * w.cols);
    for (int64_t begin = 0; begin < w.rows; begin += kPanelRows) {
      const int64_t count = std::min(kPanelRows, w.rows - begin);
      const int64_t blocks = round_up(count, kBlockRows) / kBlockRows;
#pragma omp parallel for schedule(static)
      for (int64_t b = 0; b < blocks; ++b) {
        kernels_.widen_block(w.block(begin / kBlockRows + b), w.cols, panel + b * kBlockRows, kPanelRows);
      }
      try {
        // The panel's columns beyond `count` are the zero padding of W's last block.
        const ProductCache::Shape shape{round_up(m, kRowStep), blocks * kBlockRows, w.cols, y_stride,
                                        accumulate};
        if (shape.n < kPanelRows) compact(panel, w.cols, shape.n);
        products_.run(shape, memory::data_type::f32, memory::format_tag::ab, rows, panel, y + begin);
      } catch (const dnnl::error& error) {
        return fail(ErrorKind::kInternal, "oneDNN float product {}x{}x{}: {}", m, count, w.cols,
                    error.what());
      }
    }
    return {};
  }

 private:
  // Moves rows of `width` floats, kPanelRows apart, next to each other.
  static void compact(float* panel, int64_t rows, int64_t width) {
    for (int64_t k = 1; k < rows; ++k) std::copy_n(panel + k * kPanelRows, width, panel + k * width);
  }

  const Kernels& kernels_;
  LargeBuffer panel_;  // float [cols][kPanelRows]
  LargeBuffer rows_;   // float [max_rows][cols]
  ProductCache products_;
};

}  // namespace

size_t Dense::workspace_bytes(Isa isa, int64_t max_rows, int64_t max_cols) {
  const auto rows = static_cast<size_t>(round_up(max_rows, kRowStep) * max_cols);
  if (isa == Isa::kAvx512) return 2 * rows * sizeof(uint16_t);
  return (rows + static_cast<size_t>(kPanelRows * max_cols)) * sizeof(float);
}

Result<std::unique_ptr<Dense>> Dense::create(const Kernels& kernels, int64_t max_rows, int64_t max_cols) {
  const auto rows = static_cast<size_t>(round_up(max_rows, kRowStep) * max_cols);
  try {
    if (kernels.isa == Isa::kAvx512) {
      QWEN2_TRY(auto buffer, LargeBuffer::allocate(2 * rows * sizeof(uint16_t), "prompt rows"));
      return std::make_unique<Bf16Dense>(kernels, std::move(buffer));
    }
    QWEN2_TRY(auto panel,
              LargeBuffer::allocate(static_cast<size_t>(kPanelRows * max_cols) * 4, "weight panel"));
    QWEN2_TRY(auto buffer, LargeBuffer::allocate(rows * sizeof(float), "prompt rows"));
    return std::make_unique<FloatDense>(kernels, std::move(panel), std::move(buffer));
  } catch (const dnnl::error& error) {
    return fail(ErrorKind::kInternal, "oneDNN could not start: {}", error.what());
  }
}

}  // namespace qwen2::cpu
