#include "experiment/differences.h"

#include <array>

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr std::array<std::string_view, 11> kKeys = {
    "cpu",    "cores", "threads",  "isa",  "kernel", "gpu", "gpu_memory_bytes",
    "driver", "cuda",  "compiler", "flags"};

std::string text_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? "nothing" : json::serialize(*value);
}

}  // namespace

std::vector<Named> environment_differences(const json::object& a, const json::object& b) {
  std::vector<Named> differences;
  for (const std::string_view key : kKeys) {
    Named named{std::string(key), text_of(a, key), text_of(b, key)};
    if (named.a != named.b) differences.push_back(std::move(named));
  }
  return differences;
}

std::string describe(const std::vector<Named>& differences) {
  std::string text;
  for (const Named& d : differences)
    text += fmt::format("{}{}: {} and {}", text.empty() ? "" : "; ", d.key, d.a, d.b);
  return text;
}

}  // namespace qwen2
