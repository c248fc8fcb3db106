// Random inputs of the kernels on the host and on the GPU, for their tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cuda/memory.h"
#include "backend/cuda/weights.h"
#include "kernels/cuda/product/product.h"
#include "kernels/cuda/rows/rows.h"
#include "kernels/cuda/rows/rows_reference.h"
#include "tensor/dtype.h"
#include "tensor/packed_matrix.h"
#include "unit/random_data.h"

namespace qwen2::cuda::test_data {

constexpr double kTheta = 10000;

inline void check(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

// Device memory with a poison behind and, unless filled, inside.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    void* data = nullptr;
    check(cudaMalloc(&data, count * sizeof(T)));
    data_ = static_cast<T*>(data);
    check(cudaMemset(data_, 0xff, count * sizeof(T)));  // NaN as floats
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  [[nodiscard]] T* get() const { return data_; }
  [[nodiscard]] std::vector<T> read() const {
    check(cudaDeviceSynchronize());
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  void zero() const { check(cudaMemset(data_, 0, count_ * sizeof(T))); }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// ||actual - expected|| / ||expected||; NaN fails every bound.
template <class A, class B>
double error_of(const A& actual, const B& expected) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double(actual[i]) - double(expected[i]), 2);
    norm += std::pow(double(expected[i]), 2);
  }
  return std::sqrt(difference / norm);
}

inline std::vector<uint16_t> to_half(const std::vector<float>& values) {
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), float_to_f16);
  return halves;
}
inline std::vector<float> from_half(const std::vector<uint16_t>& halves) {
  std::vector<float> values(halves.size());
  std::transform(halves.begin(), halves.end(), values.begin(), f16_to_float);
  return values;
}
// What fp16 keeps of them.
inline std::vector<float> rounded(const std::vector<float>& values) {
  return from_half(to_half(values));
}

struct FormAndGroup {
  MatrixForm form;
  int group;
};

struct RandomMatrix {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> halves;
  std::vector<float> scales, minima;
  std::vector<int32_t> order;
  DeviceMatrix host, device;
  std::unique_ptr<Buffer<uint8_t>> device_codes;
  std::unique_ptr<Buffer<uint16_t>> device_halves;
  std::unique_ptr<Buffer<float>> device_scales, device_minima;
  std::unique_ptr<Buffer<int32_t>> device_order;

  RandomMatrix(MatrixForm form, int rows, int cols, int group, bool permuted = false) {
    host.form = form;
    host.rows = static_cast<int>(round_up(rows, kTileRows));
    host.cols = cols;
    host.row_bytes = padded_row_bytes(form, cols);
    codes.resize(static_cast<size_t>(host.rows * host.row_bytes));
    host.codes = codes.data();
    for (int64_t n = 0; n < rows; ++n) fill_row(n);
    if (form != MatrixForm::kF16) fill_scales(group);
    if (permuted) {
      order.resize(static_cast<size_t>(cols));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), test::generator());
      host.order = order.data();
    }
    upload();
  }

 private:
  void fill_row(int64_t n) {
    std::vector<uint8_t> row(static_cast<size_t>(host.row_bytes));
    for (int64_t k = 0; k < host.cols; ++k) {
      if (host.form == MatrixForm::kF16) {
        const uint16_t value = float_to_f16(test::normal(1, 0.05F)[0]);
        std::memcpy(row.data() + 2 * k, &value, 2);
      } else {
        const bool eight = form_bits(host.form) == 8;
        set_cuda_code(host.form, row.data(), k,
                      static_cast<int>(eight ? test::uniform(-127, 127) : test::uniform(0, 15)));
      }
    }
    for (int64_t chunk = 0; chunk < host.chunks(); ++chunk)
      std::copy_n(row.data() + chunk * kChunkBytes, kChunkBytes, codes.data() + chunk_offset(host, n, chunk));
  }
  void fill_scales(int group) {
    host.group = group;
    host.groups = host.cols / group;
    const auto count = static_cast<size_t>(host.rows) * static_cast<size_t>(host.groups);
    for (size_t i = 0; i < count; ++i) {
      const auto scale = static_cast<float>(test::uniform(10, 100)) * 1e-4F;
      halves.push_back(float_to_f16(scale));
      scales.push_back(scale);
      minima.push_back(scale * static_cast<float>(test::uniform(0, 15)));
    }
    host.scales = is_general(host.form) ? static_cast<const void*>(scales.data()) : halves.data();
    host.minima = is_general(host.form) ? minima.data() : nullptr;
  }
  void upload() {
    device = host;
    device_codes = std::make_unique<Buffer<uint8_t>>(codes);
    device.codes = device_codes->get();
    if (host.scales != nullptr) {
      device_halves = std::make_unique<Buffer<uint16_t>>(halves);
      device_scales = std::make_unique<Buffer<float>>(scales);
      device_minima = std::make_unique<Buffer<float>>(minima);
      device.scales =
          is_general(host.form) ? static_cast<const void*>(device_scales->get()) : device_halves->get();
      device.minima = is_general(host.form) ? device_minima->get() : nullptr;
    }
    if (!order.empty()) {
      device_order = std::make_unique<Buffer<int32_t>>(order);
      device.order = device_order->get();
    }
  }
};

// fp16 rows, padded with zeros.
inline std::vector<uint16_t> padded_rows(const std::vector<float>& x, int rows, int cols, int64_t stride) {
  std::vector<uint16_t> out(static_cast<size_t>(kMaxRows * stride));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < cols; ++k)
      out[static_cast<size_t>(m * stride + k)] = float_to_f16(x[static_cast<size_t>(m * cols + k)]);
  }
  return out;
}

// Activations as a product reads them: one row to be staged, or several in the matrix's order.
class ProductRows {
 public:
  ProductRows(const DeviceMatrix& w, const std::vector<float>& x, int rows)
      : stride_(round_up(w.cols, 128)),
        halves_(padded_rows(x, rows, w.cols, stride_)),
        x_(static_cast<size_t>(kMaxRows * stride_)),
        scales_(static_cast<size_t>(kMaxRows * stride_ / kActivationGroup)) {
    if (rows == 1 && can_stage(w, false)) {
      input_.x = halves_.get();
      return;
    }
    repack({.rows = rows, .cols = w.cols, .halves = halves_.get(), .out = out(w)}, nullptr);
    input_.x = x_.get();
    input_.stride = stride_;
    input_.layout = activation_layout(w);
    input_.scales = scales_.get();
  }
  [[nodiscard]] const ProductInput& input() const { return input_; }

 private:
  [[nodiscard]] RowsOut out(const DeviceMatrix& w) const {
    return {x_.get(), stride_, activation_layout(w), scales_.get()};
  }
  int64_t stride_;
  Buffer<uint16_t> halves_, x_;
  Buffer<float> scales_;
  ProductInput input_;
};

// A sequence's keys and values in a shuffled page table, and the same in double.
struct Cache {
  int dim, kv_heads, length, kv_bits;
  std::vector<double> keys, values;  // [kv_heads][length][dim]
  std::vector<std::byte> pages;
  std::vector<uint32_t> table;
  std::vector<float> rotations;

  Cache(int dim_, int kv_heads_, int length_, int bits)
      : dim(dim_), kv_heads(kv_heads_), length(length_), kv_bits(bits) {
    const int count = (length + kPageTokens - 1) / kPageTokens;
    table.resize(static_cast<size_t>(count));
    std::iota(table.begin(), table.end(), 0U);
    std::shuffle(table.begin(), table.end(), test::generator());
    pages.resize(static_cast<size_t>(count * kv_heads * kv_page_bytes(bits, dim)));
    const auto size = static_cast<size_t>(int64_t{kv_heads} * length * dim);
    keys.resize(size);
    values.resize(size);
    for (int64_t h = 0; h < kv_heads; ++h) {
      for (int64_t t = 0; t < length; ++t) {
        fill(h, t, 0, keys);
        fill(h, t, 1, values);
      }
    }
    for (int64_t p = 0; p < length; ++p) {
      for (int64_t i = 0; i < dim / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(kTheta, -2.0 * static_cast<double>(i) / dim);
        rotations.push_back(static_cast<float>(std::cos(angle)));
        rotations.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }

 private:
  void fill(int64_t head, int64_t token, int64_t what, std::vector<double>& out) {
    std::byte* page = pages.data() + (table[static_cast<size_t>(token / kPageTokens)] * kv_heads + head) *
                                         kv_page_bytes(kv_bits, dim);
    const int64_t row = what * kPageTokens + token % kPageTokens;
    const uint16_t scale = float_to_f16(0.01F * static_cast<float>(test::uniform(1, 3)));
    if (kv_bits == 8) std::memcpy(page + 2 * kPageTokens * dim + row * 2, &scale, 2);
    for (int64_t d = 0; d < dim; ++d) {
      double& value = out[static_cast<size_t>((head * length + token) * dim + d)];
      if (kv_bits == 8) {
        const auto code = static_cast<int8_t>(test::uniform(-127, 127));
        page[row * dim + d] = static_cast<std::byte>(code);
        value = f16_to_float(scale) * code;
      } else {
        const uint16_t half = float_to_f16(test::normal(1)[0]);
        std::memcpy(page + (row * dim + d) * 2, &half, 2);
        value = f16_to_float(half);
      }
    }
  }
};

struct Bias {
  int pairs;
  std::vector<int32_t> index;
  std::vector<float> first, second;

  Bias(int pairs_, int kv_heads, int dim) : pairs(pairs_) {
    for (int h = 0; h < kv_heads; ++h) {
      for (int p = 0; p < kMaxBiasPairs; ++p) {
        index.push_back(p < pairs ? dim / 2 - 1 - p : 0);
        first.push_back(p < pairs ? test::normal(1, 20)[0] : 0);
        second.push_back(p < pairs ? test::normal(1, 20)[0] : 0);
      }
    }
  }
  // What it adds to the score of query `q` with a key at `position`.
  [[nodiscard]] double score(std::span<const double> q, int kv_head, int64_t position) const {
    const auto dim = static_cast<int64_t>(q.size());
    double sum = 0;
    for (int p = 0; p < pairs; ++p) {
      const auto at = static_cast<size_t>(int64_t{kv_head} * kMaxBiasPairs + p);
      std::vector<double> key(q.size());
      key[static_cast<size_t>(index[at])] = first[at];
      key[static_cast<size_t>(index[at] + dim / 2)] = second[at];
      reference::rotate(key, position, kTheta);
      sum += std::inner_product(q.begin(), q.end(), key.begin(), 0.0);
    }
    return sum;
  }
};

}  // namespace qwen2::cuda::test_data
