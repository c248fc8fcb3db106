// Renders chat templates for the differential test against other implementations of Jinja. A line of standard
// input is {"template": text, "now": seconds, and every variable of the template}; a line of output is
// {"text": ..., "marks": [[begin, end], ...]}, the bytes that messages brought, or {"error": ...}.
#include <boost/json.hpp>
#include <iostream>
#include <map>
#include <string>

#include "tokenizer/jinja/template.h"

namespace {

namespace json = boost::json;
namespace jinja = qwen2::jinja;

bool is_from_request(std::string_view name) {
  return name == "messages" || name == "tools" || name == "documents";
}

qwen2::Result<qwen2::MarkedText> render(const json::object& line,
                                        std::map<std::string, qwen2::Result<jinja::Template>>& parsed) {
  const std::string source(line.at("template").as_string());
  auto found = parsed.find(source);
  if (found == parsed.end()) found = parsed.emplace(source, jinja::Template::parse(source)).first;
  const auto& known = found->second;
  if (!known) return std::unexpected(known.error());
  std::vector<std::pair<std::string, jinja::Value>> variables;
  for (const auto& [name, item] : line) {
    if (name == "template" || name == "now") continue;
    QWEN2_TRY(jinja::Value value, jinja::from_json(item, is_from_request(name)));
    variables.emplace_back(name, std::move(value));
  }
  return known->render(std::move(variables), json::value_to<std::time_t>(line.at("now")));
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  std::map<std::string, qwen2::Result<jinja::Template>> parsed;
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = render(json::parse(line).as_object(), parsed);
    json::object answer;
    if (text) {
      json::array marks;
      for (const auto& [begin, end] : text->from_messages()) marks.push_back(json::array{begin, end});
      answer["text"] = text->text();
      answer["marks"] = std::move(marks);
    } else {
      answer["error"] = text.error().message;
    }
    std::cout << json::serialize(answer) << '\n';
  }
  return 0;
}
