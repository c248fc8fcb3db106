// How weights and the KV cache lie on the card; plain C++, so that memory is planned without CUDA.
//
// Weight matrices W [rows, cols], y = W x:
// Rows lie one after the other, `row_bytes` apart (a multiple of 64). 64 bytes of a row are a chunk: 32
// columns of fp16, 64 of 8-bit codes, 128 of 4-bit codes; what a chunk has beyond `cols` is zero, and so must
// be the activations there. Lane t of four reads bytes [16 t, 16 t + 16) of a chunk, which hold what the
// tensor cores want from it:
//   fp16:   columns 8 t .. 8 t + 7
//   8 bits: byte 4 j + i is column 16 j + 4 t + i, as code + 128
//   4 bits: word j is columns 32 j + 4 t + {0..3} and 32 j + 16 + 4 t + {0..3}: nibble q < 4 is the first and
//           nibble q + 4 the second of the q-th pair
// so that each step of 16 columns of the product takes 16 neighbouring columns, and a group of any multiple
// of 16 columns has its own steps. Scales lie by tile of 16 rows, then group, then row.
#pragma once

#include <cstdint>

namespace qwen2::cuda {

enum class MatrixForm : int {
  kF16,
  kInt8,         // symmetric, fp16 scales
  kInt4,         // symmetric around 8, fp16 scales
  kInt8General,  // float scales and minima: w = scale * (byte - 128) - minimum
  kInt4General,  // float scales and minima: w = scale * code - minimum
};

constexpr int kTileRows = 16;
constexpr int kChunkBytes = 64;

constexpr int form_bits(MatrixForm form) {
  return form == MatrixForm::kF16                                        ? 16
         : form == MatrixForm::kInt8 || form == MatrixForm::kInt8General ? 8
                                                                         : 4;
}
constexpr int chunk_columns(MatrixForm form) {
  return kChunkBytes * 8 / form_bits(form);
}
constexpr bool is_general(MatrixForm form) {
  return form == MatrixForm::kInt8General || form == MatrixForm::kInt4General;
}

struct DeviceMatrix {
  MatrixForm form = MatrixForm::kF16;
  int rows = 0;  // that are stored: a multiple of 16
  int cols = 0;
  int64_t row_bytes = 0;
  int group = 0;  // columns that share a scale: a multiple of 16; of quantised forms
  int groups = 0;
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;    // [rows / 16][groups][16]: fp16, or float in the general forms
  const float* minima = nullptr;   // the same shape; general forms
  const int32_t* order = nullptr;  // [cols]: stored column k belongs to activation order[k]; null: k

  [[nodiscard]] constexpr int chunks() const { return static_cast<int>(row_bytes / kChunkBytes); }
  [[nodiscard]] constexpr int tiles() const { return rows / kTileRows; }
};

// Byte and bit of column `col` in its row.
struct CodePlace {
  int64_t byte;
  int shift;
};
constexpr CodePlace code_place(MatrixForm form, int64_t col) {
  if (form == MatrixForm::kF16) return {2 * col, 0};
  if (form_bits(form) == 8) {
    const int64_t in_chunk = col % 64;
    return {col / 64 * kChunkBytes + in_chunk % 16 / 4 * 16 + in_chunk / 16 * 4 + in_chunk % 4, 0};
  }
  const int64_t in_chunk = col % 128;
  const int64_t lane = in_chunk % 16 / 4;
  const int64_t pair = in_chunk % 32 / 16 * 2 + in_chunk % 4 / 2;
  const int64_t nibble = pair + in_chunk % 2 * 4;
  return {col / 128 * kChunkBytes + lane * 16 + in_chunk / 32 * 4 + nibble / 2,
          static_cast<int>(nibble % 2 * 4)};
}

// Where activation `col` of a quantised product lies, so that lane t finds those of two steps behind each
// other: columns 32 j + 16 s + 4 t + i at 32 j + 8 t + 4 s + i.
constexpr int lane_place(int col) {
  return col / 32 * 32 + col % 16 / 4 * 8 + col % 32 / 16 * 4 + col % 4;
}

// How the fp16 activations of a product lie. What a warp takes at once lies together, 512 bytes, in blocks of
// 8 rows and 32 columns; single rows that blocks stage for themselves, and those of cuBLASLt, as rows.
enum class XOrder : int {
  kRows,        // [rows][stride]
  kBlocks,      // [rows / 8][stride / 32][8][32]
  kLaneBlocks,  // the same, columns in the order of lane_place()
};
constexpr int64_t x_place(XOrder order, int64_t stride, int row, int col) {
  if (order == XOrder::kRows) return row * stride + col;
  const int in_order = order == XOrder::kLaneBlocks ? lane_place(col) : col;
  return row / 8 * 8 * stride + in_order / 32 * 256 + row % 8 * 32 + in_order % 32;
}

// Rows of activations of one skinny product. Products of more rows are cuBLASLt's.
constexpr int kMaxRows = 64;

// Tokens of a KV page. A page of one layer and KV head holds K [64][head_dim], then V [64][head_dim]: both
// fp16, or both 8-bit codes followed by the fp16 scales of K [64] and of V [64].
constexpr int kPageTokens = 64;

constexpr int64_t kv_page_bytes(int kv_bits, int64_t head_dim) {
  const int64_t values = 2 * kPageTokens * head_dim;
  return kv_bits == 8 ? values + 2 * kPageTokens * 2 : values * 2;
}

// Keys of one part of a row's attention: a function of the row's length alone. Short rows are one part: more
// would cost more than they gain.
constexpr int kMaxSplits = 64;
constexpr int kMinSplitKeys = 128;
constexpr int kShortKeys = 256;
constexpr int split_keys(int length) {
  if (length <= kShortKeys) return kShortKeys;
  const int even = (length + kMaxSplits - 1) / kMaxSplits;
  const int keys = even < kMinSplitKeys ? kMinSplitKeys : even;
  return (keys + kPageTokens - 1) / kPageTokens * kPageTokens;
}
constexpr int split_count(int length) {
  return (length + split_keys(length) - 1) / split_keys(length);
}

// Key biases kept out of the cache, at most this many rotation pairs a head.
constexpr int kMaxBiasPairs = 32;

}  // namespace qwen2::cuda
