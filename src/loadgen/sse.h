// Server-sent events as bytes arrive. Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qwen2 {

class SseParser {
 public:
  // The data of every event that `bytes` completes.
  std::vector<std::string> push(std::string_view bytes);

 private:
  void end_line(std::vector<std::string>& events);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool after_cr_ = false;
};

}  // namespace qwen2
