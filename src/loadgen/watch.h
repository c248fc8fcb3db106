// Looks at the server while a test runs: its queue, its KV pages, its memory. In a thread of its own, so that
// a slow answer to a look does not hold up the load.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "base/json_fields.h"
#include "loadgen/http_client.h"
#include "loadgen/server_kind.h"

namespace qwen2 {

// Nothing where the server or the driver does not say.
struct WatchSample {
  double t = 0;  // seconds since the watch began
  std::optional<int64_t> vram_bytes, host_bytes, running, waiting, kv_pages_used;
  int64_t in_flight = 0;  // as the client counts
};

// What qwen2's /stats says; empty for other servers.
JsonFields fetch_stats(const Url& url, ServerKind kind);

// Fills the queue's counts from a Prometheus page of vLLM, llama.cpp or TGI.
void read_metrics(std::string_view page, WatchSample& sample);

class Watcher {
 public:
  // `pid` is the server's, or negative. `in_flight` must outlive the watcher.
  Watcher(Url url, ServerKind kind, int pid, double interval, const std::atomic<int64_t>& in_flight);
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;
  ~Watcher();

  // Takes a last look and ends.
  std::vector<WatchSample> stop();

 private:
  void run();
  WatchSample look();

  Url url_;
  ServerKind kind_;
  int pid_;
  double interval_;
  const std::atomic<int64_t>& in_flight_;
  double start_;
  bool page_answers_ = true;
  std::vector<WatchSample> samples_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace qwen2
