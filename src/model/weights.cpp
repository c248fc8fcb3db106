#include "model/weights.h"

#include <algorithm>
#include <array>

#include "tensor/quantized_storage.h"

namespace qwen2 {
namespace {

// A tensor of the checkpoint, as some rows of a matrix or some elements of a vector.
struct Source {
  std::string name;
  int64_t rows;
};

struct MatrixEntry {
  WeightMatrix* target;
  std::vector<Source> sources;
  int64_t cols;
  bool is_head = false;
};

struct VectorEntry {
  float** target;
  std::vector<Source> sources;
};

// Every tensor and where it goes.
struct Inventory {
  std::vector<MatrixEntry> matrices;
  std::vector<VectorEntry> vectors;

  void add_layer(const Qwen2Config& c, int64_t index, LayerWeights& w) {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    const int64_t q = c.q_size();
    const int64_t kv = c.kv_size();
    vectors.push_back({&w.input_norm, {{prefix + "input_layernorm.weight", c.hidden_size}}});
    matrices.push_back({&w.qkv,
                        {{attention + "q_proj.weight", q},
                         {attention + "k_proj.weight", kv},
                         {attention + "v_proj.weight", kv}},
                        c.hidden_size});
    vectors.push_back(
        {&w.qkv_bias,
         {{attention + "q_proj.bias", q}, {attention + "k_proj.bias", kv}, {attention + "v_proj.bias", kv}}});
    matrices.push_back({&w.attention_output, {{attention + "o_proj.weight", c.hidden_size}}, q});
    vectors.push_back(
        {&w.post_attention_norm, {{prefix + "post_attention_layernorm.weight", c.hidden_size}}});
    matrices.push_back(
        {&w.gate_up,
         {{mlp + "gate_proj.weight", c.intermediate_size}, {mlp + "up_proj.weight", c.intermediate_size}},
         c.hidden_size});
    matrices.push_back({&w.down, {{mlp + "down_proj.weight", c.hidden_size}}, c.intermediate_size});
  }

  Inventory(const Qwen2Config& c, Qwen2Weights& w) {
    matrices.push_back({&w.embedding, {{"model.embed_tokens.weight", c.vocab_size}}, c.hidden_size, true});
    w.layers.resize(static_cast<size_t>(c.layers));
    for (int64_t i = 0; i < c.layers; ++i) add_layer(c, i, w.layers[static_cast<size_t>(i)]);
    vectors.push_back({&w.final_norm, {{"model.norm.weight", c.hidden_size}}});
    if (!c.tied_head) matrices.push_back({&w.head, {{"lm_head.weight", c.vocab_size}}, c.hidden_size, true});
  }
};

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

// The largest of the usual group sizes, up to the wanted one, that divides the columns.
int64_t group_for(int64_t cols, int64_t wanted) {
  for (const int64_t group : {128, 64, 32, 16}) {
    if (group <= wanted && cols % group == 0) return group;
  }
  return 16;  // configurations have multiples of 16
}

using Format = std::optional<QuantizedFormat>;

Result<Format> format_of(const Checkpoint& checkpoint, const Precision& p, const MatrixEntry& entry,
                         const Source& source) {
  QWEN2_TRY(const Format stored, checkpoint.matrix_format(source.name, source.rows, entry.cols));
  const int bits = entry.is_head ? p.head_bits : p.bits;
  if (bits == 0) return stored;
  if (bits == 16) return std::nullopt;
  if (stored) {
    return fail(ErrorKind::kUnsupported,
                "tensor '{}' is quantised already: {} accepts auto and bf16 for this model", source.name,
                entry.is_head ? "--head-precision" : "--precision");
  }
  const bool whole_row = entry.is_head && bits == 8;
  return QuantizedFormat{.bits = bits, .group = whole_row ? entry.cols : group_for(entry.cols, p.group)};
}

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
  int64_t rows = 0;
  for (const Source& source : entry.sources) rows += source.rows;
  return {{make_part(std::nullopt, 0, rows, entry.cols)}};
}

// Neighbouring sources of one format share a part. Parts start at multiples of 64 rows; a matrix that would
// need others is expanded (published shapes do not).
Result<WeightMatrix> lay_out(const Checkpoint& checkpoint, const Precision& precision,
                             const MatrixEntry& entry) {
  WeightMatrix matrix;
  int64_t row = 0;
  for (const Source& source : entry.sources) {
    QWEN2_TRY(const Format format, format_of(checkpoint, precision, entry, source));
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
  const Inventory inventory(config, w);
  for (const MatrixEntry& entry : inventory.matrices) {
    QWEN2_TRY(*entry.target, lay_out(checkpoint, precision, entry));
    for (WeightPart& part : entry.target->parts) arena.place(part);
  }
  for (const VectorEntry& entry : inventory.vectors) {
    int64_t size = 0;
    for (const Source& source : entry.sources) size += source.rows;
    *entry.target = reinterpret_cast<float*>(arena.take(static_cast<size_t>(size) * sizeof(float)));
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

Status load_matrix(const Checkpoint& checkpoint, const MatrixEntry& entry, const cpu::Kernels& kernels) {
  int64_t row = 0;
  for (const Source& source : entry.sources) {
    const auto part = std::find_if(entry.target->parts.rbegin(), entry.target->parts.rend(),
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

Status load_vector(const Checkpoint& checkpoint, const VectorEntry& entry) {
  float* out = *entry.target;
  for (const Source& source : entry.sources) {
    QWEN2_CHECK(checkpoint.load_vector(source.name, source.rows, out));
    out += source.rows;
  }
  return {};
}

Result<int> parse_bits(std::string_view flag, std::string_view text) {
  if (text == "auto") return 0;
  if (text == "bf16") return 16;
  if (text == "int8") return 8;
  if (text == "int4") return 4;
  return fail(ErrorKind::kInvalidArgument, "{} '{}' is not auto, bf16, int8 or int4", flag, text);
}

}  // namespace

Result<Precision> Precision::parse(std::string_view weights, std::string_view head, int64_t group) {
  Precision precision;
  QWEN2_TRY(precision.bits, parse_bits("--precision", weights));
  precision.head_bits = precision.bits == 4 ? 8 : precision.bits;
  if (!head.empty()) {
    QWEN2_TRY(precision.head_bits, parse_bits("--head-precision", head));
  }
  static constexpr std::array<int64_t, 4> kGroups{16, 32, 64, 128};
  if (std::find(kGroups.begin(), kGroups.end(), group) == kGroups.end()) {
    return fail(ErrorKind::kInvalidArgument, "--group-size {} is not 16, 32, 64 or 128", group);
  }
  precision.group = group;
  return precision;
}

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
  if (!config.tied_head && !checkpoint.has("lm_head.weight")) {
    return fail(ErrorKind::kNotFound,
                "tensor 'lm_head.weight' is missing and 'tie_word_embeddings' is false");
  }
  QWEN2_TRY(const size_t bytes, weight_bytes(checkpoint, config, precision));
  QWEN2_TRY(auto storage, LargeBuffer::allocate(bytes, "the weights"));
  Arena arena(storage.data());
  QWEN2_TRY(Qwen2Weights w, lay_out(checkpoint, config, precision, arena));
  w.storage = std::move(storage);
  const Inventory inventory(config, w);
  for (const MatrixEntry& entry : inventory.matrices) QWEN2_CHECK(load_matrix(checkpoint, entry, kernels));
  for (const VectorEntry& entry : inventory.vectors) QWEN2_CHECK(load_vector(checkpoint, entry));
  return w;
}

}  // namespace qwen2
