#include "quantize/packing.h"

#include <array>

#include "base/parallel.h"

namespace qwen2::quantize {
namespace {

std::vector<uint16_t> transposed_scales(const GroupedWeights& w, int64_t first, int64_t count) {
  std::vector<uint16_t> scales(static_cast<size_t>(w.groups() * count));
  for (int64_t g = 0; g < w.groups(); ++g) {
    for (int64_t i = 0; i < count; ++i) {
      scales[static_cast<size_t>(g * count + i)] =
          w.scales[static_cast<size_t>((first + i) * w.groups() + g)];
    }
  }
  return scales;
}

// Where AWQ's gemm version keeps the neighbouring outputs 0..7 of a word.
constexpr std::array<unsigned, 8> kAwqShift{0, 16, 4, 20, 8, 24, 12, 28};

// One word of eight outputs; `code(i)` is that of output i.
template <class F>
uint32_t awq_word(const F& code) {
  uint32_t word = 0;
  for (size_t i = 0; i < kAwqShift.size(); ++i) word |= uint32_t{code(i)} << kAwqShift[i];
  return word;
}

}  // namespace

PackedModule pack_gptq(const GroupedWeights& w, int64_t first, int64_t count) {
  const int64_t per = 32 / w.bits;
  PackedModule module;
  module.scales = transposed_scales(w, first, count);
  module.g_idx = w.group_of;
  module.qweight.resize(static_cast<size_t>(w.cols / per * count));
  parallel_items(w.cols / per, [&](int64_t block) {
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* codes = w.codes.data() + (first + i) * w.cols + block * per;
      uint32_t word = 0;
      for (int64_t j = 0; j < per; ++j) word |= uint32_t{codes[j]} << (j * w.bits);
      module.qweight[static_cast<size_t>(block * count + i)] = word;
    }
  });
  module.qzeros.resize(static_cast<size_t>(w.groups() * (count / per)));
  for (int64_t g = 0; g < w.groups(); ++g) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t zero = w.zeros[static_cast<size_t>((first + i) * w.groups() + g)] - 1U;
      module.qzeros[static_cast<size_t>(g * (count / per) + i / per)] |= zero << (i % per * w.bits);
    }
  }
  return module;
}

PackedModule pack_awq(const GroupedWeights& w, int64_t first, int64_t count) {
  const int64_t words = count / 8;
  PackedModule module;
  module.scales = transposed_scales(w, first, count);
  module.qweight.resize(static_cast<size_t>(w.cols * words));
  module.qzeros.resize(static_cast<size_t>(w.groups() * words));
  parallel_items(w.cols, [&](int64_t k) {
    for (int64_t word = 0; word < words; ++word) {
      const uint8_t* codes = w.codes.data() + (first + word * 8) * w.cols + k;
      module.qweight[static_cast<size_t>(k * words + word)] =
          awq_word([&](size_t i) { return codes[static_cast<int64_t>(i) * w.cols]; });
    }
  });
  for (int64_t g = 0; g < w.groups(); ++g) {
    for (int64_t word = 0; word < words; ++word) {
      const uint8_t* zeros = w.zeros.data() + (first + word * 8) * w.groups() + g;
      module.qzeros[static_cast<size_t>(g * words + word)] =
          awq_word([&](size_t i) { return zeros[static_cast<int64_t>(i) * w.groups()]; });
    }
  }
  return module;
}

}  // namespace qwen2::quantize
