#include "loadgen/sse.h"

namespace qwen2 {

std::vector<std::string> SseParser::push(std::string_view bytes) {
  std::vector<std::string> events;
  for (const char c : bytes) {
    if (c == '\n' && after_cr_) {  // the second half of a CR LF
      after_cr_ = false;
      continue;
    }
    after_cr_ = c == '\r';
    if (c == '\n' || c == '\r') {
      end_line(events);
    } else {
      line_ += c;
    }
  }
  return events;
}

void SseParser::end_line(std::vector<std::string>& events) {
  if (line_.empty()) {
    if (has_data_) events.push_back(std::move(data_));
    data_.clear();
    has_data_ = false;
    return;
  }
  std::string_view value = line_;
  const bool is_data = value == "data" || value.starts_with("data:");
  if (is_data) {
    value.remove_prefix(std::min<size_t>(5, value.size()));
    if (value.starts_with(' ')) value.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += value;
    has_data_ = true;
  }
  // llama.cpp before 2025 names its errors by the field instead of inside of the data.
  if (line_.starts_with("error:")) events.push_back("{\"error\":" + line_.substr(6) + "}");
  line_.clear();
}

}  // namespace qwen2
