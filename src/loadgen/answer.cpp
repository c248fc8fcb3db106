#include "loadgen/answer.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

int64_t integer_at(const json::object& object, std::string_view key, int64_t otherwise) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : otherwise;
}

const json::object* object_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_object();
}

const json::string* string_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr ? nullptr : value->if_string();
}

// Token counts and this project's own timings, from a usage event, a whole response or /generate's.
void read_usage(const json::object& root, RequestRecord& record) {
  const json::object* usage = object_at(root, "usage");
  const json::object& counts = usage != nullptr ? *usage : root;
  record.prompt_tokens = integer_at(counts, "prompt_tokens", record.prompt_tokens);
  record.completion_tokens = integer_at(counts, "completion_tokens", record.completion_tokens);
  const json::object* timings = object_at(root, "timings");
  const json::object& times = timings != nullptr ? *timings : root;
  if (const json::value* queue = times.if_contains("queue_seconds")) {
    json::error_code code;
    const double seconds = queue->to_number<double>(code);
    if (!code) record.queue_seconds = seconds;
  }
  // llama.cpp counts in its timings also where the client did not ask for the usage.
  if (usage == nullptr && timings != nullptr && timings->contains("predicted_n")) {
    record.completion_tokens = integer_at(*timings, "predicted_n", record.completion_tokens);
    record.prompt_tokens = integer_at(*timings, "prompt_n", 0) + integer_at(*timings, "cache_n", 0);
  }
}

struct Piece {
  const json::string* text = nullptr;  // null: the event carries no token
  bool names_role = false;
  bool finishes = false;
};

// Models that reason put their first tokens under another name: they are tokens all the same.
const json::string* text_of_message(const json::object& message) {
  const json::string* content = string_at(message, "content");
  if (content != nullptr && !content->empty()) return content;
  for (const char* key : {"reasoning_content", "reasoning"}) {
    const json::string* text = string_at(message, key);
    if (text != nullptr && !text->empty()) return text;
  }
  return content;
}

Piece find_piece(const json::object& root) {
  Piece piece{string_at(root, "text"), false, false};
  const json::value* choices = root.if_contains("choices");
  const json::array* list = choices == nullptr ? nullptr : choices->if_array();
  const json::object* choice = list == nullptr || list->empty() ? nullptr : list->front().if_object();
  if (choice == nullptr) return piece;
  piece.text = string_at(*choice, "text");
  piece.finishes = string_at(*choice, "finish_reason") != nullptr;
  for (const char* key : {"delta", "message"}) {
    const json::object* message = object_at(*choice, key);
    if (message == nullptr) continue;
    piece.text = text_of_message(*message);
    piece.names_role = message->contains("role");
  }
  return piece;
}

// The error of an event or a response, in any of the shapes that servers give it; empty when it is none.
std::string error_of(const json::object& root) {
  if (const json::value* error = root.if_contains("error"); error != nullptr && !error->is_null())
    return error->is_string() ? std::string(error->get_string()) : json::serialize(*error);
  const json::string* object = string_at(root, "object");
  return object != nullptr && *object == "error" ? json::serialize(root) : std::string();
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
  json::error_code code;
  const json::value root = json::parse(data, code);
  if (code || !root.is_object()) return set_failure(record_, "bad_response", "an event is not a JSON object");
  const json::object& object = root.get_object();
  if (std::string error = error_of(object); !error.empty())
    return set_failure(record_, "server_error", std::move(error));
  if (dialect_.kind == ServerKind::kOllama) {
    read_ollama(object, now);
  } else if (dialect_.native()) {
    read_tgi(object, now);
  } else {
    read_openai(object, now);
  }
}

void AnswerReader::read_openai(const json::object& root, double now) {
  read_usage(root, record_);
  const Piece piece = find_piece(root);
  if (piece.text == nullptr) return;
  // A token may complete no text (a special token, a part of a character); its event counts all the same.
  // What does not: the announcement of the role, and an end without text, which is a token's only here and
  // with vLLM.
  const bool ends_with_token = dialect_.kind == ServerKind::kQwen2 || dialect_.kind == ServerKind::kVllm;
  if (piece.text->empty() && (piece.names_role || (piece.finishes && !ends_with_token))) return;
  add_token(*piece.text, now);
}

// There is no [DONE]: the last token's event carries the whole text.
void AnswerReader::read_tgi(const json::object& root, double now) {
  if (const json::object* token = object_at(root, "token")) {
    const json::string* text = string_at(*token, "text");
    const json::value* special = token->if_contains("special");
    const bool hidden = special != nullptr && special->is_bool() && special->get_bool();
    add_token(text == nullptr || hidden ? std::string_view() : std::string_view(*text), now);
  }
  if (const json::object* details = object_at(root, "details")) {
    record_.completion_tokens = integer_at(*details, "generated_tokens", record_.completion_tokens);
    record_.prompt_tokens = integer_at(*details, "input_length", record_.prompt_tokens);
  }
  if (string_at(root, "generated_text") != nullptr) done_ = true;
}

// A last object without text says "done" and has the counts; prompts that were cached may not be counted.
void AnswerReader::read_ollama(const json::object& root, double now) {
  const json::object* message = object_at(root, "message");
  const json::object& holder = message != nullptr ? *message : root;
  const json::value* done = root.if_contains("done");
  const bool last = done != nullptr && done->is_bool() && done->get_bool();
  const json::string* text = string_at(holder, message != nullptr ? "content" : "response");
  const json::string* thinking = string_at(holder, "thinking");
  if (thinking != nullptr && !thinking->empty()) text = thinking;
  if (text != nullptr && !(last && text->empty()) && dialect_.stream) add_token(*text, now);
  if (text != nullptr && !dialect_.stream) record_.text = *text;
  if (!last) return;
  done_ = true;
  record_.prompt_tokens = integer_at(root, "prompt_eval_count", record_.prompt_tokens);
  record_.completion_tokens = integer_at(root, "eval_count", record_.completion_tokens);
}

void AnswerReader::read_whole() {
  json::error_code code;
  const json::value root = json::parse(pending_, code);
  if (code || !root.is_object())
    return set_failure(record_, "bad_response", "the response is not a JSON object");
  const json::object& object = root.get_object();
  if (std::string error = error_of(object); !error.empty())
    return set_failure(record_, "server_error", std::move(error));
  if (dialect_.kind == ServerKind::kOllama) return read_ollama(object, 0);
  if (dialect_.native()) {
    read_tgi(object, 0);
    if (const json::string* text = string_at(object, "generated_text")) record_.text = *text;
    return;
  }
  read_usage(object, record_);
  if (const json::string* text = find_piece(object).text) record_.text = *text;
}

}  // namespace qwen2
