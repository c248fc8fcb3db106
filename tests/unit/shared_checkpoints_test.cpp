// Whole models of tests/fixtures/checkpoints, by a writer that shares no code with this repository, against
// the logits of a forward pass in float64 over the values that their bytes stand for.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "backend/backend.h"
#include "base/memory.h"
#include "kernels/cpu/kernels.h"
#include "paths.h"
#include "run_backend.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

class SharedCheckpoint : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Folders, SharedCheckpoint, testing::Values("bnb4_nf4_nested", "ct_w4a16_g128"),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(SharedCheckpoint, HasTheExpectedLogits) {
  const auto folder = test::fixture_folder() / "checkpoints" / GetParam();
  const auto checkpoint = open_checkpoint(folder.string());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto text = read_text_file(folder / "expected.json");
  ASSERT_TRUE(text) << text.error().message;
  const json::value expected = json::parse(*text);
  double worst = 0;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    if (cpu::parse_isa(isa) > cpu::detect_isa()) continue;
    const auto backend = create_cpu_backend(**checkpoint, {}, {.isa = isa});
    ASSERT_TRUE(backend) << backend.error().message;
    const auto pages = test::page_table(**backend);
    for (const json::value& item : expected.at("cases").as_array()) {
      const auto prompt = json::value_to<std::vector<TokenId>>(item.at("prompt"));
      const auto logits = json::value_to<std::vector<float>>(item.at("logits"));
      const double error = test::difference(test::run(**backend, prompt, 0, pages), logits);
      EXPECT_LE(error, 1e-2) << isa << ", prompt of " << prompt.size();
      worst = std::max(worst, error);
    }
  }
  RecordProperty("largest_error", std::to_string(worst));
}

}  // namespace
}  // namespace qwen2
