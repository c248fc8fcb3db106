// How weights and the KV cache lie on the card; plain C++, so that memory is planned without CUDA.
//
// Weight matrices W [rows, cols], y = W x:
// 64 bytes of a row are a chunk: 32 columns of fp16, 64 of 8-bit codes, 128 of 4-bit codes; what a chunk has
// beyond `cols` is zero, and so must be the activations there. Rows of fp16 lie one after the other, as
// cuBLASLt wants them. Codes lie by tile of 16 rows, then chunk, then row: what a warp takes at once is 1 KB
// in one piece, which memory gives faster than 16 pieces. Lane t of four reads bytes [16 t, 16 t + 16) of a
// chunk, which hold what the tensor cores want from it:
//   fp16:   columns 8 t .. 8 t + 7
//   8 bits: byte 4 j + i is column 16 j + 4 t + i
//   4 bits: its low four bits are column 16 j + 4 t + i, its high ones column 64 + 16 j + 4 t + i
// so that each step of 16 columns of the product takes 16 neighbouring columns, and a group of any multiple
// of 16 columns has its own steps. Scales lie by tile of 16 rows, then group, then row.
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
  int rows = 0;  // that are stored: a multiple of 16
  int cols = 0;
  int64_t row_bytes = 0;  // see padded_row_bytes()
  int group = 0;          // columns that share a scale: a multiple of 16; of quantised forms
  int groups = 0;
  const uint8_t* codes = nullptr;
  const void* scales = nullptr;    // [rows / 16][groups][16]: fp16, or float in the general forms
  const float* minima = nullptr;   // the same shape; general forms
  const int32_t* order = nullptr;  // [cols]: stored column k belongs to activation order[k]; null: k

  [[nodiscard]] constexpr int chunks() const { return static_cast<int>(row_bytes / kChunkBytes); }
  [[nodiscard]] constexpr int tiles() const { return rows / kTileRows; }
};

// Bytes of a row: whole chunks, of fp16 in pairs, which Turing takes together (see product_registers.cuh).
constexpr int64_t padded_row_bytes(MatrixForm form, int64_t cols) {
  const int64_t bits = form == MatrixForm::kF16 ? 2 * kChunkBytes * 8 : kChunkBytes * 8;
  return (cols * form_bits(form) + bits - 1) / bits * bits / 8;
}
// Where chunk `chunk` of row `row` lies among the codes.
constexpr int64_t chunk_place(MatrixForm form, int64_t row_bytes, int64_t row, int64_t chunk) {
  if (form == MatrixForm::kF16) return row * row_bytes + chunk * kChunkBytes;
  return row / kTileRows * kTileRows * row_bytes + (chunk * kTileRows + row % kTileRows) * kChunkBytes;
}
constexpr int64_t chunk_place(const DeviceMatrix& w, int64_t row, int64_t chunk) {
  return chunk_place(w.form, w.row_bytes, row, chunk);
}

// Byte and bit of column `col` in its row, as if its chunks were neighbours.
struct CodePlace {
  int64_t byte;
  int shift;
};
constexpr CodePlace code_place(MatrixForm form, int64_t col) {
  if (form == MatrixForm::kF16) return {2 * col, 0};
  const int64_t in_half = col % 64;
  const int64_t byte = in_half % 16 / 4 * 16 + in_half / 16 * 4 + in_half % 4;
  const int columns = chunk_columns(form);
  return {col / columns * kChunkBytes + byte, col % columns < 64 ? 0 : 4};
}

// The byte among all codes.
constexpr int64_t byte_place(const DeviceMatrix& w, int64_t row, int64_t byte) {
  return chunk_place(w, row, byte / kChunkBytes) + byte % kChunkBytes;
}

// The code of a symmetric form, from the byte that holds it.
constexpr int signed_code(MatrixForm form, int byte, int shift) {
  return form_bits(form) == 8 ? (byte ^ 128) - 128 : ((byte >> shift & 15) ^ 8) - 8;
}

// One scale a row, or groups of a power of two of chunks: then products are made in integers, see digits.cuh.
constexpr bool is_coarse(const DeviceMatrix& w) {
  if (w.form != MatrixForm::kInt8 && w.form != MatrixForm::kInt4) return false;
  if (w.groups == 1) return true;
  const int chunks = w.group / chunk_columns(w.form);
  return w.group % chunk_columns(w.form) == 0 && (chunks & (chunks - 1)) == 0;
}
// Neighbouring activations that share a scale then.
constexpr int kDigitColumns = 128;

// Where activation `col` of another quantised product lies, so that lane t finds those of two steps behind
// each other, and of four neighbours the even ones first: columns 32 j + 16 s + 4 t + 2 i + h at
// 32 j + 8 t + 4 s + 2 h + i.
constexpr int lane_place(int col) {
  return col / 32 * 32 + col % 16 / 4 * 8 + col % 32 / 16 * 4 + col % 2 * 2 + col % 4 / 2;
}

// How the activations of a product lie. What a warp takes at once lies together, 512 bytes; single rows that
// blocks stage for themselves, and those of cuBLASLt, as rows.
enum class XOrder : int {
  kRows,        // fp16 [rows][stride]
  kBlocks,      // fp16 [rows / 8][stride / 32][8][32]
  kLaneBlocks,  // the same, columns in the order of lane_place()
  kDigits,  // bytes [rows / 8][stride / 64][row % 2][row % 8 / 2][high digit, low][64], see digit_place();
            // scales [stride / kDigitColumns][kMaxRows] as float
};
// How a product of several rows wants its activations.
constexpr XOrder x_order(const DeviceMatrix& w) {
  if (w.form == MatrixForm::kF16) return XOrder::kBlocks;
  return is_coarse(w) ? XOrder::kDigits : XOrder::kLaneBlocks;
}

constexpr int64_t x_place(XOrder order, int64_t stride, int row, int col) {
  if (order == XOrder::kRows) return row * stride + col;
  const int in_order = order == XOrder::kLaneBlocks ? lane_place(col) : col;
  return row / 8 * 8 * stride + in_order / 32 * 256 + row % 8 * 32 + in_order % 32;
}
// The byte of a high digit; the low one is kLowDigit further. Columns lie in the order of a chunk's bytes.
constexpr int kLowDigit = 64;
constexpr int digit_in_row(int col) {
  return col % 16 / 4 * 16 + col % 64 / 16 * 4 + col % 4;
}
constexpr int64_t digit_place(int64_t stride, int row, int col) {
  return (row / 8 * stride + col / 64 * 64) * 16 + row % 2 * 512 + row % 8 / 2 * 128 + digit_in_row(col);
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

// Bytes of a layer in the table of run_layers(), at most.
constexpr int64_t kLayerEntryBytes = 2048;

// Key biases kept out of the cache, at most this many rotation pairs a head.
constexpr int kMaxBiasPairs = 32;

}  // namespace qwen2::cuda
