#include "kernels/cpu/int8_products.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/parallel.h"

namespace qwen2::cpu {
namespace {

constexpr int kLevels = 127;
// The largest element of a chunk is an outlier beyond this many times the mean magnitude of the others; then
// the next largest may be one, up to an eighth of the chunk.
constexpr float kOutlier = 12.0F;
constexpr int64_t kOutlierShare = 8;
// From here on a product of bytes is faster than one that is bound by reading the weights.
constexpr int64_t kFewestRows = 4;

struct Outlier {
  int32_t column;  // stored; collect_outliers() makes it a place in the list of columns
  float value;
};

// Places for the outliers of one row.
int64_t most_outliers(int64_t cols) {
  return cols / kOutlierShare;
}

bool stands_out(float largest, float sum, int64_t size) {
  return largest * static_cast<float>(size - 1) > kOutlier * (sum - largest) && largest > 0;
}

// Takes the outliers out of one chunk, which begins at column `begin`; returns how many they are.
int32_t take_outliers(float* chunk, int64_t begin, int64_t size, float sum, Outlier* out) {
  int32_t count = 0;
  while (count < size / kOutlierShare) {
    float* largest = std::max_element(
        chunk, chunk + size, [](float left, float right) { return std::abs(left) < std::abs(right); });
    if (!stands_out(std::abs(*largest), sum, size)) break;
    out[count++] = {static_cast<int32_t>(begin + (largest - chunk)), *largest};
    *largest = 0;
    sum = std::accumulate(chunk, chunk + size, 0.0F,
                          [](float total, float value) { return total + std::abs(value); });
  }
  return count;
}

}  // namespace

// The buffer's arrays for one product, one after the other.
struct Int8Products::Scratch {
  int64_t chunks, capacity;
  float* ordered;     // [rows][cols]: rows in the matrix's order of columns, without outliers
  Outlier* outliers;  // [rows][capacity], by chunk
  float* scales;      // [rows][chunks]
  int32_t* sums;      // [rows][chunks]
  int32_t* counts;    // [rows], of outliers
  int16_t* values;    // [rows][cols]: rounded
  int8_t* codes;      // [rows][cols]: for gemm_int8

  Scratch(const LargeBuffer& buffer, int64_t rows, int64_t cols, int64_t chunk_count)
      : chunks(chunk_count),
        capacity(most_outliers(cols)),
        ordered(buffer.as<float>()),
        outliers(reinterpret_cast<Outlier*>(ordered + rows * cols)),
        scales(reinterpret_cast<float*>(outliers + rows * capacity)),
        sums(reinterpret_cast<int32_t*>(scales + rows * chunks)),
        counts(sums + rows * chunks),
        values(reinterpret_cast<int16_t*>(counts + rows)),
        codes(reinterpret_cast<int8_t*>(values + rows * cols)) {}

  static size_t bytes(int64_t rows, int64_t cols) {
    const auto elements = static_cast<size_t>(rows * cols);
    return elements * (sizeof(float) + sizeof(int16_t) + 1) +
           elements / kMinChunk * (sizeof(float) + sizeof(int32_t)) +
           static_cast<size_t>(rows) *
               (static_cast<size_t>(most_outliers(cols)) * sizeof(Outlier) + sizeof(int32_t));
  }
};

size_t Int8Products::workspace_bytes(int64_t max_rows, int64_t max_cols) {
  return Scratch::bytes(max_rows, max_cols) + RowProducts::workspace_bytes(max_cols);
}

Result<Int8Products> Int8Products::create(const Kernels& kernels, int64_t max_rows, int64_t max_cols) {
  QWEN2_TRY(auto rows, RowProducts::create(kernels, max_cols));
  QWEN2_TRY(auto buffer, LargeBuffer::allocate(Scratch::bytes(max_rows, max_cols), "activations in 8 bits"));
  return Int8Products(kernels, std::move(rows), std::move(buffer));
}

bool Int8Products::multiplies_bytes(int64_t m) const {
  return kernels_->gemm_int8 != nullptr && m >= kFewestRows;
}

// Rounds one row; chunks that hold outliers once more, without them.
void Int8Products::round_row(const QuantizedMatrix& w, const float* x, int64_t row,
                             const Scratch& scratch) const {
  const int64_t chunk = chunk_columns(w);
  float* ordered = scratch.ordered + row * w.cols;
  int16_t* values = scratch.values + row * w.cols;
  float* scales = scratch.scales + row * scratch.chunks;
  int32_t* sums = scratch.sums + row * scratch.chunks;
  if (w.permutation != nullptr) {
    for (int64_t k = 0; k < w.cols; ++k) ordered[k] = x[w.permutation[k]];
    x = ordered;
  }
  kernels_->quantize_activations(x, w.cols, chunk, kLevels, values, scales, sums);
  int32_t& count = scratch.counts[row];
  count = 0;
  for (int64_t c = 0; c < scratch.chunks; ++c) {
    const int64_t begin = c * chunk;
    const int64_t size = std::min(chunk, w.cols - begin);
    const float sum = kernels_->sum_magnitudes(x + begin, size);
    if (!stands_out(scales[c] * kLevels, sum, size)) continue;
    if (x != ordered) std::memcpy(ordered + begin, x + begin, static_cast<size_t>(size) * sizeof(float));
    Outlier* outliers = scratch.outliers + row * scratch.capacity + count;
    count += take_outliers(ordered + begin, begin, size, sum, outliers);
    kernels_->quantize_activations(ordered + begin, size, chunk, kLevels, values + begin, scales + c,
                                   sums + c);
  }
}

void Int8Products::multiply(const QuantizedMatrix& w, int64_t m, const Scratch& scratch, float* y,
                            int64_t y_stride, bool accumulate) {
  if (multiplies_bytes(m)) {
    const Int8GemmArgs args{
        &w, scratch.codes, scratch.scales, scratch.sums, chunk_columns(w), scratch.chunks, m,
        y,  y_stride,      accumulate};
    parallel_ranges(w.blocks(), [&](int64_t begin, int64_t end) { kernels_->gemm_int8(args, begin, end); });
    return;
  }
  for (int64_t begin = 0; begin < m; begin += kMaxGemvBatch) {
    const int64_t count = std::min<int64_t>(kMaxGemvBatch, m - begin);
    rows_.run_rounded(w, scratch.values + begin * w.cols, scratch.scales + begin * scratch.chunks,
                      scratch.sums + begin * scratch.chunks, count, y + begin * y_stride, y_stride,
                      accumulate);
  }
}

// The columns of all rows' outliers; each outlier then names its place among them.
void Int8Products::collect_outliers(int64_t m, const Scratch& scratch) {
  outlier_columns_.clear();
  for (int64_t i = 0; i < m; ++i) {
    for (int32_t o = 0; o < scratch.counts[i]; ++o)
      outlier_columns_.push_back(scratch.outliers[i * scratch.capacity + o].column);
  }
  std::sort(outlier_columns_.begin(), outlier_columns_.end());
  outlier_columns_.erase(std::unique(outlier_columns_.begin(), outlier_columns_.end()),
                         outlier_columns_.end());
  for (int64_t i = 0; i < m; ++i) {
    for (int32_t o = 0; o < scratch.counts[i]; ++o) {
      int32_t& column = scratch.outliers[i * scratch.capacity + o].column;
      const auto place = std::lower_bound(outlier_columns_.begin(), outlier_columns_.end(), column);
      column = static_cast<int32_t>(place - outlier_columns_.begin());
    }
  }
}

// y += x[outliers] W[:, outliers]^T, in float.
void Int8Products::add_outliers(const QuantizedMatrix& w, int64_t m, const Scratch& scratch, float* y,
                                int64_t y_stride) const {
  if (outlier_columns_.empty()) return;
  parallel_ranges(w.blocks(), [&](int64_t block_begin, int64_t block_end) {
    std::vector<float> columns(outlier_columns_.size() * kBlockRows);
    for (int64_t block = block_begin; block < block_end; ++block) {
      for (size_t o = 0; o < outlier_columns_.size(); ++o)
        kernels_->dequantize_column(w, block, outlier_columns_[o], columns.data() + o * kBlockRows);
      for (int64_t i = 0; i < m; ++i) {
        float* row = y + i * y_stride + block * kBlockRows;
        for (int32_t o = 0; o < scratch.counts[i]; ++o) {
          const Outlier& outlier = scratch.outliers[i * scratch.capacity + o];
          kernels_->add_scaled(columns.data() + int64_t{outlier.column} * kBlockRows, outlier.value,
                               kBlockRows, row);
        }
      }
    }
  });
}

void Int8Products::run_part(const WeightPart& part, const float* x, int64_t x_stride, int64_t m, float* y,
                            int64_t y_stride, bool accumulate) {
  const QuantizedMatrix& w = part.quantized;
  const Scratch scratch(buffer_, m, w.cols, chunk_count(w));
  const auto round_rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      round_row(w, x + i * x_stride, i, scratch);
      if (multiplies_bytes(m)) {
        kernels_->order_for_int8(scratch.values + i * w.cols, w.cols, w.format.bits,
                                 scratch.codes + i * w.cols);
      }
    }
  };
  if (m < kFewestRows) {
    round_rows(0, m);
  } else {
    parallel_ranges(m, round_rows);
  }
  multiply(w, m, scratch, y, y_stride, accumulate);
  collect_outliers(m, scratch);
  add_outliers(w, m, scratch, y, y_stride);
}

void Int8Products::run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y,
                       int64_t y_stride, bool accumulate) {
  for (const WeightPart& part : w.parts)
    run_part(part, x, x_stride, m, y + part.first_row, y_stride, accumulate);
}

}  // namespace qwen2::cpu
