#include "server/http_server.h"

#include <spdlog/spdlog.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <csignal>
#include <deque>
#include <set>

#include "base/await.h"
#include "base/machine.h"
#include "base/units.h"

namespace qwen2 {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using boost::system::error_code;
using tcp = asio::ip::tcp;

constexpr uint64_t kMaxBodyBytes = 16 * kMiB;
constexpr uint32_t kMaxHeaderBytes = 64 * 1024;
constexpr size_t kMaxEarlyBytes = 64 * 1024;  // of a next request sent before the answer to this one
constexpr auto kDiscardTimeout = std::chrono::seconds(5);
constexpr auto kIdleTimeout = std::chrono::seconds(75);
constexpr auto kWriteTimeout = std::chrono::seconds(60);  // a client that reads nothing for so long is gone

using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

// Token events on their way from the engine's thread to a connection's coroutine. Only the io thread touches
// the members; the engine's thread posts.
struct Mailbox {
  explicit Mailbox(const asio::any_io_executor& executor)
      : timer(executor, asio::steady_timer::time_point::max()) {}

  void deliver(TokenEvent event) {
    events.push_back(std::move(event));
    timer.cancel();
  }

  std::deque<TokenEvent> events;
  asio::steady_timer timer;  // never fires: cancelling it wakes the reader
};

asio::awaitable<TokenEvent> next_event(std::shared_ptr<Mailbox> mailbox) {
  while (mailbox->events.empty()) co_await mailbox->timer.async_wait(kAwait);
  TokenEvent event = std::move(mailbox->events.front());
  mailbox->events.pop_front();
  co_return event;
}

// Watches a connection while its request waits for an answer: when the peer closes it (or half of it), the
// request is cancelled. What the peer sends too early is kept for the next request.
struct Watch {
  Watch(std::shared_ptr<beast::tcp_stream> stream_, std::shared_ptr<RequestHandle> handle_)
      : stream(std::move(stream_)),
        handle(std::move(handle_)),
        ended_timer(stream->get_executor(), asio::steady_timer::time_point::max()) {}

  std::shared_ptr<beast::tcp_stream> stream;
  std::shared_ptr<RequestHandle> handle;
  beast::flat_buffer early;
  bool ended = false;
  asio::steady_timer ended_timer;
};

asio::awaitable<void> watch_peer(std::shared_ptr<Watch> watch) {
  while (watch->early.size() < kMaxEarlyBytes) {
    auto [code, size] = co_await watch->stream->socket().async_read_some(watch->early.prepare(4096), kAwait);
    watch->early.commit(size);
    if (!code) continue;
    if (code != asio::error::operation_aborted) watch->handle->cancel();
    break;
  }
  watch->ended = true;
  watch->ended_timer.cancel();
}

// Ends the watch and moves what it has read behind `buffer`'s contents.
asio::awaitable<void> end_watch(std::shared_ptr<Watch> watch, beast::flat_buffer& buffer) {
  error_code ignored;
  if (!watch->ended) watch->stream->socket().cancel(ignored);
  while (!watch->ended) co_await watch->ended_timer.async_wait(kAwait);
  buffer.commit(asio::buffer_copy(buffer.prepare(watch->early.size()), watch->early.data()));
}

std::string sse(std::string_view data) {
  return fmt::format("data: {}\n\n", data);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(Engine& engine, ServedModel model, const ServerOptions& options)
      : engine_(engine), model_(std::move(model)), options_(options), acceptor_(io_), signals_(io_) {}

  Status listen() {
    error_code code;
    const auto address = asio::ip::make_address(options_.host, code);
    if (code) return fail(ErrorKind::kInvalidArgument, "--host '{}' is not an IP address", options_.host);
    const tcp::endpoint endpoint(address, options_.port);
    acceptor_.open(endpoint.protocol(), code);
    if (!code) acceptor_.set_option(tcp::acceptor::reuse_address(true), code);
    if (!code) acceptor_.bind(endpoint, code);
    if (!code) acceptor_.listen(1024, code);
    if (code)
      return fail(ErrorKind::kIo, "cannot listen on {}:{}: {}", options_.host, options_.port, code.message());
    return {};
  }

  [[nodiscard]] uint16_t port() const { return acceptor_.local_endpoint().port(); }

  void run() {
    signals_.add(SIGTERM);
    signals_.add(SIGINT);
    asio::co_spawn(io_, handle_signals(), asio::detached);
    asio::co_spawn(io_, accept_loop(), asio::detached);
    io_.run();
  }

 private:
  struct Connection {
    std::shared_ptr<beast::tcp_stream> stream;
    beast::flat_buffer buffer;
    bool idle = true;  // between two requests
  };

  asio::awaitable<void> handle_signals() {
    auto [code, signal] = co_await signals_.async_wait(kAwait);
    if (code) co_return;
    spdlog::info("shutting down: running requests end, new ones are refused");
    closing_ = true;
    acceptor_.close();
    engine_.begin_shutdown();
    for (const auto& connection : connections_) {
      if (connection->idle) connection->stream->close();
    }
    if (connections_.empty()) co_return;
    auto [again, second] = co_await signals_.async_wait(kAwait);
    if (!again) engine_.abort();
  }

  asio::awaitable<void> accept_loop() {
    while (acceptor_.is_open()) {
      auto [code, socket] = co_await acceptor_.async_accept(kAwait);
      if (code == asio::error::operation_aborted || !acceptor_.is_open()) break;
      if (code) {  // out of file descriptors, say: let some connections end
        spdlog::warn("accept: {}", code.message());
        asio::steady_timer pause(io_, std::chrono::milliseconds(50));
        co_await pause.async_wait(kAwait);
        continue;
      }
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      auto connection = std::make_shared<Connection>();
      connection->stream = std::make_shared<beast::tcp_stream>(std::move(socket));
      asio::co_spawn(io_, serve(std::move(connection)), asio::detached);
    }
  }

  asio::awaitable<void> serve(std::shared_ptr<Connection> connection) {
    connections_.insert(connection);
    bool open = true;
    while (open && !closing_) {
      http::request_parser<http::string_body> parser;
      parser.body_limit(kMaxBodyBytes);
      parser.header_limit(kMaxHeaderBytes);
      connection->idle = connection->buffer.size() == 0;
      connection->stream->expires_after(kIdleTimeout);
      const error_code code = co_await read_request(*connection, parser);
      connection->idle = false;
      if (code) {
        if (const auto error = describe_read_error(code)) {
          co_await respond(*connection, error_response(*error, 11, false));
          co_await discard_input(*connection);
        }
        break;
      }
      open = co_await handle(connection, parser.release());
    }
    error_code ignored;
    connection->stream->socket().shutdown(tcp::socket::shutdown_send, ignored);
    connection->stream->close();
    connections_.erase(connection);
    if (closing_ && connections_.empty()) signals_.cancel();
  }

  static asio::awaitable<error_code> read_request(Connection& connection,
                                                  http::request_parser<http::string_body>& parser) {
    const auto [code, size] =
        co_await http::async_read_header(*connection.stream, connection.buffer, parser, kAwait);
    if (code) co_return code;
    if (beast::iequals(parser.get()[http::field::expect], "100-continue")) {
      static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
      auto [failed, written] =
          co_await asio::async_write(*connection.stream, asio::buffer(kContinue), kAwait);
      if (failed) co_return failed;
    }
    const auto [failed, rest] =
        co_await http::async_read(*connection.stream, connection.buffer, parser, kAwait);
    co_return failed;
  }

  // Reads and drops what the peer is still sending, for a while: closing at once would reset the connection
  // and take the answer with it.
  static asio::awaitable<void> discard_input(Connection& connection) {
    error_code code;
    connection.stream->socket().shutdown(tcp::socket::shutdown_send, code);
    connection.stream->expires_after(kDiscardTimeout);
    while (!code) {
      connection.buffer.clear();
      auto [failed, size] =
          co_await connection.stream->async_read_some(connection.buffer.prepare(65536), kAwait);
      code = failed;
    }
  }

  // What to answer to a request that could not be read; nothing when the peer is gone.
  static std::optional<HttpError> describe_read_error(const error_code& code) {
    if (code == http::error::end_of_stream || code == http::error::partial_message) return std::nullopt;
    HttpError error;
    if (code == http::error::body_limit) {
      error.status = 413;
      error.message = fmt::format("the body is too large: at most {} bytes are read", kMaxBodyBytes);
    } else if (code == http::error::header_limit || code == http::error::buffer_overflow) {
      error.status = 431;
      error.message = fmt::format("the header is too large: at most {} bytes are read", kMaxHeaderBytes);
    } else if (code.category() == make_error_code(http::error::bad_method).category()) {
      error.message = "the request is not valid HTTP: " + code.message();
    } else {
      return std::nullopt;
    }
    return error;
  }

  // Answers one request; false when the connection is to be closed.
  asio::awaitable<bool> handle(std::shared_ptr<Connection> connection, Request request) {
    const std::string_view path = std::string_view(request.target()).substr(0, request.target().find('?'));
    const bool get = request.method() == http::verb::get || request.method() == http::verb::head;
    const bool post = request.method() == http::verb::post;
    if (path == "/v1/chat/completions" && post)
      co_return co_await generate(connection, std::move(request), Endpoint::kChat);
    if (path == "/v1/completions" && post) {
      co_return co_await generate(connection, std::move(request), Endpoint::kCompletions);
    }
    if (path == "/generate" && post)
      co_return co_await generate(connection, std::move(request), Endpoint::kGenerate);
    if (get) {
      if (auto body = get_body(path)) {
        const bool healthy = path != "/health" || !closing_;
        co_return co_await respond(*connection,
                                   make_response(healthy ? 200 : 503, std::move(*body), request));
      }
    }
    HttpError error;
    error.status = is_known(path) ? 405 : 404;
    error.message = is_known(path) ? fmt::format("{} does not take the method {}", path,
                                                 std::string(request.method_string()))
                                   : fmt::format("there is nothing at {}", path);
    Response response = error_response(error, request.version(), request.keep_alive());
    if (request.method() == http::verb::head) response.body().clear();
    if (error.status == 405) response.set(http::field::allow, is_post(path) ? "POST" : "GET, HEAD");
    co_return co_await respond(*connection, std::move(response));
  }

  static bool is_post(std::string_view path) {
    return path == "/v1/chat/completions" || path == "/v1/completions" || path == "/generate";
  }
  static bool is_known(std::string_view path) {
    return is_post(path) || path == "/health" || path == "/v1/models" || path == "/stats";
  }

  [[nodiscard]] std::optional<std::string> get_body(std::string_view path) const {
    if (path == "/health")
      return json::serialize(json::object{{"status", closing_ ? "shutting down" : "ok"}});
    if (path == "/v1/models") {
      const json::object model{{"id", model_.name},
                               {"object", "model"},
                               {"created", 0},
                               {"owned_by", "qwen2"},
                               {"max_model_len", model_.max_model_len}};
      return json::serialize(json::object{{"object", "list"}, {"data", json::array{model}}});
    }
    if (path == "/stats") return json::serialize(stats());
    return std::nullopt;
  }

  [[nodiscard]] json::object stats() const {
    const EngineStats s = engine_.stats();
    const auto device = engine_.backend().device_memory();
    return {{"running", s.running},
            {"waiting", s.waiting},
            {"finished", s.finished},
            {"cancelled", s.cancelled},
            {"rejected", s.rejected},
            {"prompt_tokens", s.prompt_tokens},
            {"generated_tokens", s.generated_tokens},
            {"steps", s.steps},
            {"kv_pages", s.kv_pages},
            {"kv_pages_free", s.kv_pages_free},
            {"resident_memory_bytes", resident_memory_bytes()},
            {"device_memory_bytes", device ? json::value(*device) : json::value(nullptr)},
            {"memory_plan", to_json(engine_.backend().plan())}};
  }

  asio::awaitable<bool> generate(std::shared_ptr<Connection> connection, Request request, Endpoint endpoint) {
    const double start = now_seconds();
    auto parsed = parse_request(endpoint, request.body(), model_);
    if (!parsed) {
      co_return co_await respond(*connection,
                                 error_response(parsed.error(), request.version(), request.keep_alive()));
    }
    ResponseWriter writer(model_, *parsed);
    const bool stream = parsed->stream;
    const auto prompt_tokens = parsed->generation.prompt.size();
    const asio::any_io_executor executor = io_.get_executor();
    auto mailbox = std::make_shared<Mailbox>(executor);
    EventCallback deliver = [executor, mailbox](const TokenEvent& event) {
      asio::post(executor, [mailbox, event] { mailbox->deliver(event); });
    };
    auto handle = engine_.submit(std::move(parsed->generation), std::move(deliver));
    if (!handle) {
      const HttpError error = to_http_error(handle.error(), engine_.retry_after_seconds());
      co_return co_await respond(*connection, error_response(error, request.version(), request.keep_alive()));
    }
    const auto watch = std::make_shared<Watch>(connection->stream, *handle);
    asio::co_spawn(io_, watch_peer(watch), asio::detached);
    TokenEvent last;
    bool keep = stream ? co_await stream_answer(connection, request, mailbox, *handle, writer, last)
                       : co_await whole_answer(connection, request, mailbox, writer, last);
    if (options_.log_requests) {
      spdlog::info("{} {} prompt {} answer {} queue {:.3f}s prefill {:.3f}s decode {:.3f}s total {:.3f}s",
                   std::string(request.target()), last.finish ? finish_reason_name(*last.finish) : "closed",
                   prompt_tokens, last.completion_tokens, last.timings.queue, last.timings.prefill,
                   last.timings.decode, now_seconds() - start);
    }
    co_await end_watch(watch, connection->buffer);
    keep = keep && last.finish != FinishReason::kCancelled;
    co_return keep;
  }

  asio::awaitable<bool> whole_answer(std::shared_ptr<Connection> connection, const Request& request,
                                     std::shared_ptr<Mailbox> mailbox, const ResponseWriter& writer,
                                     TokenEvent& last) {
    std::string text;
    do {
      last = co_await next_event(mailbox);
      text += last.text;
    } while (!last.finish);
    if (last.finish == FinishReason::kCancelled) co_return false;
    if (last.finish == FinishReason::kError) {
      const HttpError error = to_http_error(last.error, engine_.retry_after_seconds());
      co_return co_await respond(*connection, error_response(error, request.version(), request.keep_alive()));
    }
    co_return co_await respond(*connection, make_response(200, writer.response(text, last), request));
  }

  asio::awaitable<bool> stream_answer(std::shared_ptr<Connection> connection, const Request& request,
                                      std::shared_ptr<Mailbox> mailbox, std::shared_ptr<RequestHandle> handle,
                                      ResponseWriter& writer, TokenEvent& last) {
    last = co_await next_event(mailbox);
    if (last.finish == FinishReason::kError) {  // nothing was sent yet: a real status is possible
      const HttpError error = to_http_error(last.error, engine_.retry_after_seconds());
      co_return co_await respond(*connection, error_response(error, request.version(), request.keep_alive()));
    }
    http::response<http::empty_body> head(http::status::ok, request.version());
    head.set(http::field::content_type, "text/event-stream; charset=utf-8");
    head.set(http::field::cache_control, "no-cache");
    head.set("X-Accel-Buffering", "no");
    head.keep_alive(request.keep_alive() && !closing_);
    head.chunked(true);
    http::response_serializer<http::empty_body> serializer(head);
    connection->stream->expires_after(kWriteTimeout);
    auto [failed, size] = co_await http::async_write_header(*connection->stream, serializer, kAwait);
    while (true) {
      std::string data = last.finish == FinishReason::kError       ? sse(to_http_error(last.error, 0).body())
                         : last.finish == FinishReason::kCancelled ? std::string()
                                                                   : sse(writer.stream_event(last));
      if (last.finish && last.finish != FinishReason::kCancelled) {
        if (const std::string usage = writer.usage_event(last); !usage.empty()) data += sse(usage);
        data += sse("[DONE]");
      }
      if (!failed && !data.empty()) {
        connection->stream->expires_after(kWriteTimeout);
        auto [code, written] =
            co_await asio::async_write(*connection->stream, http::make_chunk(asio::buffer(data)), kAwait);
        failed = code;
      }
      if (failed) handle->cancel();
      if (last.finish) break;
      last = co_await next_event(mailbox);
    }
    if (failed || last.finish == FinishReason::kCancelled) co_return false;
    auto [code, written] = co_await asio::async_write(*connection->stream, http::make_chunk_last(), kAwait);
    co_return !code && head.keep_alive();
  }

  Response make_response(int status, std::string body, const Request& request) const {
    Response response(static_cast<http::status>(status), request.version());
    response.set(http::field::content_type, "application/json");
    response.keep_alive(request.keep_alive() && !closing_);
    response.body() = std::move(body);
    response.prepare_payload();
    if (request.method() == http::verb::head) response.body().clear();
    return response;
  }

  Response error_response(const HttpError& error, unsigned version, bool keep_alive) const {
    Response response(static_cast<http::status>(error.status), version);
    response.set(http::field::content_type, "application/json");
    if (error.retry_after > 0) response.set(http::field::retry_after, std::to_string(error.retry_after));
    response.keep_alive(keep_alive && !closing_);
    response.body() = error.body();
    response.prepare_payload();
    if (options_.log_requests) spdlog::info("{} {}", error.status, error.message);
    return response;
  }

  static asio::awaitable<bool> respond(Connection& connection, Response response) {
    connection.stream->expires_after(kWriteTimeout);
    const bool keep = response.keep_alive();
    http::response_serializer<http::string_body> serializer(response);
    const auto [code, size] = co_await http::async_write(*connection.stream, serializer, kAwait);
    co_return !code && keep;
  }

  Engine& engine_;
  ServedModel model_;
  ServerOptions options_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  asio::signal_set signals_;
  std::set<std::shared_ptr<Connection>> connections_;
  bool closing_ = false;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::listen(const ServerOptions& options, Engine& engine,
                                                       ServedModel model) {
  auto impl = std::make_unique<Impl>(engine, std::move(model), options);
  QWEN2_CHECK(impl->listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

uint16_t HttpServer::port() const {
  return impl_->port();
}
void HttpServer::run() {
  impl_->run();
}

}  // namespace qwen2
