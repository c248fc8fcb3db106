// Megabytes of English a second on one core.
//   build/release/tokenizer_benchmark TOKENIZER_FOLDER TEXT_FILE...
#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/memory.h"
#include "base/units.h"
#include "tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  using namespace qwen2;
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_benchmark TOKENIZER_FOLDER TEXT_FILE...\n");
    return 2;
  }
  const auto tokenizer = Tokenizer::load(argv[1]);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message.c_str());
    return 1;
  }
  std::string text;
  for (int i = 2; i < argc; ++i) {
    const auto file = read_text_file(argv[i]);
    if (!file) {
      std::fprintf(stderr, "%s\n", file.error().message.c_str());
      return 1;
    }
    text += *file;
  }
  std::vector<double> rates;
  size_t tokens = 0;
  for (int run = 0; run < 9; ++run) {
    const double start = now_seconds();
    const auto ids = tokenizer->encode(text);
    rates.push_back(static_cast<double>(text.size()) / (now_seconds() - start) / 1e6);
    tokens = ids ? ids->size() : 0;
  }
  std::sort(rates.begin(), rates.end());
  std::printf("%zu bytes, %zu tokens: median %.1f MB/s [%.1f, %.1f] of %zu runs\n", text.size(), tokens,
              rates[rates.size() / 2], rates.front(), rates.back(), rates.size());
  return 0;
}
