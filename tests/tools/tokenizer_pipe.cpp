// Tokenises lines of standard input, for the differential test against another implementation.
//   tokenizer_pipe FOLDER         a line is a string's bytes in hex; prints {"ids": [...], "text": decoded}
//   tokenizer_pipe FOLDER --chat  a line is a JSON array of messages; prints the prompt with and without the
//                                 opening of the next answer
#include <boost/json.hpp>
#include <cstdio>
#include <iostream>
#include <string>

#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace {

namespace json = boost::json;

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

int fail(const qwen2::Error& error) {
  std::fprintf(stderr, "%s\n", error.message.c_str());
  return 1;
}

int tokenise(const std::string& folder) {
  const auto tokenizer = qwen2::Tokenizer::load(folder);
  if (!tokenizer) return fail(tokenizer.error());
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = tokenizer->encode(from_hex(line));
    if (!ids) return fail(ids.error());
    std::cout << json::serialize(
                     json::object{{"ids", json::value_from(*ids)}, {"text", tokenizer->decode(*ids)}})
              << '\n';
  }
  return 0;
}

int render(const std::string& folder) {
  const auto chat = qwen2::ChatTemplate::load(folder);
  if (!chat) return fail(chat.error());
  for (std::string line; std::getline(std::cin, line);) {
    std::vector<qwen2::ChatMessage> messages;
    const json::value root = json::parse(line);
    for (const json::value& item : root.as_array()) {
      messages.push_back(
          {json::value_to<std::string>(item.at("role")), json::value_to<std::string>(item.at("content"))});
    }
    const auto with = chat->render(messages, true);
    const auto without = chat->render(messages, false);
    if (!with || !without) return fail(with ? without.error() : with.error());
    std::cout << json::serialize(json::object{{"with", with->text()}, {"without", without->text()}}) << '\n';
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  if (argc == 2) return tokenise(argv[1]);
  if (argc == 3 && std::string_view(argv[2]) == "--chat") return render(argv[1]);
  std::fprintf(stderr, "usage: tokenizer_pipe FOLDER [--chat]\n");
  return 2;
}
