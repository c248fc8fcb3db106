#include "model/weights.h"

#include <algorithm>
#include <array>

#include "tensor/quantized_storage.h"

namespace qwen2 {
namespace {

// Hands out aligned pieces of one buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  std::byte* take(size_t bytes) {
    std::byte* place = next();
    used_ += (bytes + kArrayAlignment - 1) / kArrayAlignment * kArrayAlignment;
    return place;
  }
  void place(WeightPart& part) {
    if (part.is_quantized) {
      used_ += place_arrays(part.quantized, next());
    } else {
      part.dense.data = reinterpret_cast<uint16_t*>(take(part.dense.bytes()));
    }
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  [[nodiscard]] std::byte* next() const { return base_ == nullptr ? nullptr : base_ + used_; }

  std::byte* base_;
  size_t used_ = 0;
};

using Format = std::optional<QuantizedFormat>;

WeightPart make_part(const Format& format, int64_t first_row, int64_t rows, int64_t cols) {
  WeightPart part;
  part.first_row = first_row;
  part.is_quantized = format.has_value();
  if (format) {
    part.quantized.format = *format;
    part.quantized.rows = rows;
    part.quantized.cols = cols;
  } else {
    part.dense = {nullptr, rows, cols};
  }
  return part;
}

// All rows in bf16.
WeightMatrix expanded(const MatrixEntry& entry) {
  return {{make_part(std::nullopt, 0, entry.rows(), entry.cols)}};
}

// Neighbouring sources of one format share a part. Parts start at multiples of 64 rows; a matrix that would
// need others is expanded (published shapes do not).
Result<WeightMatrix> lay_out(const Checkpoint& checkpoint, const Precision& precision,
                             const MatrixEntry& entry) {
  WeightMatrix matrix;
  int64_t row = 0;
  for (const TensorSource& source : entry.sources) {
    QWEN2_TRY(const Format format, kept_format(checkpoint, precision, entry, source));
    const Format last = matrix.parts.empty() || !matrix.parts.back().is_quantized
                            ? Format()
                            : Format(matrix.parts.back().quantized.format);
    // Where they can, permuted ones stay apart; the reader refuses two orders in one part.
    const bool apart = format && format->permuted && row % kBlockRows == 0;
    if (!matrix.parts.empty() && format == last && !apart) {
      WeightPart& part = matrix.parts.back();
      (part.is_quantized ? part.quantized.rows : part.dense.rows) += source.rows;
    } else {
      if (row % kBlockRows != 0) return expanded(entry);
      matrix.parts.push_back(make_part(format, row, source.rows, entry.cols));
    }
    row += source.rows;
  }
  return matrix;
}

Result<Qwen2Weights> lay_out(const Checkpoint& checkpoint, const Qwen2Config& config,
                             const Precision& precision, Arena& arena) {
  Qwen2Weights w;
  w.layers.resize(static_cast<size_t>(config.layers));
  const Inventory inventory(config);
  for (const MatrixEntry& entry : inventory.matrices) {
    WeightMatrix& matrix = matrix_of(w, entry);
    QWEN2_TRY(matrix, lay_out(checkpoint, precision, entry));
    for (WeightPart& part : matrix.parts) arena.place(part);
  }
  for (const VectorEntry& entry : inventory.vectors) {
    const auto bytes = static_cast<size_t>(entry.size()) * sizeof(float);
    vector_of(w, entry) = reinterpret_cast<float*>(arena.take(bytes));
  }
  if (config.tied_head) w.head = w.embedding;
  return w;
}

// Rounds one row to the nearest codes.
void quantize_row(const float* values, const QuantizedMatrix& target, int64_t row,
                  const cpu::Kernels& kernels) {
  std::vector<int8_t> codes(static_cast<size_t>(target.format.group));
  const int offset = target.format.bits == 4 ? 8 : 0;  // 4-bit codes are stored from 0 on
  for (int64_t k = 0; k < target.cols; k += target.format.group) {
    target.set_scale_f16(
        row, k, kernels.quantize_group(values + k, target.format.group, target.format.bits, codes.data()));
    for (int64_t i = 0; i < target.format.group; ++i)
      target.set_code(row, k + i, codes[static_cast<size_t>(i)] + offset);
  }
}

Status load_matrix(const Checkpoint& checkpoint, const MatrixEntry& entry, const WeightMatrix& matrix,
                   const cpu::Kernels& kernels) {
  int64_t row = 0;
  for (const TensorSource& source : entry.sources) {
    const auto part = std::find_if(matrix.parts.rbegin(), matrix.parts.rend(),
                                   [&](const WeightPart& p) { return p.first_row <= row; });
    const int64_t first = row - part->first_row;
    row += source.rows;
    QWEN2_TRY(const Format stored, checkpoint.matrix_format(source.name, source.rows, entry.cols));
    if (part->is_quantized && stored) {
      QWEN2_CHECK(checkpoint.load_quantized(source.name, source.rows, part->quantized, first));
      continue;
    }
    QWEN2_CHECK(read_expanded(checkpoint, source.name, source.rows, entry.cols,
                              [&](int64_t own, const float* values) {
                                if (part->is_quantized) {
                                  quantize_row(values, part->quantized, first + own, kernels);
                                } else {
                                  part->dense.set_row(first + own, values);
                                }
                              }));
  }
  return {};
}

Status load_vector(const Checkpoint& checkpoint, const VectorEntry& entry, float* out) {
  for (const TensorSource& source : entry.sources) {
    QWEN2_CHECK(checkpoint.load_vector(source.name, source.rows, out));
    out += source.rows;
  }
  return {};
}

}  // namespace

size_t Qwen2Weights::bytes_per_decode_step() const {
  size_t bytes = head.bytes();
  for (const LayerWeights& layer : layers) {
    bytes += layer.qkv.bytes() + layer.attention_output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
  }
  return bytes;
}

Result<size_t> weight_bytes(const Checkpoint& checkpoint, const Qwen2Config& config,
                            const Precision& precision) {
  Arena counter(nullptr);
  QWEN2_TRY([[maybe_unused]] const Qwen2Weights weights, lay_out(checkpoint, config, precision, counter));
  return counter.used();
}

Result<Qwen2Weights> load_weights(const Checkpoint& checkpoint, const Qwen2Config& config,
                                  const Precision& precision, const cpu::Kernels& kernels) {
  if (!config.tied_head && !checkpoint.has(kHeadName)) {
    return fail(ErrorKind::kNotFound, "tensor '{}' is missing and 'tie_word_embeddings' is false", kHeadName);
  }
  QWEN2_CHECK(check_biases(checkpoint, config));
  QWEN2_TRY(const size_t bytes, weight_bytes(checkpoint, config, precision));
  QWEN2_TRY(auto storage, LargeBuffer::allocate(bytes, "the weights"));
  Arena arena(storage.data());
  QWEN2_TRY(Qwen2Weights w, lay_out(checkpoint, config, precision, arena));
  w.storage = std::move(storage);
  const Inventory inventory(config);
  for (const MatrixEntry& entry : inventory.matrices)
    QWEN2_CHECK(load_matrix(checkpoint, entry, matrix_of(w, entry), kernels));
  for (const VectorEntry& entry : inventory.vectors)
    QWEN2_CHECK(load_vector(checkpoint, entry, vector_of(w, entry)));
  return w;
}

}  // namespace qwen2
