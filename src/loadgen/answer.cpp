#include "loadgen/answer.h"

#include <boost/json.hpp>
#include <optional>

namespace qwen2 {
namespace {

namespace json = boost::json;

void read_count(const JsonFields& fields, std::string_view name, int64_t& count) {
  count = fields.find<int64_t>(name).value_or(count);
}

// Token counts and this project's own timings, from a usage event, a whole response or /generate's.
void read_usage(const JsonFields& root, RequestRecord& record) {
  const auto usage = root.find<JsonFields>("usage");
  const JsonFields& counts = usage ? *usage : root;
  read_count(counts, "prompt_tokens", record.prompt_tokens);
  read_count(counts, "completion_tokens", record.completion_tokens);
  const auto timings = root.find<JsonFields>("timings");
  const JsonFields& times = timings ? *timings : root;
  record.queue_seconds = times.find<double>("queue_seconds").value_or(record.queue_seconds);
  // llama.cpp counts in its timings also where the client did not ask for the usage.
  if (!usage && timings && timings->value("predicted_n") != nullptr) {
    read_count(*timings, "predicted_n", record.completion_tokens);
    record.prompt_tokens =
        timings->find<int64_t>("prompt_n").value_or(0) + timings->find<int64_t>("cache_n").value_or(0);
  }
}

struct Piece {
  std::optional<std::string_view> text;  // none: the event carries no token
  bool names_role = false;
  bool finishes = false;
};

// Models that reason put their first tokens under another name: they are tokens all the same.
std::optional<std::string_view> text_of_message(const JsonFields& message) {
  const auto content = message.find<std::string_view>("content");
  if (content && !content->empty()) return content;
  for (const char* key : {"reasoning_content", "reasoning"}) {
    const auto text = message.find<std::string_view>(key);
    if (text && !text->empty()) return text;
  }
  return content;
}

Piece find_piece(const JsonFields& root) {
  Piece piece{root.find<std::string_view>("text"), false, false};
  const auto choices = root.find<std::vector<JsonFields>>("choices");
  if (!choices || choices->empty()) return piece;
  const JsonFields& choice = choices->front();
  piece.text = choice.find<std::string_view>("text");
  piece.finishes = choice.find<std::string_view>("finish_reason").has_value();
  for (const char* key : {"delta", "message"}) {
    const auto message = choice.find<JsonFields>(key);
    if (!message) continue;
    piece.text = text_of_message(*message);
    piece.names_role = message->object().contains("role");
  }
  return piece;
}

// The error of an event or a response, in any of the shapes that servers give it; empty when it is none.
std::string error_of(const JsonFields& root) {
  if (const json::value* error = root.value("error"))
    return error->is_string() ? std::string(error->get_string()) : json::serialize(*error);
  return root.find<std::string_view>("object") == "error" ? json::serialize(root.object()) : std::string();
}

}  // namespace

void AnswerReader::add_token(std::string_view text, double now) {
  if (record_.content_times.empty()) record_.first_content = now;
  record_.last_content = now;
  record_.content_times.push_back(now);
  record_.text += text;
}

void AnswerReader::push(std::string_view bytes, double now) {
  if (!dialect_.stream) {
    pending_ += bytes;
  } else if (dialect_.kind != ServerKind::kOllama) {
    for (const std::string& data : sse_.push(bytes)) read_event(data, now);
  } else {
    pending_ += bytes;
    size_t start = 0;
    for (size_t end = pending_.find('\n'); end != std::string::npos; end = pending_.find('\n', start)) {
      if (end > start) read_event(std::string_view(pending_).substr(start, end - start), now);
      start = end + 1;
    }
    pending_.erase(0, start);
  }
}

void AnswerReader::finish() {
  if (!dialect_.stream) return read_whole();
  if (!done_) set_failure(record_, "cut_stream", "the stream ended before the answer did");
  // Without a count from the server, each event counts as the one token that it usually is.
  if (record_.failure.empty() && record_.completion_tokens < 0)
    record_.completion_tokens = static_cast<int64_t>(record_.content_times.size());
}

void AnswerReader::read_event(std::string_view data, double now) {
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  const auto root = JsonFields::parse(data, "");
  if (!root) return set_failure(record_, "bad_response", "an event is not a JSON object");
  if (std::string error = error_of(*root); !error.empty())
    return set_failure(record_, "server_error", std::move(error));
  if (dialect_.kind == ServerKind::kOllama) {
    read_ollama(*root, now);
  } else if (dialect_.native()) {
    read_tgi(*root, now);
  } else {
    read_openai(*root, now);
  }
}

void AnswerReader::read_openai(const JsonFields& root, double now) {
  read_usage(root, record_);
  const Piece piece = find_piece(root);
  if (!piece.text) return;
  // A token may complete no text (a special token, a part of a character); its event counts all the same.
  // What does not: the announcement of the role, and an end without text, which is a token's only here and
  // with vLLM.
  const bool ends_with_token = dialect_.kind == ServerKind::kQwen2 || dialect_.kind == ServerKind::kVllm;
  if (piece.text->empty() && (piece.names_role || (piece.finishes && !ends_with_token))) return;
  add_token(*piece.text, now);
}

// There is no [DONE]: the last token's event carries the whole text.
void AnswerReader::read_tgi(const JsonFields& root, double now) {
  if (const auto token = root.find<JsonFields>("token")) {
    const bool hidden = token->find<bool>("special").value_or(false);
    add_token(hidden ? "" : token->find<std::string_view>("text").value_or(""), now);
  }
  if (const auto details = root.find<JsonFields>("details")) {
    read_count(*details, "generated_tokens", record_.completion_tokens);
    read_count(*details, "input_length", record_.prompt_tokens);
  }
  if (root.find<std::string_view>("generated_text")) done_ = true;
}

// A last object without text says "done" and has the counts; prompts that were cached may not be counted.
void AnswerReader::read_ollama(const JsonFields& root, double now) {
  const auto message = root.find<JsonFields>("message");
  const JsonFields& holder = message ? *message : root;
  const bool last = root.find<bool>("done").value_or(false);
  auto text = holder.find<std::string_view>(message ? "content" : "response");
  const auto thinking = holder.find<std::string_view>("thinking");
  if (thinking && !thinking->empty()) text = thinking;
  if (text && !(last && text->empty()) && dialect_.stream) add_token(*text, now);
  if (text && !dialect_.stream) record_.text = *text;
  if (!last) return;
  done_ = true;
  read_count(root, "prompt_eval_count", record_.prompt_tokens);
  read_count(root, "eval_count", record_.completion_tokens);
}

void AnswerReader::read_whole() {
  const auto root = JsonFields::parse(pending_, "");
  if (!root) return set_failure(record_, "bad_response", "the response is not a JSON object");
  if (std::string error = error_of(*root); !error.empty())
    return set_failure(record_, "server_error", std::move(error));
  if (dialect_.kind == ServerKind::kOllama) return read_ollama(*root, 0);
  if (dialect_.native()) {
    read_tgi(*root, 0);
    record_.text = root->find<std::string_view>("generated_text").value_or(record_.text);
    return;
  }
  read_usage(*root, record_);
  if (const auto text = find_piece(*root).text) record_.text = *text;
}

}  // namespace qwen2
