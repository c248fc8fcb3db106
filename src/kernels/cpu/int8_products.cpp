#include "kernels/cpu/int8_products.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"

namespace qwen2::cpu {
namespace {

constexpr int kLevels = 127;
// An element is an outlier beyond this many times its token's mean magnitude.
constexpr float kOutlier = 24.0F;

// The scratch buffer's arrays, one after the other: activations in the matrix's order, as 16-bit and as 8-bit
// integers, their scales and sums.
struct Scratch {
  float* ordered;
  int16_t* values;
  int8_t* codes;
  float* scales;
  int32_t* sums;

  Scratch(const LargeBuffer& buffer, int64_t rows, int64_t cols, int64_t chunks)
      : ordered(buffer.as<float>()),
        values(reinterpret_cast<int16_t*>(ordered + rows * cols)),
        codes(reinterpret_cast<int8_t*>(values + rows * cols)),
        scales(reinterpret_cast<float*>(codes + rows * cols)),
        sums(reinterpret_cast<int32_t*>(scales + rows * chunks)) {}

  static size_t bytes(int64_t rows, int64_t cols) {
    const auto elements = static_cast<size_t>(rows * cols);
    return elements * (sizeof(float) + sizeof(int16_t) + 1) +
           elements / kMinChunk * (sizeof(float) + sizeof(int32_t));
  }
};

}  // namespace

size_t Int8Products::workspace_bytes(int64_t max_rows, int64_t max_cols) {
  return Scratch::bytes(max_rows, max_cols) + RowProducts::workspace_bytes(max_cols);
}

Result<Int8Products> Int8Products::create(const Kernels& kernels, int64_t max_rows, int64_t max_cols) {
  QWEN2_TRY(auto rows, RowProducts::create(kernels, max_cols));
  QWEN2_TRY(auto scratch, LargeBuffer::allocate(Scratch::bytes(max_rows, max_cols), "activations in 8 bits"));
  return Int8Products(kernels, std::move(rows), std::move(scratch));
}

// Copies x, in the order of the matrix's columns, with zeros where outliers were.
void Int8Products::find_outliers(const QuantizedMatrix& w, const float* x, int64_t x_stride, int64_t m) {
  auto* ordered = scratch_.as<float>();
  std::vector<uint8_t> is_outlier(static_cast<size_t>(w.cols));
  parallel_ranges(m, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = ordered + i * w.cols;
      const float* source = x + i * x_stride;
      double magnitudes = 0;
      for (int64_t k = 0; k < w.cols; ++k) {
        row[k] = source[w.permutation != nullptr ? w.permutation[k] : k];
        magnitudes += std::abs(row[k]);
      }
      const auto limit = static_cast<float>(kOutlier * magnitudes / static_cast<double>(w.cols));
      for (int64_t k = 0; k < w.cols; ++k) {
        // Threads may set the same byte; all write the same value.
        if (std::abs(row[k]) > limit)
          __atomic_store_n(&is_outlier[static_cast<size_t>(k)], uint8_t{1}, __ATOMIC_RELAXED);
      }
    }
  });
  outliers_.clear();
  for (int64_t k = 0; k < w.cols; ++k) {
    if (is_outlier[static_cast<size_t>(k)] != 0) outliers_.push_back(static_cast<int32_t>(k));
  }
  outlier_values_.resize(static_cast<size_t>(m) * outliers_.size());
  for (int64_t i = 0; i < m; ++i) {
    for (size_t o = 0; o < outliers_.size(); ++o) {
      outlier_values_[static_cast<size_t>(i) * outliers_.size() + o] =
          std::exchange(ordered[i * w.cols + outliers_[o]], 0.0F);
    }
  }
}

void Int8Products::multiply(const QuantizedMatrix& w, int64_t m, float* y, int64_t y_stride,
                            bool accumulate) {
  const int64_t chunk = std::min(w.format.group, kMaxChunk);
  const int64_t chunks = (w.cols + chunk - 1) / chunk;
  const Scratch scratch(scratch_, m, w.cols, chunks);
  parallel_ranges(m, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int16_t* own = scratch.values + i * w.cols;
      kernels_->quantize_activations(scratch.ordered + i * w.cols, w.cols, chunk, kLevels, own,
                                     scratch.scales + i * chunks, scratch.sums + i * chunks);
      kernels_->order_for_int8(own, w.cols, w.format.bits, scratch.codes + i * w.cols);
    }
  });
  const Int8GemmArgs args{&w, scratch.codes, scratch.scales, scratch.sums, chunk, chunks, m,
                          y,  y_stride,      accumulate};
  parallel_ranges(w.blocks(), [&](int64_t begin, int64_t end) { kernels_->gemm_int8(args, begin, end); });
}

// y += x[outliers] W[:, outliers]^T, in float.
void Int8Products::add_outliers(const QuantizedMatrix& w, int64_t m, float* y, int64_t y_stride) const {
  const size_t count = outliers_.size();
  if (count == 0) return;
  parallel_ranges(w.blocks(), [&](int64_t block_begin, int64_t block_end) {
    std::vector<float> columns(count * kBlockRows);
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t first = block * kBlockRows;
      const int64_t height = std::min(kBlockRows, w.rows - first);
      for (size_t o = 0; o < count; ++o) {
        for (int64_t n = 0; n < height; ++n)
          columns[o * kBlockRows + static_cast<size_t>(n)] = w.value(first + n, outliers_[o]);
      }
      for (int64_t i = 0; i < m; ++i) {
        float* row = y + i * y_stride + first;
        for (size_t o = 0; o < count; ++o) {
          const float value = outlier_values_[static_cast<size_t>(i) * count + o];
          const float* column = columns.data() + o * kBlockRows;
          if (value == 0.0F) continue;
          for (int64_t n = 0; n < height; ++n) row[n] += value * column[n];
        }
      }
    }
  });
}

void Int8Products::run(const WeightPart& part, const float* x, int64_t x_stride, int64_t m, float* y,
                       int64_t y_stride, bool accumulate) {
  const QuantizedMatrix& w = part.quantized;
  find_outliers(w, x, x_stride, m);
  if (kernels_->gemm_int8 != nullptr) {
    multiply(w, m, y, y_stride, accumulate);
  } else {
    for (int64_t begin = 0; begin < m; begin += kMaxGemvBatch) {
      const int64_t count = std::min<int64_t>(kMaxGemvBatch, m - begin);
      rows_.run_ordered(w, scratch_.as<float>() + begin * w.cols, count, kLevels, y + begin * y_stride,
                        y_stride, accumulate);
    }
  }
  add_outliers(w, m, y, y_stride);
}

}  // namespace qwen2::cpu
