// Filling a QuantizedMatrix block by block of 64 rows. A block belongs to one thread, so that no two threads
// write the same cache line, whatever the order of the source is.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "checkpoint/tensor_table.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

// The part of a source's rows that falls into one block of the target.
struct BlockRows {
  int64_t first;  // row of the source
  int64_t count;  // 1..64
  int64_t block;  // of the target
  int64_t lane;   // place of `first` in the block
};

// Codes of eight neighbouring stored columns; [column][row of a BlockRows].
using EightColumns = std::array<std::array<uint8_t, kBlockRows>, 8>;

// Writes the codes of the stored columns [col, col + 8); `col` is a multiple of 8.
void store_codes(const QuantizedMatrix& target, const BlockRows& rows, int64_t col,
                 const EightColumns& codes);

// Calls f(BlockRows) in parallel for source rows [0, rows) that become target rows from `first_row` on.
template <class F>
void for_each_block(int64_t rows, int64_t first_row, const F& f) {
  const int64_t first_block = first_row / kBlockRows;
  const int64_t blocks = round_up(first_row + rows, kBlockRows) / kBlockRows - first_block;
  parallel_items(blocks, [&](int64_t i) {
    const int64_t block = first_block + i;
    const int64_t begin = std::max(first_row, block * kBlockRows);
    const int64_t end = std::min(first_row + rows, (block + 1) * kBlockRows);
    f(BlockRows{begin - first_row, end - begin, block, begin % kBlockRows});
  });
}

// Writes all codes of `rows`: fill(col, codes) sets what store_codes() takes.
template <class F>
void copy_codes(const QuantizedMatrix& target, const BlockRows& rows, const F& fill) {
  EightColumns codes{};
  for (int64_t col = 0; col < target.cols; col += 8) {
    fill(col, codes);
    store_codes(target, rows, col, codes);
  }
}

// Sets scales of the form kF32 from scale(group, source row).
template <class F>
void copy_float_scales(const QuantizedMatrix& target, const BlockRows& rows, const F& scale) {
  for (int64_t group = 0; group < target.groups(); ++group) {
    for (int64_t i = 0; i < rows.count; ++i) {
      target.set_scale_f32(rows.block * kBlockRows + rows.lane + i, group * target.format.group,
                           scale(group, rows.first + i));
    }
  }
}

// fp16 where a tensor is, float for others.
ScaleForm scale_form(const FloatTensor& scales);
// Copies scales, stored [groups, source_rows], in the form that they have.
void copy_scales(const QuantizedMatrix& target, const BlockRows& rows, const FloatTensor& scales,
                 int64_t source_rows);

// Sets the zeros from zero(group, source row).
template <class F>
void copy_zeros(const QuantizedMatrix& target, const BlockRows& rows, const F& zero) {
  for (int64_t group = 0; group < target.groups(); ++group) {
    for (int64_t i = 0; i < rows.count; ++i) {
      target.set_zero(rows.block * kBlockRows + rows.lane + i, group * target.format.group,
                      zero(group, rows.first + i));
    }
  }
}

// Sets minima of one level from minimum(group, source row), bits of fp16.
template <class F>
void copy_minima(const QuantizedMatrix& target, const BlockRows& rows, const F& minimum) {
  for (int64_t group = 0; group < target.groups(); ++group) {
    for (int64_t i = 0; i < rows.count; ++i) {
      target.set_minimum_f16(rows.block * kBlockRows + rows.lane + i, group * target.format.group,
                             minimum(group, rows.first + i));
    }
  }
}

// `target` must have the format that the source has; another one is the caller's bug.
Status check_format(std::string_view module, const QuantizedMatrix& target, const QuantizedFormat& format);

}  // namespace qwen2
