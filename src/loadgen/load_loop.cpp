#include "loadgen/load_loop.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <ctime>

#include "base/await.h"
#include "base/units.h"

namespace qwen2 {
namespace {

namespace asio = boost::asio;

constexpr double kSignalSeconds = 0.25;  // from a signal to the end of the loop, with plenty to spare

double thread_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// now_seconds() as a point of the clock.
std::chrono::steady_clock::time_point at(double seconds) {
  return std::chrono::steady_clock::time_point(
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(
          std::chrono::duration<double>(seconds)));
}

class Loop {
 public:
  Loop(const LoopOptions& options, std::span<const PlannedRequest> planned, std::span<const size_t> todo,
       const LoopHooks& hooks)
      : options_(options),
        planned_(planned),
        todo_(todo),
        hooks_(hooks),
        ticker_(io_),
        records_(todo.size()) {}

  LoopResult run() {
    const double cpu = thread_cpu_seconds();
    start_ = now_seconds();
    if (todo_.empty()) return {};
    asio::co_spawn(io_, tick(), asio::detached);
    if (options_.open) {
      asio::co_spawn(io_, dispatch(), asio::detached);
    } else {
      const auto clients = std::min<int64_t>(options_.clients, static_cast<int64_t>(todo_.size()));
      for (int64_t i = 0; i < clients; ++i) {
        const double delay = options_.ramp * static_cast<double>(i) / static_cast<double>(clients);
        asio::co_spawn(io_, client(delay), asio::detached);
      }
    }
    io_.run();
    result_.start = start_;
    result_.duration = now_seconds() - start_;
    result_.cpu_seconds = thread_cpu_seconds() - cpu;
    for (RequestRecord& record : records_) {
      if (record.end > 0 && !fell_to_the_signal(record))
        result_.records.push_back(since_start(std::move(record)));
    }
    std::sort(result_.records.begin(), result_.records.end(),
              [](const RequestRecord& a, const RequestRecord& b) { return a.index < b.index; });
    return std::move(result_);
  }

 private:
  asio::awaitable<void> client(double delay) {
    if (delay > 0) co_await wait_until(start_ + delay);
    double scheduled = start_ + delay;
    while (next_ < todo_.size()) {
      co_await send(next_++, scheduled);
      scheduled = now_seconds();
    }
  }

  asio::awaitable<void> dispatch() {
    // Requests come as long after the one before them as planned: what a resumed run has done already leaves
    // no pause.
    double scheduled = start_;
    for (size_t i = 0; i < todo_.size(); ++i) {
      if (i > 0) scheduled += planned_[todo_[i]].offset - planned_[todo_[i] - 1].offset;
      if (scheduled > now_seconds()) co_await wait_until(scheduled);
      asio::co_spawn(io_, send(i, scheduled), asio::detached);
    }
  }

  asio::awaitable<void> send(size_t place, double scheduled) {
    RequestRecord& record = records_[place];
    const PlannedRequest& planned = planned_[todo_[place]];
    record.index = static_cast<int64_t>(todo_[place]);
    record.scheduled = scheduled;
    count_in_flight(1);
    HttpCall call = options_.call;
    call.body = planned.body;
    co_await send_request(std::move(call), record);
    count_in_flight(-1);
    if (record.failure.empty()) check_lengths(planned, options_.ignore_eos, record);
    ++done_;
    if (!record.failure.empty()) ++failed_;
    if (hooks_.progress) hooks_.progress(done_, static_cast<int64_t>(todo_.size()), failed_);
    if (done_ == static_cast<int64_t>(todo_.size())) ticker_.cancel();
  }

  // Looks whether to stop, and measures by its own lateness how busy this thread is.
  asio::awaitable<void> tick() {
    while (done_ < static_cast<int64_t>(todo_.size())) {
      const double due = now_seconds() + kTick;
      ticker_.expires_at(at(due));
      auto [code] = co_await ticker_.async_wait(kAwait);
      if (code) break;
      result_.loop_lags.push_back(now_seconds() - due);
      if (hooks_.should_stop && hooks_.should_stop()) {
        result_.interrupted = true;
        io_.stop();
      }
    }
  }

  asio::awaitable<void> wait_until(double time) {
    asio::steady_timer timer(io_, at(time));
    co_await timer.async_wait(kAwait);
  }

  void count_in_flight(int64_t change) {
    in_flight_ += change;
    result_.peak_in_flight = std::max(result_.peak_in_flight, in_flight_);
    if (hooks_.in_flight != nullptr) hooks_.in_flight->store(in_flight_, std::memory_order_relaxed);
  }

  // Ctrl-C reaches a service that was started for the test too, which refuses what comes before this loop has
  // noticed.
  [[nodiscard]] bool fell_to_the_signal(const RequestRecord& record) const {
    return result_.interrupted && !record.failure.empty() &&
           record.end > start_ + result_.duration - kSignalSeconds;
  }

  RequestRecord since_start(RequestRecord record) const {
    for (double* time : {&record.scheduled, &record.sent, &record.end}) *time -= start_;
    if (!record.content_times.empty()) {
      record.first_content -= start_;
      record.last_content -= start_;
    }
    for (double& time : record.content_times) time -= start_;
    return record;
  }

  const LoopOptions& options_;
  std::span<const PlannedRequest> planned_;
  std::span<const size_t> todo_;
  const LoopHooks& hooks_;
  asio::io_context io_{1};
  asio::steady_timer ticker_;
  std::vector<RequestRecord> records_;  // by place in todo_
  LoopResult result_;
  double start_ = 0;
  size_t next_ = 0;
  int64_t done_ = 0;
  int64_t failed_ = 0;
  int64_t in_flight_ = 0;
};

}  // namespace

LoopResult run_loop(const LoopOptions& options, std::span<const PlannedRequest> planned,
                    std::span<const size_t> todo, const LoopHooks& hooks) {
  return Loop(options, planned, todo, hooks).run();
}

}  // namespace qwen2
