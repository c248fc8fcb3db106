#include "checkpoint/quantized_blocks.h"

namespace qwen2 {
namespace {

// A 32-bit word a row: its low half holds the even columns, its high half the odd ones.
void store_nibbles(uint8_t* out, int64_t count, const EightColumns& codes) {
  for (int64_t i = 0; i < count; ++i) {
    const auto row = static_cast<size_t>(i);
    uint32_t word = 0;
    for (size_t pair = 0; pair < 4; ++pair) {
      word |= static_cast<uint32_t>(codes[2 * pair][row]) << (4 * pair);
      word |= static_cast<uint32_t>(codes[2 * pair + 1][row]) << (16 + 4 * pair);
    }
    std::memcpy(out + 4 * row, &word, sizeof word);
  }
}

}  // namespace

void store_codes(const QuantizedMatrix& target, const BlockRows& rows, int64_t col,
                 const EightColumns& codes) {
  uint8_t* block = target.codes + static_cast<size_t>(rows.block) * target.block_code_bytes();
  if (target.format.bits == 4) {
    store_nibbles(block + col / 8 * 4 * kBlockRows + 4 * rows.lane, rows.count, codes);
    return;
  }
  for (size_t pair = 0; pair < 4; ++pair) {
    uint8_t* out = block + (col / 2 + static_cast<int64_t>(pair)) * 2 * kBlockRows + 2 * rows.lane;
    for (size_t i = 0; i < static_cast<size_t>(rows.count); ++i) {
      out[2 * i] = codes[2 * pair][i];
      out[2 * i + 1] = codes[2 * pair + 1][i];
    }
  }
}

ScaleForm scale_form(const FloatTensor& scales) {
  return scales.type() == DType::kF16 ? ScaleForm::kF16 : ScaleForm::kF32;
}

void copy_scales(const QuantizedMatrix& target, const BlockRows& rows, const FloatTensor& scales,
                 int64_t source_rows) {
  if (target.format.scale == ScaleForm::kF32) {
    copy_float_scales(target, rows,
                      [&](int64_t group, int64_t row) { return scales.at(group * source_rows + row); });
    return;
  }
  for (int64_t group = 0; group < target.groups(); ++group) {
    const size_t place = target.table_index(rows.block * kBlockRows + rows.lane, group * target.format.group,
                                            target.format.group);
    const auto source = static_cast<size_t>(group * source_rows + rows.first);
    std::memcpy(target.scales + place * 2, scales.raw().bytes.data() + source * 2,
                static_cast<size_t>(rows.count) * 2);
  }
}

Status check_format(std::string_view module, const QuantizedMatrix& target, const QuantizedFormat& format) {
  if (target.format == format) return {};
  return fail(ErrorKind::kInternal, "module '{}' has another format than the matrix that it is loaded into",
              module);
}

}  // namespace qwen2
