#include "loadgen/http_client.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <charconv>

#include "base/await.h"
#include "base/units.h"
#include "loadgen/answer.h"

namespace qwen2 {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

void set_network_failure(RequestRecord& record, std::string_view kind, const error_code& code) {
  set_failure(record, code == beast::error::timeout ? "timeout" : kind, code.message());
}

using ResponseParser = http::response_parser<http::buffer_body>;

// Reads the body piece by piece and hands each to `answer` with the time of its read; without one, to `body`.
asio::awaitable<void> read_body(beast::tcp_stream& stream, beast::flat_buffer& buffer, ResponseParser& parser,
                                AnswerReader* answer, std::string& body, RequestRecord& record) {
  std::array<char, 16384> piece{};
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    auto [code, size] = co_await http::async_read_some(stream, buffer, parser, kAwait);
    const double now = now_seconds();
    const std::string_view bytes(piece.data(), piece.size() - parser.get().body().size);
    if (answer != nullptr) {
      answer->push(bytes, now);
    } else {
      body += bytes;
    }
    if (code && code != http::error::need_buffer) {
      set_network_failure(record, "cut_stream", code);
      co_return;
    }
  }
  if (answer != nullptr) answer->finish();
}

http::request<http::string_body> make_request(HttpCall& call) {
  http::request<http::string_body> request(http::verb::post,
                                           call.url.prefix + std::string(call.dialect.path()), 11);
  request.set(http::field::host, call.url.host + ":" + call.url.port);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::accept, call.dialect.stream && call.dialect.kind != ServerKind::kOllama
                                       ? "text/event-stream"
                                       : "application/json");
  request.set(http::field::connection, "close");
  request.body() = std::move(call.body);
  request.prepare_payload();
  return request;
}

// An address needs no resolver, which would be a thread's round trip for every request.
asio::awaitable<error_code> connect(beast::tcp_stream& stream, const Url& url) {
  error_code code;
  const auto address = asio::ip::make_address(url.host, code);
  uint16_t port = 0;
  const auto [end, bad] = std::from_chars(url.port.data(), url.port.data() + url.port.size(), port);
  if (!code && bad == std::errc{} && end == url.port.data() + url.port.size()) {
    auto [connect_code] = co_await stream.async_connect(tcp::endpoint(address, port), kAwait);
    co_return connect_code;
  }
  tcp::resolver resolver(stream.get_executor());
  auto [resolve_code, endpoints] = co_await resolver.async_resolve(url.host, url.port, kAwait);
  if (resolve_code) co_return resolve_code;
  auto [connect_code, endpoint] = co_await stream.async_connect(endpoints, kAwait);
  co_return connect_code;
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
  error_code code = co_await connect(stream, call.url);
  if (code) {
    set_network_failure(record, "connect", code);
    record.end = now_seconds();
    co_return;
  }
  stream.socket().set_option(tcp::no_delay(true), code);
  const http::request<http::string_body> request = make_request(call);
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
  AnswerReader answer(call.dialect, record);
  co_await read_body(stream, buffer, parser, record.status == 200 ? &answer : nullptr, body, record);
  record.end = now_seconds();
  if (record.status != 200) read_error_status(record.status, body, record);
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
    out = co_await connect(s, to);
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
