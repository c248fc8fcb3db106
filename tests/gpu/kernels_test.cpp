// Every CUDA kernel against its slow reference, on fresh random inputs and awkward sizes.
#include "kernels/cuda/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cuda/memory.h"
#include "backend/cuda/weights.h"
#include "kernels/cuda/reference.h"
#include "tensor/dtype.h"
#include "tensor/packed_matrix.h"
#include "unit/random_data.h"

namespace qwen2::cuda {
namespace {

constexpr double kTheta = 10000;

void check(cudaError_t error) {
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

std::vector<uint16_t> to_half(const std::vector<float>& values) {
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), float_to_f16);
  return halves;
}
std::vector<float> from_half(const std::vector<uint16_t>& halves) {
  std::vector<float> values(halves.size());
  std::transform(halves.begin(), halves.end(), values.begin(), f16_to_float);
  return values;
}
// What fp16 keeps of them.
std::vector<float> rounded(const std::vector<float>& values) {
  return from_half(to_half(values));
}

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
      std::copy_n(row.data() + chunk * kChunkBytes, kChunkBytes, codes.data() + chunk_place(host, n, chunk));
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
std::vector<uint16_t> padded_rows(const std::vector<float>& x, int rows, int cols, int64_t stride) {
  std::vector<uint16_t> out(static_cast<size_t>(kMaxRows * stride));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < cols; ++k)
      out[static_cast<size_t>(m * stride + k)] = float_to_f16(x[static_cast<size_t>(m * cols + k)]);
  }
  return out;
}

// Activations as a product wants them: one row to be staged, or several in the matrix's order.
class ProductRows {
 public:
  ProductRows(const DeviceMatrix& w, const std::vector<float>& x, int rows)
      : stride_(round_up(w.cols, 128)),
        halves_(padded_rows(x, rows, w.cols, stride_)),
        x_(static_cast<size_t>(kMaxRows * stride_)),
        scales_(static_cast<size_t>(kMaxRows * stride_ / kDigitColumns)) {
    if (rows == 1 && can_stage(w, false)) {
      input_.x = halves_.get();
      return;
    }
    arrange({.rows = rows, .cols = w.cols, .halves = halves_.get(), .out = out(w)}, nullptr);
    input_.x = x_.get();
    input_.stride = stride_;
    input_.order = x_order(w);
    input_.scales = scales_.get();
  }
  [[nodiscard]] const ProductInput& input() const { return input_; }

 private:
  [[nodiscard]] RowsOut out(const DeviceMatrix& w) const {
    return {x_.get(), stride_, x_order(w), scales_.get()};
  }
  int64_t stride_;
  Buffer<uint16_t> halves_, x_;
  Buffer<float> scales_;
  ProductInput input_;
};

struct FormAndGroup {
  MatrixForm form;
  int group;
};

TEST(GpuProduct, EveryFormGroupAndNumberOfRows) {
  using enum MatrixForm;
  for (const auto& [form, group] : {FormAndGroup{kF16, 0},
                                    {kInt8, 16},
                                    {kInt8, 32},
                                    {kInt8, 64},
                                    {kInt8, 128},
                                    {kInt8, -1},
                                    {kInt4, 16},
                                    {kInt4, 32},
                                    {kInt4, 64},
                                    {kInt4, 128},
                                    {kInt4, -1},
                                    {kInt8General, 16},
                                    {kInt8General, 128},
                                    {kInt4General, 16},
                                    {kInt4General, 32},
                                    {kInt4General, 128}}) {
    for (const auto& [n, k] : {std::pair{48, 128}, {131, 384}, {2128, 384}, {96, 8960}}) {
      const RandomMatrix w(form, n, k, group < 0 ? k : std::max(group, 1));
      const auto x = rounded(test::normal(size_t{kMaxRows} * static_cast<size_t>(k)));
      const auto all = reference::product(w.host, x, kMaxRows);
      for (const int rows : {1, 2, 8, 16, 32, 64}) {
        for (const int split : {1, 2}) {
          const ProductRows in(w.device, x, rows);
          const Buffer<float> y(static_cast<size_t>(split * rows * n));
          ProductArgs args;
          args.w = w.device;
          args.rows = rows;
          args.input = in.input();
          args.out_rows = n;
          args.y = y.get();
          args.y_stride = n;
          args.split = split;
          product(args, nullptr);
          check(cudaGetLastError());
          auto actual = y.read();
          for (size_t i = 0; split == 2 && i < static_cast<size_t>(int64_t{rows} * n); ++i)
            actual[i] += actual[i + static_cast<size_t>(rows * n)];
          std::vector<double> expected;
          for (int64_t m = 0; m < rows; ++m)
            expected.insert(expected.end(), all.begin() + m * w.host.rows, all.begin() + m * w.host.rows + n);
          // Digits round a group of activations to an even grid.
          EXPECT_LT(error_of(actual, expected), is_coarse(w.device) ? 5e-5 : 2e-5)
              << "form " << static_cast<int>(form) << " group " << group << " " << n << "x" << k << " rows "
              << rows << " split " << split;
        }
      }
    }
  }
}

// Every number of rows gives each row the same bits, whatever the tiles that a block takes.
TEST(GpuProduct, ManyRowsGiveWhatFewGive) {
  using enum MatrixForm;
  // The longest ones have more tiles for a team than are added up at once.
  for (const auto& [form, group, n, k, split] : {std::tuple{kF16, 0, 17300, 224, 1},
                                                 {kF16, 0, 40000, 64, 1},
                                                 {kInt8, 128, 40000, 128, 1},
                                                 {kF16, 0, 2030, 416, 1},
                                                 {kF16, 0, 1570, 1568, 4},
                                                 {kInt8, 224, 17300, 224, 1},
                                                 {kInt8, 64, 1570, 1600, 4},
                                                 {kInt8, 32, 2030, 416, 1},
                                                 {kInt4, 128, 17300, 256, 1},
                                                 {kInt4, 1568, 1570, 1568, 4},
                                                 {kInt4, 32, 2030, 416, 1}}) {
    const RandomMatrix w(form, n, k, std::max(group, 1));
    const auto x = rounded(test::normal(size_t{kMaxRows} * static_cast<size_t>(k)));
    std::vector<float> few;
    for (const int rows : {1, 2, 8, 16, 32, 64}) {
      const auto count = static_cast<size_t>(int64_t{rows} * n);
      const ProductRows in(w.device, x, rows);
      const Buffer<float> y(static_cast<size_t>(split) * count);
      ProductArgs args;
      args.w = w.device;
      args.rows = rows;
      args.input = in.input();
      args.out_rows = n;
      args.y = y.get();
      args.y_stride = n;
      args.split = split;
      product(args, nullptr);
      check(cudaGetLastError());
      const auto parts = y.read();
      std::vector<float> sums(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(count));
      for (size_t i = count; i < parts.size(); ++i) sums[i % count] += parts[i];
      for (size_t i = 0; i < few.size(); ++i)
        ASSERT_EQ(sums[i], few[i]) << "form " << static_cast<int>(form) << ", " << rows << " rows, element "
                                   << i;
      few = sums;
    }
  }
}

// In one load of a thread and in two; and the same bits where norm and product are kernels of their own.
TEST(GpuProduct, NormsItsInputAndKeepsTheSum) {
  using enum MatrixForm;
  for (const auto& [form, cols] :
       {std::pair{kF16, 1536}, {kF16, 2048}, {kInt8, 1536}, {kInt4, 1536}, {kInt4, 2048}, {kInt4, 400}}) {
    const auto count = static_cast<size_t>(cols);
    const RandomMatrix w(form, 80, cols, cols);
    const auto hidden = test::normal(count, 3);
    const auto partials = test::normal(2 * count, 3);
    const auto norm = test::normal(count);
    const Buffer<float> d_hidden(hidden), d_partials(partials), d_norm(norm), sum(count), y(80),
        again(2 * 80);
    ProductArgs args;
    args.w = w.device;
    args.rows = 1;
    args.input = {.hidden = d_hidden.get(),
                  .partials = d_partials.get(),
                  .parts = 2,
                  .norm = d_norm.get(),
                  .epsilon = 1e-6F,
                  .hidden_out = sum.get()};
    args.out_rows = 80;
    args.y = y.get();
    args.y_stride = 80;
    product(args, nullptr);
    std::vector<double> added(count);
    for (size_t i = 0; i < count; ++i) added[i] = double{hidden[i]} + partials[i] + partials[i + count];
    EXPECT_LT(error_of(sum.read(), added), 1e-6);
    const auto normed = reference::rms_norm(added, norm, 1e-6);
    const auto expected = reference::product(w.host, std::vector<float>(normed.begin(), normed.end()), 1);
    // The activations are rounded to fp16 or to digits.
    EXPECT_LT(error_of(y.read(), expected), form == kF16 ? 1e-3 : 1e-4) << static_cast<int>(form);

    const int64_t stride = round_up(cols, 128);
    const Buffer<uint16_t> x(static_cast<size_t>(8 * stride));
    const Buffer<float> scales(static_cast<size_t>(stride / kDigitColumns * kMaxRows)), factors(2);
    // A row of zeros besides.
    std::vector<float> two(2 * count), two_parts(4 * count);
    std::copy(hidden.begin(), hidden.end(), two.begin());
    for (size_t p = 0; p < 2; ++p)
      std::copy_n(partials.begin() + static_cast<std::ptrdiff_t>(p * count), count,
                  two_parts.begin() + static_cast<std::ptrdiff_t>(2 * p * count));
    const Buffer<float> d_two(two), d_parts(two_parts);
    const RowsOut out{x.get(), stride, x_order(w.device), scales.get()};
    add_norm({.rows = 2,
              .cols = cols,
              .hidden = d_two.get(),
              .partials = d_parts.get(),
              .parts = 2,
              .norm = d_norm.get(),
              .epsilon = 1e-6F,
              .out = out,
              .factors = factors.get()},
             nullptr);
    args.rows = 2;
    args.input = {.x = x.get(), .scales = scales.get(), .stride = stride, .order = out.order};
    if (out.order == XOrder::kDigits) args.input.factors = factors.get();
    args.y = again.get();
    product(args, nullptr);
    const auto one = y.read();
    const auto several = again.read();
    for (size_t i = 0; i < 80; ++i) {
      ASSERT_EQ(several[i], one[i]) << static_cast<int>(form) << " " << cols << " element " << i;
      ASSERT_EQ(several[80 + i], 0.0F);
    }
  }
}

// Beyond fp16's range: products of gate and up of 2e5 and more.
TEST(GpuProduct, SwigluAndDownSurviveLargeValues) {
  for (const float size : {1.0F, 700.0F}) {
    for (const auto& [rows, in_digits] : {std::pair{1, false}, {8, false}, {1, true}, {8, true}}) {
      const RandomMatrix gate_up(MatrixForm::kF16, 64, 256, 0);
      const RandomMatrix down(in_digits ? MatrixForm::kInt8 : MatrixForm::kF16, 48, 32, 32);
      const auto x = rounded(test::normal(static_cast<size_t>(int64_t{rows} * 256), size));
      const ProductRows in(gate_up.device, x, rows);
      const Buffer<float> products(static_cast<size_t>(rows * 32)), y(static_cast<size_t>(rows * 48));
      const Buffer<uint32_t> row_max(kMaxRows);
      row_max.zero();
      ProductArgs args;
      args.w = gate_up.device;
      args.rows = rows;
      args.input = in.input();
      args.output = ProductOutput::kSwiglu;
      args.y = products.get();
      args.y_stride = 32;
      args.row_max = row_max.get();
      product(args, nullptr);
      const auto both = reference::product(gate_up.host, x, rows);
      std::vector<float> expected(static_cast<size_t>(rows * 32));
      for (size_t i = 0; i < expected.size(); ++i) {
        const size_t from = i / 32 * 64 + i % 32 / 8 * 16 + i % 8;  // alternating eights
        expected[i] = static_cast<float>(reference::silu(both[from]) * both[from + 8]);
      }
      EXPECT_LT(error_of(products.read(), expected), 1e-4);
      for (int64_t m = 0; m < rows; ++m) {
        float largest = 0;
        for (int64_t i = 0; i < 32; ++i)
          largest = std::max(largest, std::abs(products.read()[static_cast<size_t>(m * 32 + i)]));
        EXPECT_EQ(std::bit_cast<float>(row_max.read()[static_cast<size_t>(m)]), largest);
      }
      ProductArgs second;
      second.w = down.device;
      second.rows = rows;
      const Buffer<uint16_t> scaled(static_cast<size_t>(kMaxRows * 128));
      const Buffer<float> scales(kMaxRows);
      second.input.row_max = row_max.get();
      if (rows == 1) {
        second.input.values = products.get();
      } else {
        if (in_digits) second.input.row_max = nullptr;
        arrange({.rows = rows,
                 .cols = 32,
                 .values = products.get(),
                 .row_max = second.input.row_max,
                 .out = {scaled.get(), 128, x_order(down.device), scales.get()}},
                nullptr);
        second.input.x = scaled.get();
        second.input.stride = 128;
        second.input.scales = scales.get();
      }
      second.out_rows = 48;
      second.y = y.get();
      second.y_stride = 48;
      product(second, nullptr);
      EXPECT_LT(error_of(y.read(), reference::product(down.host, expected, rows)), 2e-3) << size;
    }
  }
}

TEST(GpuExpand, EveryFormGivesItsValues) {
  using enum MatrixForm;
  for (const auto& [form, group] :
       {FormAndGroup{kInt8, 64}, {kInt4, 32}, {kInt8General, 128}, {kInt4General, 16}}) {
    for (const bool permuted : {false, true}) {
      const RandomMatrix w(form, 40, 384, group, permuted);
      const Buffer<uint16_t> out(static_cast<size_t>(w.host.rows) * 384);
      expand(w.device, out.get(), 384, nullptr);
      const auto actual = from_half(out.read());
      for (int64_t n = 0; n < 40; ++n) {
        for (int64_t k = 0; k < 384; ++k) {
          const int64_t to = permuted ? w.order[static_cast<size_t>(k)] : k;
          const double expected = reference::element(w.host, n, k);
          EXPECT_NEAR(actual[static_cast<size_t>(n * 384 + to)], expected, 1e-3 * std::abs(expected) + 1e-6);
        }
      }
    }
  }
}

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

struct AttentionCase {
  int dim, q_heads, kv_heads, bits, length, pairs;
};

double worst_row(const AttentionCase& c, const Cache& cache, const Bias& bias, const std::vector<float>& q,
                 const std::vector<float>& out, int row, int length) {
  double worst = 0;
  for (int head = 0; head < c.q_heads; ++head) {
    const int kv_head = head / (c.q_heads / c.kv_heads);
    const size_t from = static_cast<size_t>((int64_t{row} * c.q_heads + head) * c.dim);
    const std::vector<double> query(
        q.begin() + static_cast<std::ptrdiff_t>(from),
        q.begin() + static_cast<std::ptrdiff_t>(from + static_cast<size_t>(c.dim)));
    std::vector<double> added;
    for (int k = 0; c.pairs > 0 && k < length; ++k) added.push_back(bias.score(query, kv_head, k));
    const auto begin = static_cast<size_t>(int64_t{kv_head} * cache.length * c.dim);
    const auto count = static_cast<size_t>(int64_t{length} * c.dim);
    const auto expected = reference::attention(query, std::span(cache.keys).subspan(begin, count),
                                               std::span(cache.values).subspan(begin, count), added);
    worst = std::max(worst, error_of(std::span(out).subspan(from, static_cast<size_t>(c.dim)), expected));
  }
  return worst;
}

// A row's result is the same alone and among others, whichever kernel it comes from.
TEST(GpuAttention, SingleRowsOverPages) {
  constexpr int kRows = 16;
  for (const AttentionCase& c : {AttentionCase{128, 12, 2, 16, 1, 0},
                                 {128, 12, 2, 16, 129, 0},
                                 {128, 12, 2, 16, 256, 0},
                                 {128, 12, 2, 8, 200, 4},
                                 {64, 14, 2, 16, 131, 3},
                                 {64, 2, 2, 8, 64, 0},
                                 {128, 12, 2, 8, 257, 0},
                                 {64, 14, 2, 16, 700, 3},
                                 {64, 2, 2, 8, 300, 0},
                                 {128, 12, 1, 16, 90, 2},
                                 {128, 12, 2, 16, 20000, 0},
                                 {128, 12, 2, 8, 700, 4},
                                 {128, 12, 2, 16, 700, 3},
                                 {128, 3, 1, 16, 513, 8}}) {
    const Cache cache(c.dim, c.kv_heads, c.length, c.bits);
    const Bias bias(c.pairs, c.kv_heads, c.dim);
    const std::vector<int> lengths{c.length, std::max(1, c.length / 2), std::max(1, c.length - 1), 1};
    std::vector<Row> rows;
    for (int i = 0; i < kRows; ++i) {
      const int position = lengths[static_cast<size_t>(i % 4)] - 1;
      rows.push_back({0, position, 0, i % 3 == 0 ? 0 : position - position / 3 * (i % 3 - 1)});
    }
    const auto q = test::normal(static_cast<size_t>(int64_t{kRows} * c.q_heads * c.dim), 0.3F);
    const Buffer<std::byte> pages(cache.pages);
    const Buffer<uint32_t> table(cache.table), arrived(static_cast<size_t>(kRows * c.q_heads));
    const Buffer<float> d_q(q), rotations(cache.rotations), first(bias.first), second(bias.second);
    const Buffer<int32_t> index(bias.index);
    const Buffer<Row> info(rows);
    const Buffer<uint16_t> out(static_cast<size_t>(kRows * c.q_heads * c.dim));
    const Buffer<float> sums(static_cast<size_t>(kRows * c.q_heads * kMaxSplits * c.dim));
    const Buffer<float> scalars(static_cast<size_t>(kRows * c.q_heads * kMaxSplits * 2));
    arrived.zero();
    std::vector<float> in_the_largest;
    for (const int count : {kRows, 4, 1}) {
      RowAttentionArgs args;
      args.rows = count;
      args.row_info = info.get();
      args.heads = {c.q_heads, c.kv_heads, c.dim};
      args.cache = {.data = pages.get(),
                    .kv_bits = c.bits,
                    .pages = table.get(),
                    .rotations = rotations.get(),
                    .key_bias = {c.pairs, index.get(), first.get(), second.get()}};
      args.q = d_q.get();
      args.max_splits = split_count(c.length);
      args.out = out.get();
      args.out_stride = c.q_heads * c.dim;
      args.part_sums = sums.get();
      args.part_scalars = scalars.get();
      args.arrived = arrived.get();
      attend_rows(args, nullptr);
      check(cudaGetLastError());
      const auto actual = from_half(out.read());
      if (count == kRows) in_the_largest = actual;
      const auto common = std::ptrdiff_t{count} * c.q_heads * c.dim;
      EXPECT_TRUE(std::equal(actual.begin(), actual.begin() + common, in_the_largest.begin()))
          << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " rows " << count;
      for (int row = 0; row < std::min(count, 4); ++row) {
        EXPECT_LT(worst_row(c, cache, bias, q, actual, row, lengths[static_cast<size_t>(row)]), 1e-3)
            << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " row " << row << " of "
            << count;
      }
      for (const uint32_t left : arrived.read()) EXPECT_EQ(left, 0U);
    }
  }
}

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
  [[nodiscard]] ProductInput normed(const Buffer<float>& norm, int parts, int from) const {
    return {.hidden = hidden_.get() + from * c_.hidden,
            .partials = partials_.get(),
            .parts = parts,
            .norm = norm.get(),
            .epsilon = 1e-6F,
            .hidden_out = hidden_.get() + (1 - from) * c_.hidden};
  }
  void stores_parts(ProductArgs& args) const {
    args.out_rows = c_.hidden;
    args.y = partials_.get();
    args.y_stride = c_.hidden;
    args.split = 4;
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
         {layers_blocks(), layers_blocks(), std::min(layers_blocks(), 30), kMaxParts + 1}) {
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

TEST(GpuAttention, ChunksOfPrompts) {
  for (const AttentionCase& c : {AttentionCase{128, 6, 2, 16, 130, 0},
                                 {64, 7, 1, 16, 64, 0},
                                 {128, 2, 2, 8, 200, 0},
                                 {64, 4, 2, 16, 333, 11},
                                 {128, 4, 1, 8, 77, 2}}) {
    for (const int position : {0, 45}) {
      const int tokens = c.length - position;
      const Cache cache(c.dim, c.kv_heads, c.length, c.bits);
      const Bias bias(c.pairs, c.kv_heads, c.dim);
      const auto q = test::normal(static_cast<size_t>(int64_t{tokens} * c.q_heads * c.dim), 0.3F);
      const Buffer<std::byte> pages(cache.pages);
      const Buffer<uint32_t> table(cache.table);
      const Buffer<float> d_q(q), rotations(cache.rotations), first(bias.first), second(bias.second);
      const Buffer<int32_t> index(bias.index);
      const Buffer<uint16_t> out(static_cast<size_t>(tokens * c.q_heads * c.dim));
      ChunkAttentionArgs args;
      args.tokens = tokens;
      args.position = position;
      args.positions = c.length;
      args.heads = {c.q_heads, c.kv_heads, c.dim};
      args.cache = {.data = pages.get(),
                    .kv_bits = c.bits,
                    .pages = nullptr,
                    .rotations = rotations.get(),
                    .key_bias = {c.pairs, index.get(), first.get(), second.get()}};
      args.pages = table.get();
      args.q = d_q.get();
      args.out = out.get();
      args.out_stride = c.q_heads * c.dim;
      attend_chunk(args, nullptr);
      check(cudaGetLastError());
      const auto actual = from_half(out.read());
      for (const int row : {0, tokens / 2, tokens - 1}) {
        EXPECT_LT(worst_row(c, cache, bias, q, actual, row, position + row + 1), 5e-3)
            << "dim " << c.dim << " length " << c.length << " bits " << c.bits << " row " << row;
      }
    }
  }
}

TEST(GpuRows, AddNormScalesAndPads) {
  constexpr int kRows = 3;
  constexpr int kCols = 400;
  const auto hidden = test::normal(kRows * kCols), partials = test::normal(2 * kRows * kCols),
             norm = test::normal(kCols);
  const Buffer<float> d_hidden(hidden), d_partials(partials), d_norm(norm);
  const Buffer<uint16_t> x(kRows * 512);
  add_norm({.rows = kRows,
            .cols = kCols,
            .hidden = d_hidden.get(),
            .partials = d_partials.get(),
            .parts = 2,
            .norm = d_norm.get(),
            .epsilon = 1e-5F,
            .out = {x.get(), 512}},
           nullptr);
  const auto sums = d_hidden.read();
  const auto actual = from_half(x.read());
  for (size_t m = 0; m < kRows; ++m) {
    std::vector<double> added(kCols);
    for (size_t i = 0; i < kCols; ++i)
      added[i] = double{hidden[m * kCols + i]} + partials[m * kCols + i] + partials[(kRows + m) * kCols + i];
    EXPECT_LT(error_of(std::span(sums).subspan(m * kCols, kCols), added), 1e-6);
    EXPECT_LT(error_of(std::span(actual).subspan(m * 512, kCols), reference::rms_norm(added, norm, 1e-5)),
              1e-3);
    for (size_t i = kCols; i < 512; ++i) EXPECT_EQ(actual[m * 512 + i], 0.0F);
  }
}

TEST(GpuRows, EveryOrderOfActivations) {
  constexpr int kRows = 11;
  constexpr int kCols = 200;
  constexpr int kStride = 256;
  std::vector<uint16_t> x(size_t{kRows} * kStride);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i + 1);
  std::vector<int32_t> order(kCols);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), test::generator());
  const Buffer<uint16_t> d_x(x);
  const Buffer<int32_t> d_order(order);
  for (const XOrder to : {XOrder::kRows, XOrder::kBlocks, XOrder::kLaneBlocks, XOrder::kDigits}) {
    for (const bool permuted : {false, true}) {
      const Buffer<uint16_t> out(size_t{16} * kStride);
      const Buffer<float> scales(size_t{kStride / kDigitColumns} * kMaxRows);
      arrange({.rows = kRows,
               .cols = kCols,
               .halves = d_x.get(),
               .order = permuted ? d_order.get() : nullptr,
               .out = {out.get(), kStride, to, scales.get()}},
              nullptr);
      const auto actual = out.read();
      const auto* bytes = reinterpret_cast<const int8_t*>(actual.data());
      const auto of_group = scales.read();
      for (int row = 0; row < kRows; ++row) {
        for (int k = 0; k < kStride; ++k) {
          const int from = permuted && k < kCols ? order[static_cast<size_t>(k)] : k;
          const uint16_t expected = k < kCols ? x[static_cast<size_t>(row * kStride + from)] : 0;
          if (to == XOrder::kDigits) {
            const int64_t at = digit_place(kStride, row, k);
            const float scale = of_group[static_cast<size_t>(k / kDigitColumns * kMaxRows + row)];
            const int value = 256 * bytes[at] + bytes[at + kLowDigit];
            EXPECT_NEAR(static_cast<float>(value) * scale, f16_to_float(expected), 0.51F * scale);
          } else {
            EXPECT_EQ(actual[static_cast<size_t>(x_place(to, kStride, row, k))], expected);
          }
        }
      }
    }
  }
}

// What a step begins with: its inputs come from the host's memory, where the rows to embed are read as well.
TEST(GpuRows, FetchesAndEmbedsEveryForm) {
  using enum MatrixForm;
  constexpr int kRows = kMaxRows + 3;
  constexpr int kCols = 320;
  constexpr size_t kBytes = 300'000;
  const auto pinned = PinnedBuffer::allocate(kBytes, "inputs");
  ASSERT_TRUE(pinned);
  std::vector<Row> rows;
  std::vector<int64_t> tokens;
  for (int m = 0; m < kRows; ++m) {
    const int32_t own = m * 7 % 70;
    rows.push_back({m % 3 == 1 ? -1 - m % 5 : own, 0, 0, 0});
    tokens.push_back(m % 3 == 1 ? 60 + m % 5 : own);
  }
  std::generate_n(pinned->data(), kBytes, [] { return static_cast<std::byte>(test::uniform(0, 255)); });
  std::memcpy(pinned->data(), rows.data(), kRows * sizeof(Row));
  for (const auto& [form, group] : {FormAndGroup{kF16, 0}, {kInt8, 320}, {kInt4, 32}, {kInt4General, 64}}) {
    const RandomMatrix w(form, 70, kCols, std::max(group, 1));
    const Buffer<int32_t> sampled(std::vector<int32_t>{60, 61, 62, 63, 64});
    const Buffer<float> hidden(kRows * kCols);
    const Buffer<uint32_t> clear(10);
    const Buffer<std::byte> fetched(kBytes);
    fetched.zero();
    FetchArgs args{
        pinned->data(), fetched.get(), {{0, kRows * sizeof(Row)}, {2048, 200'000}, {299'008, 990}}, {}};
    args.embed.embedding = w.device;
    args.embed.rows = kRows;
    for (int m = 0; m < kMaxRows; ++m) args.embed.first_tokens[m] = rows[static_cast<size_t>(m)].token;
    args.embed.row_info = reinterpret_cast<const Row*>(pinned->data());
    args.embed.sampled = sampled.get();
    args.embed.hidden = hidden.get();
    args.embed.clear = clear.get();
    args.embed.clear_count = 10;
    fetch(args, nullptr);
    const auto actual = hidden.read();
    for (size_t m = 0; m < kRows; ++m) {
      for (int64_t k = 0; k < kCols; ++k)
        EXPECT_NEAR(actual[m * kCols + static_cast<size_t>(k)], reference::element(w.host, tokens[m], k),
                    1e-6);
    }
    for (const uint32_t value : clear.read()) EXPECT_EQ(value, 0U);
    const auto copied = fetched.read();
    for (size_t i = 0; i < kBytes; ++i) {
      const bool wanted = i < kRows * sizeof(Row) || (i >= 2048 && i < 202'048) || i >= 299'008;
      ASSERT_EQ(copied[i], wanted ? pinned->data()[i] : std::byte{0}) << "byte " << i;
    }
  }
}

// Each draw must be possible, and the shares of many must follow the probabilities.
TEST(GpuSampling, FollowsTheProbabilities) {
  constexpr int kVocab = 3000;
  constexpr int kDraws = 4032;  // of 64 rows each
  const auto logits = test::normal(kVocab, 2);
  std::vector<int32_t> seen{5, 77, 2999};
  for (const auto& [k, p, penalty] : {std::tuple{0, 1.0F, 1.0F},
                                      {20, 1.0F, 1.0F},
                                      {0, 0.5F, 1.0F},
                                      {40, 0.8F, 1.3F},
                                      {1, 1.0F, 1.0F},
                                      {0, 0.01F, 2.0F}}) {
    SampleRow row{0, 0, 0.7F, p, k, penalty, 0, penalty == 1 ? 0 : 3, -1, 0, 0};
    const auto probabilities =
        reference::sampling_probabilities(logits, row, std::span(seen).first(penalty == 1 ? 0 : 3));
    std::vector<int> counts(kVocab);
    const Buffer<int32_t> d_seen(seen), tokens(64);
    const Buffer<unsigned long long> best(64);
    const Buffer<uint32_t> arrived(64);
    best.zero();
    arrived.zero();
    std::vector<float> copies;
    for (int i = 0; i < 64; ++i) copies.insert(copies.end(), logits.begin(), logits.end());
    for (int draw = 0; draw < kDraws; draw += 64) {
      std::vector<SampleRow> rows;
      for (int i = 0; i < 64; ++i) {
        row.logits_row = row.place = i;
        row.uniform = (draw + i + 0.5) / kDraws;
        rows.push_back(row);
      }
      const Buffer<SampleRow> d_rows(rows);
      const Buffer<float> d_logits(copies);
      sample({64, d_rows.get(), d_logits.get(), kVocab, kVocab, d_seen.get(), tokens.get(), nullptr, false,
              best.get(), arrived.get()},
             {penalty != 1, false, true}, nullptr);
      for (const int32_t token : tokens.read()) {
        ASSERT_TRUE(token >= 0 && token < kVocab);
        ++counts[static_cast<size_t>(token)];
      }
    }
    double distance = 0;
    for (size_t i = 0; i < kVocab; ++i) {
      if (counts[i] > 0) {
        EXPECT_GT(probabilities[i], 0) << "top_k " << k << " top_p " << p << " token " << i;
      }
      distance += std::abs(counts[i] / double{kDraws} - probabilities[i]) / 2;
    }
    // The numbers are spread evenly, so that each token is off by two draws at most.
    EXPECT_LT(distance, 2.0 *
                            static_cast<double>(std::count_if(probabilities.begin(), probabilities.end(),
                                                              [](double x) { return x > 0; })) /
                            kDraws)
        << "top_k " << k << " top_p " << p;
  }
}

// The third row is not the step's to take.
TEST(GpuSampling, GreedyTakesTheFirstOfTheLargest) {
  constexpr int kVocab = 152061;
  constexpr int kStride = 152064;
  auto logits = test::normal(2 * kStride);
  for (const size_t place : {size_t{70000}, size_t{150001}}) logits[place] = 100;
  logits[kStride + 3] = 50;
  for (const size_t row : {size_t{1}, size_t{2}}) logits[row * kStride - 3] = 200;  // no token
  const Buffer<float> d_logits(logits);
  const Buffer<SampleRow> rows(std::vector<SampleRow>{{0, 1, 0, 1, 0, 1, 0, 0, -1, 1, 0},
                                                      {1, 0, 0, 1, 0, 1, 0, 0, -1, 1, 0},
                                                      {1, 2, 0, 1, 0, 1, 0, 0, -1, 0, 0}});
  const Buffer<int32_t> tokens(3), host_tokens(3), seen(1);
  const Buffer<unsigned long long> best(3);
  const Buffer<uint32_t> arrived(3);
  best.zero();
  arrived.zero();
  SampleArgs args;
  args.count = 3;
  args.rows = rows.get();
  args.logits = d_logits.get();
  args.stride = kStride;
  args.vocab = kVocab;
  args.seen = seen.get();
  args.tokens = tokens.get();
  args.host_tokens = host_tokens.get();
  args.best = best.get();
  args.arrived = arrived.get();
  for (int repeat = 0; repeat < 3; ++repeat) {
    tokens.zero();
    args.in_step = true;
    sample(args, {false, true, false}, nullptr);
    EXPECT_EQ(tokens.read(), (std::vector<int32_t>{3, 70000, 0}));
    args.in_step = false;
    sample(args, {false, true, false}, nullptr);
    EXPECT_EQ(tokens.read(), (std::vector<int32_t>{3, 70000, 3}));
    EXPECT_EQ(host_tokens.read(), tokens.read());
  }
}

}  // namespace
}  // namespace qwen2::cuda
