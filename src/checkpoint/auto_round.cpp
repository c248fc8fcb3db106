// AutoRound (https://github.com/intel/auto-round) packs as AWQ or as GPTQ; "packing_format" says which, "backend"
// in older files. Its own packing stores the zero itself, but symmetric modules have been written with one less
// too; such zeros can only be those in the middle.
#include "checkpoint/quantized_reader.h"

namespace qwen2 {

ReaderResult open_auto_round_reader(const TensorTable& tensors, const JsonFields& settings) {
  std::string packing = "auto_round";
  bool sym = true;
  QWEN2_CHECK(settings.optional("backend", packing));
  QWEN2_CHECK(settings.optional("packing_format", packing));
  QWEN2_CHECK(settings.optional("sym", sym));
  const auto names = [&](std::string_view part) { return packing.find(part) != std::string::npos; };
  if (names("awq")) return open_awq_reader(tensors, settings);
  if (names("auto_gptq")) return open_gptq_reader(tensors, settings, GptqZeros::kLessOne);
  if (sym || packing == "auto_round" || names("gptqmodel"))
    return open_gptq_reader(tensors, settings, GptqZeros::kShown);
  return settings.error("packing_format",
                        fmt::format("is \"{}\" of an asymmetric model; \"auto_round\", with or without "
                                    "\":auto_gptq\", \":gptqmodel\" or \":auto_awq\", was expected",
                                    packing.substr(0, 64)),
                        ErrorKind::kUnsupported);
}

}  // namespace qwen2
