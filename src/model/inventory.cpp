#include "model/inventory.h"

#include <numeric>

namespace qwen2 {
namespace {

int64_t sum_rows(const std::vector<TensorSource>& sources) {
  return std::accumulate(sources.begin(), sources.end(), int64_t{0},
                         [](int64_t sum, const TensorSource& source) { return sum + source.rows; });
}

// The largest of the usual group sizes, up to the wanted one, that divides the columns.
int64_t group_for(int64_t cols, int64_t wanted) {
  for (const int64_t group : {128, 64, 32, 16}) {
    if (group <= wanted && cols % group == 0) return group;
  }
  return 16;  // configurations have multiples of 16
}

Result<int> parse_bits(std::string_view flag, std::string_view text) {
  if (text == "auto") return 0;
  if (text == "fp16" || text == "bf16") return 16;
  if (text == "int8") return 8;
  if (text == "int4") return 4;
  return fail(ErrorKind::kInvalidArgument, "{} '{}' is not auto, fp16, bf16, int8 or int4", flag, text);
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

int64_t MatrixEntry::rows() const {
  return sum_rows(sources);
}

int64_t VectorEntry::size() const {
  return sum_rows(sources);
}

Inventory::Inventory(const Qwen2Config& config) {
  for (const ModelTensor& tensor : model_tensors(config)) {
    const bool first = tensor.first_row == 0;
    const int64_t layer = tensor.layer.value_or(0);
    if (const auto* role = std::get_if<MatrixRole>(&tensor.role)) {
      if (first) matrices.push_back({*role, layer, {}, tensor.cols});
      matrices.back().sources.push_back({tensor.name, tensor.rows});
    } else {
      if (first) vectors.push_back({std::get<VectorRole>(tensor.role), layer, {}});
      vectors.back().sources.push_back({tensor.name, tensor.rows});
    }
  }
}

Result<std::optional<QuantizedFormat>> kept_format(const Checkpoint& checkpoint, const Precision& p,
                                                   const MatrixEntry& entry, const TensorSource& source) {
  QWEN2_TRY(const auto stored, checkpoint.matrix_format(source.name, source.rows, entry.cols));
  const int bits = entry.is_head() ? p.head_bits : p.bits;
  if (bits == 0) return stored;
  if (bits == 16) return std::nullopt;
  if (stored) {
    return fail(ErrorKind::kUnsupported,
                "tensor '{}' is quantised already: {} accepts auto and 16 bits (fp16, bf16) for this model",
                source.name, entry.is_head() ? "--head-precision" : "--precision");
  }
  const bool whole_row = entry.is_head() && bits == 8;
  return QuantizedFormat{.bits = bits, .group = whole_row ? entry.cols : group_for(entry.cols, p.group)};
}

}  // namespace qwen2
