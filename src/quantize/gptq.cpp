#include "quantize/gptq.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/parallel.h"
#include "quantize/products.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {
namespace {

constexpr int64_t kBlock = 128;     // columns between lazy updates; a multiple of every group
constexpr int64_t kTriangle = 256;  // columns of a step of the factorisation
constexpr int64_t kStrip = 2048;    // columns of one update behind a step

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Block = Eigen::Map<Matrix, 0, Eigen::OuterStride<>>;

Block block_of(float* data, int64_t stride, int64_t rows, int64_t cols) {
  return {data, rows, cols, Eigen::OuterStride<>(stride)};
}

// H = L L^T in the lower triangle of `h`, right-looking in blocks.
Status factorise(float* h, int64_t n) {
  for (int64_t k = 0; k < n; k += kTriangle) {
    const int64_t size = std::min(kTriangle, n - k);
    Block diagonal = block_of(h + k * n + k, n, size, size);
    // In double: a float of a nearly singular block may lose its sign.
    const Eigen::LLT<Eigen::MatrixXd> llt(diagonal.cast<double>());
    if (llt.info() != Eigen::Success) {
      return fail(ErrorKind::kInvalidArgument,
                  "the Hessian is not positive definite: raise --damping or use more calibration text");
    }
    diagonal = Eigen::MatrixXd(llt.matrixL()).cast<float>();
    const int64_t below = k + size;
    parallel_ranges(n - below, [&](int64_t begin, int64_t end) {
      if (begin == end) return;
      const Block panel = block_of(h + (below + begin) * n + k, n, end - begin, size);
      diagonal.triangularView<Eigen::Lower>().transpose().solveInPlace<Eigen::OnTheRight>(panel);
    });
    for (int64_t c = below; c < n; c += kStrip) {
      const int64_t width = std::min(kStrip, n - c);
      QWEN2_CHECK(add_product_transposed(-1.0F, h + c * n + k, n, h + c * n + k, n, n - c, width, size,
                                         h + c * n + c, n));
    }
  }
  return {};
}

// L^-1 in place of L, from the last block to the first: what is below a block is multiplied by the part of
// the inverse that is there already.
Status invert_lower(float* l, int64_t n) {
  for (int64_t row = 0; row < n; ++row) std::fill(l + row * n + row + 1, l + (row + 1) * n, 0.0F);
  std::vector<float> below(static_cast<size_t>(n * kTriangle));
  for (int64_t k = (n - 1) / kTriangle * kTriangle; k >= 0; k -= kTriangle) {
    const int64_t size = std::min(kTriangle, n - k);
    const int64_t rest = n - k - size;
    Block diagonal = block_of(l + k * n + k, n, size, size);
    Matrix inverse = Matrix::Identity(size, size);
    diagonal.triangularView<Eigen::Lower>().solveInPlace(inverse);
    diagonal = inverse;
    if (rest == 0) continue;
    const float* corner = l + (k + size) * n + k + size;
    Block column = block_of(l + (k + size) * n + k, n, rest, size);
    Block scaled = block_of(below.data(), size, rest, size);
    parallel_ranges(rest, [&](int64_t begin, int64_t end) {
      scaled.middleRows(begin, end - begin).noalias() = column.middleRows(begin, end - begin) * inverse;
    });
    column.setZero();
    QWEN2_CHECK(add_product(-1.0F, corner, n, below.data(), size, rest, size, rest, column.data(), n));
  }
  return {};
}

// Column k of the result is column order[k].
void reorder_columns(float* w, int64_t rows, int64_t cols, const std::vector<int32_t>& order) {
  parallel_ranges(rows, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t n = begin; n < end; ++n) {
      float* values = w + n * cols;
      for (size_t k = 0; k < row.size(); ++k) row[k] = values[order[k]];
      std::copy(row.begin(), row.end(), values);
    }
  });
}

// The same for rows and columns of `h`, without a second matrix: rows are exchanged along the order's cycles.
void reorder_symmetric(float* h, int64_t n, const std::vector<int32_t>& order) {
  reorder_columns(h, n, n, order);
  for (int64_t i = 0; i < n; ++i) {
    int64_t source = order[static_cast<size_t>(i)];
    while (source < i) source = order[static_cast<size_t>(source)];
    if (source != i) std::swap_ranges(h + i * n, h + (i + 1) * n, h + source * n);
  }
}

// Inputs that are always zero say nothing about their weights, which become zero.
void drop_dead_columns(float* w, int64_t rows, int64_t cols, float* h) {
  for (int64_t k = 0; k < cols; ++k) {
    if (h[k * cols + k] != 0.0F) continue;
    h[k * cols + k] = 1.0F;
    for (int64_t n = 0; n < rows; ++n) w[n * cols + k] = 0.0F;
  }
}

void damp(float* h, int64_t n, double share) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += h[k * n + k];
  const auto added = static_cast<float>(share * sum / static_cast<double>(n));
  for (int64_t k = 0; k < n; ++k) h[k * n + k] += added;
}

struct Step {
  const cpu::Kernels& kernels;
  const float* upper;  // U [cols][cols]
  const std::vector<int32_t>& order;
  int64_t first;  // column
  int64_t count;
};

// Rounds columns [first, first + count) of one row; `w` is the whole row, `errors` [count] what is left over
// for the columns behind them.
void round_block_of_row(const Step& step, int64_t row, float* w, float* errors, GroupedWeights& out) {
  std::array<int8_t, kBlock> ignored;
  const auto high = static_cast<float>(out.bits == 4 ? 7 : 127);
  const float low = out.bits == 4 ? -8.0F : -127.0F;
  float scale = 0;
  for (int64_t i = 0; i < step.count; ++i) {
    const int64_t k = step.first + i;
    if (k % out.group == 0) {
      const uint16_t bits = step.kernels.quantize_group(w + k, out.group, out.bits, ignored.data());
      out.scales[static_cast<size_t>(row * out.groups() + k / out.group)] = bits;
      scale = f16_to_float(bits);
    }
    const float code = scale == 0.0F ? 0.0F : std::clamp(std::nearbyint(w[k] / scale), low, high);
    out.codes[static_cast<size_t>(row * out.cols + step.order[static_cast<size_t>(k)])] =
        static_cast<uint8_t>(static_cast<int>(code) + (1 << (out.bits - 1)));
    const float* u = step.upper + k * out.cols;
    const float error = (w[k] - scale * code) / u[k];
    errors[i] = error;
    for (int64_t j = k + 1; j < step.first + step.count; ++j) w[j] -= error * u[j];
  }
}

std::vector<int32_t> column_order(const float* hessian, int64_t cols, bool act_order) {
  std::vector<int32_t> order(static_cast<size_t>(cols));
  std::iota(order.begin(), order.end(), 0);
  if (act_order) {
    std::ranges::stable_sort(
        order, [&](int32_t a, int32_t b) { return hessian[a * (cols + 1)] > hessian[b * (cols + 1)]; });
  }
  return order;
}

}  // namespace

// With the order of rows and columns reversed, H = L L^T; so H = R R^T for the upper R = reversed L, and
// H^-1 = U^T U for the upper U = R^-1. Reversing an array of n * n reverses both.
Status invert_to_cholesky(float* h, int64_t n) {
  std::reverse(h, h + n * n);
  QWEN2_CHECK(factorise(h, n));
  QWEN2_CHECK(invert_lower(h, n));
  std::reverse(h, h + n * n);
  return {};
}

Result<GroupedWeights> round_gptq(const cpu::Kernels& kernels, float* w, int64_t rows, int64_t cols,
                                  float* hessian, const GptqOptions& options) {
  drop_dead_columns(w, rows, cols, hessian);
  const std::vector<int32_t> order = column_order(hessian, cols, options.act_order);
  if (options.act_order) {
    reorder_columns(w, rows, cols, order);
    reorder_symmetric(hessian, cols, order);
  }
  damp(hessian, cols, options.damping);
  QWEN2_CHECK(invert_to_cholesky(hessian, cols));
  GroupedWeights result(options.bits, rows, cols, options.group);
  for (int64_t k = 0; k < cols; ++k) {
    result.group_of[static_cast<size_t>(order[static_cast<size_t>(k)])] =
        static_cast<int32_t>(k / options.group);
  }
  std::vector<float> errors(static_cast<size_t>(rows * kBlock));
  for (int64_t first = 0; first < cols; first += kBlock) {
    const Step step{kernels, hessian, order, first, std::min(kBlock, cols - first)};
    parallel_items(rows, [&](int64_t row) {
      round_block_of_row(step, row, w + row * cols, errors.data() + row * kBlock, result);
    });
    const int64_t rest = first + step.count;
    if (rest == cols) break;
    QWEN2_CHECK(add_product(-1.0F, errors.data(), kBlock, hessian + first * cols + rest, cols, rows,
                            cols - rest, step.count, w + rest, cols));
  }
  return result;
}

}  // namespace qwen2::quantize
