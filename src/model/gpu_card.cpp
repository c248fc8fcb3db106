#include "model/gpu_card.h"

#include "base/json_fields.h"

namespace qwen2 {
namespace {

// Bytes too are read as numbers: people write 16e9.
Status read_positive(const JsonFields& fields, std::string_view name, double& target) {
  return fields.required(name, target, 1, 1e18);
}

Result<GpuCard> parse_card(const JsonFields& fields) {
  GpuCard card;
  double memory = 0, context = 0;
  QWEN2_CHECK(fields.required("name", card.name));
  card.title = card.name;
  QWEN2_CHECK(fields.optional("title", card.title));
  QWEN2_CHECK(read_positive(fields, "memory_bytes", memory));
  QWEN2_CHECK(read_positive(fields, "bandwidth_bytes_per_second", card.bandwidth));
  QWEN2_CHECK(read_positive(fields, "fp16_flops", card.fp16_flops));
  QWEN2_CHECK(read_positive(fields, "context_bytes", context));
  card.memory_bytes = static_cast<uint64_t>(memory);
  card.context_bytes = static_cast<uint64_t>(context);
  QWEN2_CHECK(fields.optional("measured", card.measured));
  return card;
}

}  // namespace

Result<std::vector<GpuCard>> read_gpu_cards(const std::filesystem::path& file) {
  QWEN2_TRY(const JsonFields root, JsonFields::read(file, size_t{1} << 20));
  std::vector<JsonFields> list{root};
  QWEN2_CHECK(root.optional("gpus", list));
  std::vector<GpuCard> cards;
  for (const JsonFields& fields : list) {
    QWEN2_TRY(GpuCard card, parse_card(fields));
    cards.push_back(std::move(card));
  }
  return cards;
}

}  // namespace qwen2
