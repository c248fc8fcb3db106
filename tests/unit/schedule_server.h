// A server that emits tokens on a known schedule and writes down when it did, for tests of the load client.
// Its clock is the client's.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace qwen2::test {

struct Schedule {
  double first = 0.02;  // seconds from the request to the first token
  double gap = 0.01;    // between two tokens
  // A time on now_seconds()'s clock, from which on the server does nothing at all for `stall` seconds.
  double stall_at = 0;
  double stall = 0;
  int64_t cut_after = -1;  // tokens, then the connection is closed; negative: never
};

// What the server did for one request. Each token's write lies between its two times.
struct Emission {
  double received = 0;
  std::vector<double> before;
  std::vector<double> after;
  double ended = 0;
};

// Answers POST with events in the form of OpenAI's completions, as many tokens as "max_tokens" says; the
// first token's text is the number of the request. The usage counts the words of the prompt.
class ScheduleServer {
 public:
  explicit ScheduleServer(const Schedule& schedule);
  ScheduleServer(const ScheduleServer&) = delete;
  ScheduleServer& operator=(const ScheduleServer&) = delete;
  ~ScheduleServer();

  [[nodiscard]] std::string url() const;
  // By the number of the request. Call it after the test.
  [[nodiscard]] std::vector<Emission> emissions() const;
  // When the stall began, on the same clock; 0: it did not.
  [[nodiscard]] double stalled_from() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Answers every POST with the bytes it was given, in pieces of random sizes, and keeps the requests as they
// came. GET answers 404.
class PlaybackServer {
 public:
  explicit PlaybackServer(std::string response);
  PlaybackServer(const PlaybackServer&) = delete;
  PlaybackServer& operator=(const PlaybackServer&) = delete;
  ~PlaybackServer();

  [[nodiscard]] std::string url() const;
  [[nodiscard]] std::vector<std::string> requests() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace qwen2::test
