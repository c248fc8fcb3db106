// Finds stop strings in a stream of text pieces, also across their borders.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qwen2 {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Text that can be shown: everything that neither is nor may become part of a stop string. Once a stop
  // string was found, `stopped()` holds, and what came before it has been returned.
  std::string push(std::string_view text);
  // What was held back, at the end of the stream.
  std::string finish();
  [[nodiscard]] bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace qwen2
