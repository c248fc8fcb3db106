#include "kernels/cpu/row_products.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/parallel.h"

namespace qwen2::cpu {
namespace {

// Parts of one matrix: query, key and value.
constexpr size_t kSlots = 3;
// Fewer rows than this are rounded by one thread: starting the others takes as long.
constexpr int64_t kSerialRows = 4;

// Places inside one slot, in bytes.
struct SlotLayout {
  size_t values, scales, sums, bytes;

  explicit SlotLayout(int64_t max_cols) {
    const auto elements = static_cast<size_t>(kMaxGemvBatch * max_cols);
    const size_t chunks = elements / kMinChunk;
    values = 0;
    scales = elements * sizeof(int16_t);
    sums = scales + chunks * sizeof(float);
    bytes = sums + chunks * sizeof(int32_t);
  }
};

// Rows as floats in a matrix's order of columns, then as integers.
size_t reordered_bytes(int64_t max_cols) {
  return static_cast<size_t>(kMaxGemvBatch * max_cols) * (sizeof(float) + sizeof(int16_t));
}

// Rows [count][cols] to [cols / 2][count][2].
void interleave(const int16_t* rows, int64_t count, int64_t cols, int16_t* out) {
  parallel_ranges(cols / 2, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(out + (pair * count + i) * 2, rows + i * cols + 2 * pair, 2 * sizeof(int16_t));
    }
  });
}

}  // namespace

size_t RowProducts::workspace_bytes(int64_t max_cols) {
  return kSlots * SlotLayout(max_cols).bytes + reordered_bytes(max_cols);
}

Result<RowProducts> RowProducts::create(const Kernels& kernels, int64_t max_cols) {
  QWEN2_TRY(auto scratch, LargeBuffer::allocate(workspace_bytes(max_cols), "rounded activations"));
  return RowProducts(kernels, max_cols, std::move(scratch));
}

// Rounds the rows for one quantised part, reordered where its columns are.
QuantizedGemvArgs RowProducts::prepare(const QuantizedMatrix& w, size_t slot, const float* x,
                                       int64_t x_stride, int64_t count) const {
  const SlotLayout layout(max_cols_);
  std::byte* base = scratch_.data() + slot * layout.bytes;
  auto* values = reinterpret_cast<int16_t*>(base + layout.values);
  auto* scales = reinterpret_cast<float*>(base + layout.scales);
  auto* sums = reinterpret_cast<int32_t*>(base + layout.sums);
  auto* reordered = reinterpret_cast<float*>(scratch_.data() + kSlots * layout.bytes);
  auto* rows = count == 1 ? values : reinterpret_cast<int16_t*>(reordered + kMaxGemvBatch * max_cols_);
  const int64_t chunk = chunk_columns(w);
  const int64_t chunks = chunk_count(w);
  const auto round_rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = x + i * x_stride;
      if (w.permutation != nullptr) {
        float* ordered = reordered + i * w.cols;
        for (int64_t k = 0; k < w.cols; ++k) ordered[k] = row[w.permutation[k]];
        row = ordered;
      }
      kernels_->quantize_activations(row, w.cols, chunk, INT16_MAX, rows + i * w.cols, scales + i * chunks,
                                     sums + i * chunks);
    }
  };
  if (count < kSerialRows) {
    round_rows(0, count);
  } else {
    parallel_ranges(count, round_rows);
  }
  if (count > 1) interleave(rows, count, w.cols, values);
  return {&w, values, scales, sums, chunk, chunks, static_cast<int>(count), nullptr, 0, false};
}

void RowProducts::run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t count, float* y,
                      int64_t y_stride, bool accumulate) {
  std::array<QuantizedGemvArgs, kSlots> prepared{};
  for (size_t i = 0; i < w.parts.size(); ++i) {
    if (!w.parts[i].is_quantized) continue;
    const QuantizedMatrix& part = w.parts[i].quantized;
    prepared[i] = prepare(part, i, x, x_stride, count);
    prepared[i].y = y + w.parts[i].first_row;
    prepared[i].y_stride = y_stride;
    prepared[i].accumulate = accumulate;
  }
  // One parallel region over the blocks of all parts.
  parallel_ranges(w.blocks(), [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < w.parts.size(); ++i) {
      const WeightPart& part = w.parts[i];
      const int64_t first_block = part.first_row / kBlockRows;
      const int64_t from = std::max(begin - first_block, int64_t{0});
      const int64_t to = std::min(end - first_block, part.blocks());
      if (from >= to) continue;
      if (part.is_quantized) {
        kernels_->gemv_quantized(prepared[i], from, to);
      } else {
        kernels_->gemv_bf16({part.dense.data, part.dense.rows, part.dense.cols, x, x_stride,
                             static_cast<int>(count), y + part.first_row, y_stride, accumulate},
                            from, to);
      }
    }
  });
}

void RowProducts::run_rounded(const QuantizedMatrix& w, const int16_t* rows, const float* scales,
                              const int32_t* sums, int64_t count, float* y, int64_t y_stride,
                              bool accumulate) {
  const int64_t chunk = chunk_columns(w);
  const int16_t* values = rows;
  if (count > 1) {
    auto* interleaved = reinterpret_cast<int16_t*>(scratch_.data());
    interleave(rows, count, w.cols, interleaved);
    values = interleaved;
  }
  const QuantizedGemvArgs args{&w, values,   scales,    sums, chunk, chunk_count(w), static_cast<int>(count),
                               y,  y_stride, accumulate};
  parallel_ranges(w.blocks(),
                  [&](int64_t begin, int64_t end) { kernels_->gemv_quantized(args, begin, end); });
}

}  // namespace qwen2::cpu
