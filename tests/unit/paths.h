// Where the tests find the models of this repository.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace qwen2::test {

// Where this was built, or what QWEN2_SOURCE_DIR says, for tests that were carried to another machine.
inline std::filesystem::path source_folder() {
  const char* carried = std::getenv("QWEN2_SOURCE_DIR");
  return carried != nullptr ? carried : QWEN2_SOURCE_DIR;
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
