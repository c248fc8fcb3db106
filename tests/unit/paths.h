// Where the tests find the models of this repository.
#pragma once

#include <filesystem>

namespace qwen2::test {

inline std::filesystem::path source_folder() {
  return QWEN2_SOURCE_DIR;
}
inline std::filesystem::path golden_folder() {
  return source_folder() / "tests/golden";
}
inline std::filesystem::path fixture_folder() {
  return source_folder() / "tests/fixtures";
}
inline std::filesystem::path demo_model() {
  return source_folder() / "models/demo";
}

}  // namespace qwen2::test
