// How weights, activations and the KV cache lie in device memory. Plain C++: memory is planned without CUDA.
//
// Weight matrices W [rows, cols], y = W x:
// - A chunk is 64 bytes of a row: 32 columns of fp16, 64 of 8-bit codes, 128 of 4-bit codes. Beyond `cols` a
//   chunk is zero, and the activations must be zero there too.
// - fp16 is row-major, as cuBLASLt reads it.
// - Codes lie by tile of 16 rows, then chunk, then row. A warp loads 1 KB of consecutive bytes, which is
//   faster than 16 separate pieces.
// - Four lanes share a row: lane t = lane % 4 reads bytes [16 t, 16 t + 16) of a chunk, its operands of the
//   tensor core instructions.
//     fp16:   columns 8 t .. 8 t + 7
//     8 bits: byte 4 j + i is column 16 j + 4 t + i
//     4 bits: its low four bits are column 16 j + 4 t + i, its high ones column 64 + 16 j + 4 t + i
//   Each instruction covers 16 neighbouring columns, so groups may have any multiple of 16 columns.
// - Scales lie by tile of 16 rows, then group, then row.
#pragma once

#include <cstdint>

namespace qwen2::cuda {

enum class MatrixForm : int {
  kF16,
  kInt8,         // signed codes, fp16 scales
  kInt4,         // the same
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
  int rows = 0;  // stored: a multiple of 16
  int cols = 0;
  int64_t row_bytes = 0;  // see padded_row_bytes()
  int group = 0;          // quantised forms: columns that share a scale, a multiple of 16
  int groups = 0;
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;    // [rows / 16][groups][16]: fp16, or float in the general forms
  const float* minima = nullptr;   // the same shape; general forms
  const int32_t* order = nullptr;  // [cols]: stored column k belongs to activation order[k]; null: k

  [[nodiscard]] constexpr int chunks() const { return static_cast<int>(row_bytes / kChunkBytes); }
  [[nodiscard]] constexpr int tiles() const { return rows / kTileRows; }
};

// Bytes of a row: whole chunks. fp16 has pairs of chunks, which Turing loads together: see
// product/product_registers.cuh.
constexpr int64_t padded_row_bytes(MatrixForm form, int64_t cols) {
  const int64_t bits = form == MatrixForm::kF16 ? 2 * kChunkBytes * 8 : kChunkBytes * 8;
  return (cols * form_bits(form) + bits - 1) / bits * bits / 8;
}
// Offset in bytes of chunk `chunk` of row `row`.
constexpr int64_t chunk_offset(MatrixForm form, int64_t row_bytes, int64_t row, int64_t chunk) {
  if (form == MatrixForm::kF16) return row * row_bytes + chunk * kChunkBytes;
  return row / kTileRows * kTileRows * row_bytes + (chunk * kTileRows + row % kTileRows) * kChunkBytes;
}
constexpr int64_t chunk_offset(const DeviceMatrix& w, int64_t row, int64_t chunk) {
  return chunk_offset(w.form, w.row_bytes, row, chunk);
}

// Byte and bit of column `col` within its row, as if the row's chunks were contiguous.
struct CodeLocation {
  int64_t byte;
  int shift;
};
constexpr CodeLocation code_location(MatrixForm form, int64_t col) {
  if (form == MatrixForm::kF16) return {2 * col, 0};
  const int64_t in_half = col % 64;
  const int64_t byte = in_half % 16 / 4 * 16 + in_half / 16 * 4 + in_half % 4;
  const int columns = chunk_columns(form);
  return {col / columns * kChunkBytes + byte, col % columns < 64 ? 0 : 4};
}

// Offset of byte `byte` of row `row` among all codes.
constexpr int64_t byte_offset(const DeviceMatrix& w, int64_t row, int64_t byte) {
  return chunk_offset(w, row, byte / kChunkBytes) + byte % kChunkBytes;
}

// The code of a symmetric form, from the byte that holds it.
constexpr int signed_code(MatrixForm form, int byte, int shift) {
  return form_bits(form) == 8 ? (byte ^ 128) - 128 : ((byte >> shift & 15) ^ 8) - 8;
}

// Whether products with `w` are made in integers, with split int8 activations: see common/split_int8.cuh.
// True for symmetric codes with a scale a row, or with groups of a power of two of chunks.
constexpr bool uses_split_int8(const DeviceMatrix& w) {
  if (w.form != MatrixForm::kInt8 && w.form != MatrixForm::kInt4) return false;
  if (w.groups == 1) return true;
  const int chunks = w.group / chunk_columns(w.form);
  return w.group % chunk_columns(w.form) == 0 && (chunks & (chunks - 1)) == 0;
}
// Neighbouring split int8 activations that share a scale.
constexpr int kActivationGroup = 128;

// Where fp16 activation `col` is stored for products with codes. The order lets lane t read its operands of
// two instructions as 16 consecutive bytes; of four neighbours, the even columns come first: columns 32 j +
// 16 s + 4 t + 2 i + h lie at 32 j + 8 t + 4 s + 2 h + i.
constexpr int lane_column(int col) {
  return col / 32 * 32 + col % 16 / 4 * 8 + col % 32 / 16 * 4 + col % 2 * 2 + col % 4 / 2;
}

// How the activations of a product lie. In the blocked layouts, what a warp loads at once is 512 consecutive
// bytes. Rows are for cuBLASLt and for single rows that each block stages itself.
enum class ActivationLayout : int {
  kRows,        // fp16 [rows][stride]
  kBlocks,      // fp16 [rows / 8][stride / 32][8][32]
  kLaneBlocks,  // the same, columns in the order of lane_column()
  kSplitInt8,   // bytes [rows / 8][stride / 64][row % 2][row % 8 / 2][high term, low term][64], see
                // split_int8_offset(); scales: float [stride / kActivationGroup][kMaxRows]
};
// The layout that a product of several rows with `w` reads.
constexpr ActivationLayout activation_layout(const DeviceMatrix& w) {
  if (w.form == MatrixForm::kF16) return ActivationLayout::kBlocks;
  return uses_split_int8(w) ? ActivationLayout::kSplitInt8 : ActivationLayout::kLaneBlocks;
}

// Offset in elements of an fp16 activation.
constexpr int64_t activation_offset(ActivationLayout layout, int64_t stride, int row, int col) {
  if (layout == ActivationLayout::kRows) return row * stride + col;
  const int stored = layout == ActivationLayout::kLaneBlocks ? lane_column(col) : col;
  return row / 8 * 8 * stride + stored / 32 * 256 + row % 8 * 32 + stored % 32;
}
// Bytes from a high term to its low term. Columns are in the order of a chunk's bytes.
constexpr int kLowTermOffset = 64;
constexpr int split_int8_column(int col) {
  return col % 16 / 4 * 16 + col % 64 / 16 * 4 + col % 4;
}
// Offset in bytes of the high term of an activation.
constexpr int64_t split_int8_offset(int64_t stride, int row, int col) {
  return (row / 8 * stride + col / 64 * 64) * 16 + row % 2 * 512 + row % 8 / 2 * 128 + split_int8_column(col);
}

// Rows of activations of one skinny product. Products of more rows are cuBLASLt's.
constexpr int kMaxRows = 64;
// Splits of a product's columns (split-K) whose partial sums one reader adds up.
constexpr int kMaxSplitK = 4;

// Tokens of a KV page. A page of one layer and KV head holds K [64][head_dim], then V [64][head_dim]: both
// fp16, or both 8-bit codes followed by the fp16 scales of K [64] and of V [64].
constexpr int kPageTokens = 64;

constexpr int64_t kv_page_bytes(int kv_bits, int64_t head_dim) {
  const int64_t values = 2 * kPageTokens * head_dim;
  return kv_bits == 8 ? values + 2 * kPageTokens * 2 : values * 2;
}

// Keys of one split of a row's attention, a function of the row's length alone. Rows of up to kShortKeys keys
// are one split: merging more would take longer than it saves.
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

// Upper bound of the bytes of a layer in the table of run_layers().
constexpr int64_t kLayerEntryBytes = 2048;

// Key biases kept out of the cache: at most this many rotation pairs a head.
constexpr int kMaxBiasPairs = 32;

}  // namespace qwen2::cuda
