#include "base/units.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace qwen2 {

Result<uint64_t> parse_bytes(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 11> kSuffixes{{{"", 1},
                                                                                  {"B", 1},
                                                                                  {"KiB", 1024.0},
                                                                                  {"MiB", 1048576.0},
                                                                                  {"GiB", 1073741824.0},
                                                                                  {"kB", 1e3},
                                                                                  {"KB", 1e3},
                                                                                  {"MB", 1e6},
                                                                                  {"GB", 1e9},
                                                                                  {"M", 1048576.0},
                                                                                  {"G", 1073741824.0}}};
  double number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (code == std::errc{} && number >= 0) {
    std::string_view suffix(end, static_cast<size_t>(text.data() + text.size() - end));
    if (suffix.starts_with(' ')) suffix.remove_prefix(1);
    for (const auto& [name, scale] : kSuffixes) {
      const double bytes = number * scale;
      if (suffix == name && std::isfinite(bytes) && bytes < 1e18) return static_cast<uint64_t>(bytes);
    }
  }
  return fail(ErrorKind::kInvalidArgument,
              "'{}' is not a size; expected a number with B, KiB, MiB, GiB, MB or GB", text);
}

std::string format_bytes(uint64_t bytes) {
  static constexpr std::array<std::pair<std::string_view, uint64_t>, 3> kUnits{
      {{"GiB", kGiB}, {"MiB", kMiB}, {"KiB", kKiB}}};
  for (const auto& [name, scale] : kUnits) {
    if (bytes >= scale)
      return fmt::format("{:.2f} {}", static_cast<double>(bytes) / static_cast<double>(scale), name);
  }
  return fmt::format("{} B", bytes);
}

}  // namespace qwen2
