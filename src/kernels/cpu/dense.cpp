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
constexpr int64_t kPanelRows = 512;  // of W, made ready at a time

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

// Rows [begin, begin + kPanelRows) of a quantised matrix as bf16 blocks in `panel`; returns how many rows
// there are.
int64_t dequantize_panel(const Kernels& kernels, const QuantizedMatrix& w, int64_t begin, uint16_t* panel) {
  const int64_t count = std::min(kPanelRows, w.rows - begin);
  const int64_t blocks = round_up(count, kBlockRows) / kBlockRows;
  const int64_t block_elements = kBlockRows * round_up(w.cols, kBlockCols);
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    kernels.dequantize_block(w, begin / kBlockRows + b, panel + b * block_elements);
  }
  return count;
}

// `row`, or its elements in the order of a matrix's columns.
const float* in_order(const float* row, const int32_t* order, std::vector<float>& ordered) {
  if (order == nullptr) return row;
  for (size_t k = 0; k < ordered.size(); ++k) ordered[k] = row[order[k]];
  return ordered.data();
}

class Bf16Dense final : public Dense {
 public:
  Bf16Dense(const Kernels& kernels, LargeBuffer rows, LargeBuffer panel, LargeBuffer products_out)
      : kernels_(kernels),
        rows_(std::move(rows)),
        panel_(std::move(panel)),
        products_out_(std::move(products_out)) {}

  Status run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
             bool accumulate, Rounding rounding) override {
    const int32_t* order = nullptr;  // of the columns in rows_
    for (const WeightPart& part : w.parts) {
      if (&part == w.parts.data() || part.quantized.permutation != order) {
        order = part.quantized.permutation;
        round_rows(x, x_stride, m, part.cols(), order, rounding);
      }
      try {
        multiply_part(part, m, y + part.first_row, y_stride, accumulate, rounding);
      } catch (const dnnl::error& error) {
        return fail(ErrorKind::kInternal, "oneDNN bf16 product {}x{}x{}: {}", m, part.rows(), part.cols(),
                    error.what());
      }
    }
    return {};
  }

 private:
  // The second half of rows_ holds the second terms.
  [[nodiscard]] uint16_t* second_terms() const { return rows_.as<uint16_t>() + rows_.size() / 4; }

  void round_rows(const float* x, int64_t x_stride, int64_t m, int64_t cols, const int32_t* order,
                  Rounding rounding) {
    uint16_t* high = rows_.as<uint16_t>();
    uint16_t* low = second_terms();
#pragma omp parallel
    {
      std::vector<float> ordered(order != nullptr ? static_cast<size_t>(cols) : 0);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < m; ++i) {
        const float* row = in_order(x + i * x_stride, order, ordered);
        if (rounding == Rounding::kTwoBf16) {
          kernels_.split_bf16(row, cols, high + i * cols, low + i * cols);
        } else {
          kernels_.to_bf16(row, cols, high + i * cols);
        }
      }
    }
  }

  void multiply_part(const WeightPart& part, int64_t m, float* y, int64_t y_stride, bool accumulate,
                     Rounding rounding) {
    // oneDNN has fast products for outputs without gaps only: others are made a panel at a time and copied.
    if (!part.is_quantized && round_up(part.rows(), kBlockRows) == y_stride)
      return multiply(part.dense.data, part.rows(), part.cols(), m, y, y_stride, accumulate, rounding);
    for (int64_t begin = 0; begin < part.rows(); begin += kPanelRows) {
      const int64_t count = std::min(kPanelRows, part.rows() - begin);
      const uint16_t* weights = panel_.as<uint16_t>();
      if (part.is_quantized) {
        dequantize_panel(kernels_, part.quantized, begin, panel_.as<uint16_t>());
      } else {
        weights = part.dense.block(begin / kBlockRows);
      }
      const int64_t stride = round_up(count, kBlockRows);
      multiply(weights, count, part.cols(), m, products_out_.as<float>(), stride, false, rounding);
      copy_out(m, count, stride, y + begin, y_stride, accumulate);
    }
  }

  void multiply(const uint16_t* weights, int64_t count, int64_t cols, int64_t m, float* out, int64_t stride,
                bool accumulate, Rounding rounding) {
    const auto product = [&](const uint16_t* rows, bool add) {
      products_.run({round_up(m, kRowStep), count, cols, stride, add}, memory::data_type::bf16,
                    memory::format_tag::BA16a64b2a, rows, weights, out);
    };
    product(rows_.as<uint16_t>(), accumulate);
    if (rounding == Rounding::kTwoBf16) product(second_terms(), true);
  }

  void copy_out(int64_t m, int64_t count, int64_t stride, float* y, int64_t y_stride, bool accumulate) const {
    const auto* out = products_out_.as<float>();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; ++i) {
      float* target = y + i * y_stride;
      const float* source = out + i * stride;
      if (accumulate) {
        for (int64_t n = 0; n < count; ++n) target[n] += source[n];
      } else {
        std::copy_n(source, count, target);
      }
    }
  }

  const Kernels& kernels_;
  LargeBuffer rows_;          // bf16, two terms of [max_rows][cols]
  LargeBuffer panel_;         // bf16 blocks of kPanelRows rows
  LargeBuffer products_out_;  // [max_rows][kPanelRows]
  ProductCache products_;
};

class FloatDense final : public Dense {
 public:
  FloatDense(const Kernels& kernels, LargeBuffer rows, LargeBuffer panel, LargeBuffer wide)
      : kernels_(kernels), rows_(std::move(rows)), panel_(std::move(panel)), wide_(std::move(wide)) {}

  Status run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
             bool accumulate, [[maybe_unused]] Rounding rounding) override {
    for (const WeightPart& part : w.parts) {
      for (int64_t i = 0; i < m; ++i) {
        ordered_.resize(static_cast<size_t>(part.cols()));
        const float* row = in_order(x + i * x_stride, part.quantized.permutation, ordered_);
        std::copy_n(row, part.cols(), rows_.as<float>() + i * part.cols());
      }
      QWEN2_CHECK(run_part(part, m, y + part.first_row, y_stride, accumulate));
    }
    return {};
  }

 private:
  Status run_part(const WeightPart& part, int64_t m, float* y, int64_t y_stride, bool accumulate) {
    for (int64_t begin = 0; begin < part.rows(); begin += kPanelRows) {
      const int64_t width = widen_panel(part, begin);
      if (width < kPanelRows) compact(wide_.as<float>(), part.cols(), width);
      try {
        // The panel's columns beyond the matrix's rows are the zero padding of its last block.
        products_.run({round_up(m, kRowStep), width, part.cols(), y_stride, accumulate},
                      memory::data_type::f32, memory::format_tag::ab, rows_.as<float>(), wide_.as<float>(),
                      y + begin);
      } catch (const dnnl::error& error) {
        return fail(ErrorKind::kInternal, "oneDNN float product {}x{}x{}: {}", m, width, part.cols(),
                    error.what());
      }
    }
    return {};
  }

  // Rows from `begin` on as float [cols][kPanelRows]; returns how many columns of it are used, a multiple
  // of 64.
  int64_t widen_panel(const WeightPart& part, int64_t begin) {
    const int64_t cols = part.cols();
    const int64_t blocks = round_up(std::min(kPanelRows, part.rows() - begin), kBlockRows) / kBlockRows;
    const int64_t block_elements = kBlockRows * round_up(cols, kBlockCols);
    const uint16_t* source = nullptr;
    if (part.is_quantized) {
      dequantize_panel(kernels_, part.quantized, begin, panel_.as<uint16_t>());
      source = panel_.as<uint16_t>();
    } else {
      source = part.dense.block(begin / kBlockRows);
    }
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      kernels_.widen_block(source + b * block_elements, cols, wide_.as<float>() + b * kBlockRows, kPanelRows);
    }
    return blocks * kBlockRows;
  }

  // Moves rows of `width` floats, kPanelRows apart, next to each other.
  static void compact(float* panel, int64_t rows, int64_t width) {
    for (int64_t k = 1; k < rows; ++k) std::copy_n(panel + k * kPanelRows, width, panel + k * width);
  }

  const Kernels& kernels_;
  LargeBuffer rows_;   // float [max_rows][cols]
  LargeBuffer panel_;  // bf16 blocks of kPanelRows rows
  LargeBuffer wide_;   // float [cols][kPanelRows]
  std::vector<float> ordered_;
  ProductCache products_;
};

struct Sizes {
  size_t rows, panel, wide;  // bytes

  Sizes(Isa isa, int64_t max_rows, int64_t max_cols) {
    const auto elements = static_cast<size_t>(round_up(max_rows, kRowStep) * max_cols);
    rows = isa == Isa::kAvx512 ? 2 * elements * sizeof(uint16_t) : elements * sizeof(float);
    panel = PackedMatrix::packed_bytes(kPanelRows, max_cols);
    wide = static_cast<size_t>(isa == Isa::kAvx512 ? round_up(max_rows, kRowStep) * kPanelRows
                                                   : kPanelRows * max_cols) *
           sizeof(float);
  }
};

}  // namespace

size_t Dense::workspace_bytes(Isa isa, int64_t max_rows, int64_t max_cols) {
  const Sizes sizes(isa, max_rows, max_cols);
  return sizes.rows + sizes.panel + sizes.wide;
}

Result<std::unique_ptr<Dense>> Dense::create(const Kernels& kernels, int64_t max_rows, int64_t max_cols) {
  const Sizes sizes(kernels.isa, max_rows, max_cols);
  QWEN2_TRY(auto rows, LargeBuffer::allocate(sizes.rows, "prompt rows"));
  QWEN2_TRY(auto panel, LargeBuffer::allocate(sizes.panel, "a panel of weights"));
  QWEN2_TRY(auto wide, LargeBuffer::allocate(sizes.wide, "a panel in float"));
  try {
    if (kernels.isa == Isa::kAvx512)
      return std::make_unique<Bf16Dense>(kernels, std::move(rows), std::move(panel), std::move(wide));
    return std::make_unique<FloatDense>(kernels, std::move(rows), std::move(panel), std::move(wide));
  } catch (const dnnl::error& error) {
    return fail(ErrorKind::kInternal, "oneDNN could not start: {}", error.what());
  }
}

}  // namespace qwen2::cpu
