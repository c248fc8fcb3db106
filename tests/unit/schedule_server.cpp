#include "schedule_server.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/json.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <random>

#include "base/await.h"
#include "base/units.h"

namespace qwen2::test {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;

std::chrono::steady_clock::time_point at(double seconds) {
  return std::chrono::steady_clock::time_point(
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(
          std::chrono::duration<double>(seconds)));
}

struct HttpRequest {
  std::string head;
  std::string body;
};

// Empty where the peer was gone.
asio::awaitable<HttpRequest> read_request(std::shared_ptr<tcp::socket> socket) {
  std::string bytes;
  auto [code, size] =
      co_await asio::async_read_until(*socket, asio::dynamic_buffer(bytes), "\r\n\r\n", kAwait);
  if (code) co_return HttpRequest();
  HttpRequest request{bytes.substr(0, size), bytes.substr(size)};
  const size_t field = request.head.find("Content-Length: ");
  const size_t length = field == std::string::npos ? 0 : std::stoul(request.head.substr(field + 16));
  if (request.body.size() < length) {
    auto [failed, rest] =
        co_await asio::async_read(*socket, asio::dynamic_buffer(request.body),
                                  asio::transfer_exactly(length - request.body.size()), kAwait);
    if (failed) co_return HttpRequest();
  }
  co_return request;
}

std::string chunk(std::string_view data) {
  return fmt::format("{:x}\r\n{}\r\n", data.size(), data);
}

std::string event(const boost::json::object& object) {
  return "data: " + boost::json::serialize(object) + "\n\n";
}

// What both servers are: an acceptor in a thread of its own.
class Listener {
 public:
  Listener() : acceptor_(io_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)) {}
  virtual ~Listener() = default;

  void start() {
    asio::co_spawn(io_, accept(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  void stop() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }
  [[nodiscard]] std::string url() const {
    return fmt::format("http://127.0.0.1:{}", acceptor_.local_endpoint().port());
  }

 protected:
  virtual asio::awaitable<void> answer(std::shared_ptr<tcp::socket> socket) = 0;
  asio::io_context io_{1};

 private:
  asio::awaitable<void> accept() {
    while (true) {
      auto [code, socket] = co_await acceptor_.async_accept(kAwait);
      if (code) break;
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      asio::co_spawn(io_, answer(std::make_shared<tcp::socket>(std::move(socket))), asio::detached);
    }
  }
  tcp::acceptor acceptor_;
  std::thread thread_;
};

}  // namespace

class ScheduleServer::Impl : public Listener {
 public:
  explicit Impl(const Schedule& schedule) : schedule_(schedule) {
    if (schedule_.stall > 0) asio::co_spawn(io_, stall(), asio::detached);
  }
  ~Impl() override { stop(); }

  // A client has the last byte before this server has written down when it sent it.
  [[nodiscard]] std::vector<Emission> emissions() const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_ == 0; });
    return emissions_;
  }

  std::atomic<double> stalled_from = 0;

 private:
  asio::awaitable<void> stall() {
    asio::steady_timer timer(io_, at(schedule_.stall_at));
    co_await timer.async_wait(kAwait);
    stalled_from = now_seconds();
    std::this_thread::sleep_until(at(schedule_.stall_at + schedule_.stall));
  }

  asio::awaitable<void> answer(std::shared_ptr<tcp::socket> socket) override {
    const HttpRequest request = co_await read_request(socket);
    if (request.head.empty()) co_return;
    const size_t number = reserve();
    co_await emit(socket, request, number);
    const std::lock_guard lock(mutex_);
    --open_;
    changed_.notify_all();
  }

  asio::awaitable<void> emit(std::shared_ptr<tcp::socket> socket, HttpRequest request, size_t number) {
    Emission emission;
    emission.received = now_seconds();
    const boost::json::value body = boost::json::parse(request.body);
    const int64_t tokens = body.at("max_tokens").as_int64();
    const auto& prompt = body.at("prompt").as_string();
    const auto words = std::count(prompt.begin(), prompt.end(), ' ');
    std::string first =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    asio::steady_timer timer(io_);
    for (int64_t i = 0; i < tokens; ++i) {
      timer.expires_at(at(emission.received + schedule_.first + schedule_.gap * static_cast<double>(i)));
      co_await timer.async_wait(kAwait);
      if (i == schedule_.cut_after) co_return;
      const std::string text = i == 0 ? std::to_string(number) : " t";
      const std::string data =
          first + chunk(event({{"choices", boost::json::array{boost::json::object{
                                               {"index", 0}, {"text", text}, {"finish_reason", nullptr}}}}}));
      first.clear();
      emission.before.push_back(now_seconds());
      auto [code, size] = co_await asio::async_write(*socket, asio::buffer(data), kAwait);
      emission.after.push_back(now_seconds());
      if (code) co_return;
    }
    const std::string last =
        chunk(
            event({{"choices", boost::json::array()},
                   {"usage", boost::json::object{{"prompt_tokens", words}, {"completion_tokens", tokens}}}}) +
            "data: [DONE]\n\n") +
        "0\r\n\r\n";
    co_await asio::async_write(*socket, asio::buffer(last), kAwait);
    emission.ended = now_seconds();
    const std::lock_guard lock(mutex_);
    emissions_[number] = std::move(emission);
  }

  size_t reserve() {
    const std::lock_guard lock(mutex_);
    ++open_;
    emissions_.emplace_back();
    return emissions_.size() - 1;
  }

  Schedule schedule_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  int open_ = 0;  // answers
  std::vector<Emission> emissions_;
};

ScheduleServer::ScheduleServer(const Schedule& schedule) : impl_(std::make_unique<Impl>(schedule)) {
  impl_->start();
}
ScheduleServer::~ScheduleServer() = default;
std::string ScheduleServer::url() const {
  return impl_->url();
}
std::vector<Emission> ScheduleServer::emissions() const {
  return impl_->emissions();
}

double ScheduleServer::stalled_from() const {
  return impl_->stalled_from;
}

class PlaybackServer::Impl : public Listener {
 public:
  explicit Impl(std::string response) : response_(std::move(response)) {}
  ~Impl() override { stop(); }

  [[nodiscard]] std::vector<std::string> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  asio::awaitable<void> answer(std::shared_ptr<tcp::socket> socket) override {
    const HttpRequest request = co_await read_request(socket);
    if (request.head.empty()) co_return;
    static constexpr std::string_view kNotFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    const bool is_post = request.head.starts_with("POST");
    const std::string_view all = is_post ? std::string_view(response_) : kNotFound;
    if (is_post) {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request.head + request.body);
    }
    for (size_t sent = 0; sent < all.size();) {
      const size_t size = std::min<size_t>(all.size() - sent, 1 + random_() % 60);
      auto [code, written] =
          co_await asio::async_write(*socket, asio::buffer(all.substr(sent, size)), kAwait);
      if (code) co_return;
      sent += size;
    }
    error_code ignored;
    socket->shutdown(tcp::socket::shutdown_send, ignored);
  }

  std::string response_;
  std::mt19937 random_{1};
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
};

PlaybackServer::PlaybackServer(std::string response) : impl_(std::make_unique<Impl>(std::move(response))) {
  impl_->start();
}
PlaybackServer::~PlaybackServer() = default;
std::string PlaybackServer::url() const {
  return impl_->url();
}
std::vector<std::string> PlaybackServer::requests() const {
  return impl_->requests();
}

}  // namespace qwen2::test
