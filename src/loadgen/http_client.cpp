#include "loadgen/http_client.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>

#include "base/units.h"
#include "loadgen/sse.h"

namespace qwen2 {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

std::string_view path_of(ApiFlavour flavour) {
  switch (flavour) {
    case ApiFlavour::kChat:
      return "/v1/chat/completions";
    case ApiFlavour::kGenerate:
      return "/generate";
    case ApiFlavour::kCompletions:
      break;
  }
  return "/v1/completions";
}

void set_failure(RequestRecord& record, std::string_view kind, std::string detail) {
  if (!record.failure.empty()) return;
  record.failure = kind;
  record.detail = std::move(detail);
}

void set_network_failure(RequestRecord& record, std::string_view kind, const error_code& code) {
  set_failure(record, code == beast::error::timeout ? "timeout" : kind, code.message());
}

int64_t integer_at(const json::object& object, std::string_view key, int64_t otherwise) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_int64() ? value->get_int64() : otherwise;
}

// Token counts and the server's own timings, from a usage event or a whole response.
void read_accounting(const json::object& root, RequestRecord& record) {
  const json::value* usage = root.if_contains("usage");
  const json::object& counts = usage != nullptr && usage->is_object() ? usage->get_object() : root;
  record.prompt_tokens = integer_at(counts, "prompt_tokens", record.prompt_tokens);
  record.completion_tokens = integer_at(counts, "completion_tokens", record.completion_tokens);
  const json::value* timings = root.if_contains("timings");
  const json::object& times = timings != nullptr && timings->is_object() ? timings->get_object() : root;
  if (const json::value* queue = times.if_contains("queue_seconds")) {
    json::error_code code;
    const double seconds = queue->to_number<double>(code);
    if (!code) record.queue_seconds = seconds;
  }
}

// The text of an event or a response, wherever the flavour puts it; null when there is none, or when it only
// announces the role of what follows.
const json::string* find_text(const json::object& root) {
  const json::value* text = root.if_contains("text");
  bool names_role = false;
  const json::value* choices = root.if_contains("choices");
  if (choices != nullptr && choices->is_array() && !choices->get_array().empty() &&
      choices->get_array()[0].is_object()) {
    const json::object& choice = choices->get_array()[0].get_object();
    text = choice.if_contains("text");
    for (const char* key : {"delta", "message"}) {
      const json::value* inner = choice.if_contains(key);
      if (inner == nullptr || !inner->is_object()) continue;
      text = inner->get_object().if_contains("content");
      names_role = inner->get_object().contains("role");
    }
  }
  if (text == nullptr || !text->is_string()) return nullptr;
  return names_role && text->get_string().empty() ? nullptr : &text->get_string();
}

void read_event(const std::string& data, double now, RequestRecord& record, bool& done) {
  if (data == "[DONE]") {
    done = true;
    return;
  }
  json::error_code code;
  const json::value root = json::parse(data, code);
  if (code || !root.is_object()) return set_failure(record, "bad_response", "an event is not a JSON object");
  if (const json::value* error = root.get_object().if_contains("error")) {
    return set_failure(record, "server_error", json::serialize(*error));
  }
  read_accounting(root.get_object(), record);
  // A token may complete no text (a special token, a part of a character); its event counts all the same.
  const json::string* text = find_text(root.get_object());
  if (text == nullptr) return;
  if (record.content_times.empty()) record.first_content = now;
  record.last_content = now;
  record.content_times.push_back(now);
  record.text += *text;
}

using ResponseParser = http::response_parser<http::buffer_body>;

// Reads the body piece by piece and hands each to `record` with the time of its read.
asio::awaitable<void> read_body(beast::tcp_stream& stream, beast::flat_buffer& buffer, ResponseParser& parser,
                                bool events, std::string& body, RequestRecord& record) {
  SseParser sse;
  bool done = false;
  std::array<char, 16384> piece{};
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    auto [code, size] = co_await http::async_read_some(stream, buffer, parser, kAwait);
    const double now = now_seconds();
    const std::string_view bytes(piece.data(), piece.size() - parser.get().body().size);
    if (events) {
      for (const std::string& data : sse.push(bytes)) read_event(data, now, record, done);
    } else {
      body += bytes;
    }
    if (code && code != http::error::need_buffer) {
      set_network_failure(record, "cut_stream", code);
      co_return;
    }
  }
  if (events && !done) set_failure(record, "cut_stream", "the stream ended without [DONE]");
}

void read_whole_response(const std::string& body, RequestRecord& record) {
  json::error_code code;
  const json::value root = json::parse(body, code);
  if (code || !root.is_object())
    return set_failure(record, "bad_response", "the response is not a JSON object");
  read_accounting(root.get_object(), record);
  if (const json::string* text = find_text(root.get_object())) record.text = *text;
}

void read_error_status(int status, const std::string& body, RequestRecord& record) {
  const std::string_view kind = status == 429 ? "http_429" : status >= 500 ? "http_5xx" : "http_4xx";
  set_failure(record, kind, fmt::format("HTTP {}: {}", status, body.substr(0, 300)));
}

}  // namespace

Result<Url> parse_url(std::string_view text) {
  static constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) {
    return fail(ErrorKind::kInvalidArgument, "--url '{}' must start with http:// (TLS is not supported)",
                text);
  }
  const std::string_view rest = text.substr(kScheme.size());
  const size_t slash = rest.find('/');
  std::string_view path = slash == std::string_view::npos ? std::string_view() : rest.substr(slash);
  const std::string_view authority = rest.substr(0, slash);
  while (path.ends_with('/')) path.remove_suffix(1);
  if (path.ends_with("/v1")) path.remove_suffix(3);
  const size_t colon = authority.rfind(':');
  Url url{std::string(authority.substr(0, colon)),
          colon == std::string_view::npos ? "80" : std::string(authority.substr(colon + 1)),
          std::string(path)};
  if (url.host.starts_with('[') && url.host.ends_with(']'))
    url.host = url.host.substr(1, url.host.size() - 2);
  if (url.host.empty() || url.port.empty()) {
    return fail(ErrorKind::kInvalidArgument, "--url '{}' is not of the form http://host:port", text);
  }
  return url;
}

asio::awaitable<void> send_request(HttpCall call, RequestRecord& record) {
  const asio::any_io_executor executor = co_await asio::this_coro::executor;
  beast::tcp_stream stream(executor);
  stream.expires_after(std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(call.timeout_seconds)));
  record.sent = now_seconds();
  tcp::resolver resolver(executor);
  auto [resolve_code, endpoints] = co_await resolver.async_resolve(call.url.host, call.url.port, kAwait);
  error_code code = resolve_code;
  if (!code) {
    auto [connect_code, endpoint] = co_await stream.async_connect(endpoints, kAwait);
    code = connect_code;
  }
  if (code) {
    set_network_failure(record, "connect", code);
    record.end = now_seconds();
    co_return;
  }
  stream.socket().set_option(tcp::no_delay(true), code);
  http::request<http::string_body> request(http::verb::post,
                                           call.url.prefix + std::string(path_of(call.flavour)), 11);
  request.set(http::field::host, call.url.host + ":" + call.url.port);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::accept, call.stream ? "text/event-stream" : "application/json");
  request.set(http::field::connection, "close");
  request.body() = std::move(call.body);
  request.prepare_payload();
  record.sent = now_seconds();
  auto [write_code, written] = co_await http::async_write(stream, request, kAwait);
  beast::flat_buffer buffer;
  ResponseParser parser;
  parser.body_limit(boost::none);
  code = write_code;
  if (!code) {
    auto [read_code, size] = co_await http::async_read_header(stream, buffer, parser, kAwait);
    code = read_code;
  }
  if (code) {
    set_network_failure(record, "cut_stream", code);
    record.end = now_seconds();
    co_return;
  }
  record.status = parser.get().result_int();
  std::string body;
  const bool events = call.stream && record.status == 200;
  co_await read_body(stream, buffer, parser, events, body, record);
  record.end = now_seconds();
  if (record.status != 200) {
    read_error_status(record.status, body, record);
  } else if (!events && record.failure.empty()) {
    read_whole_response(body, record);
  }
}

Result<std::string> http_get(const Url& url, const std::string& path, double timeout_seconds) {
  asio::io_context io;
  beast::tcp_stream stream(io);
  http::request<http::empty_body> request(http::verb::get, url.prefix + path, 11);
  request.set(http::field::host, url.host + ":" + url.port);
  http::response<http::string_body> response;
  error_code result = asio::error::timed_out;
  const auto fetch = [](beast::tcp_stream& s, const Url& to, http::request<http::empty_body>& ask,
                        http::response<http::string_body>& answer, error_code& out) -> asio::awaitable<void> {
    tcp::resolver resolver(s.get_executor());
    auto [resolved, endpoints] = co_await resolver.async_resolve(to.host, to.port, kAwait);
    out = resolved;
    if (out) co_return;
    auto [connected, endpoint] = co_await s.async_connect(endpoints, kAwait);
    out = connected;
    if (out) co_return;
    auto [sent, count] = co_await http::async_write(s, ask, kAwait);
    out = sent;
    if (out) co_return;
    beast::flat_buffer buffer;
    auto [read, size] = co_await http::async_read(s, buffer, answer, kAwait);
    out = read;
  };
  stream.expires_after(std::chrono::milliseconds(static_cast<int64_t>(timeout_seconds * 1000)));
  asio::co_spawn(io, fetch(stream, url, request, response, result), asio::detached);
  io.run();
  if (result) {
    return fail(ErrorKind::kIo, "cannot reach http://{}:{}{}: {}", url.host, url.port, path,
                result.message());
  }
  if (response.result_int() != 200) {
    return fail(ErrorKind::kIo, "http://{}:{}{} answered {}", url.host, url.port, path,
                response.result_int());
  }
  return response.body();
}

}  // namespace qwen2
