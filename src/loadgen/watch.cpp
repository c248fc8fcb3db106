#include "loadgen/watch.h"

#include <charconv>

#include "base/gpu_info.h"
#include "base/machine.h"
#include "base/units.h"

namespace qwen2 {
namespace {

constexpr double kLookSeconds = 2;

void read_stats(const JsonFields& stats, WatchSample& sample) {
  sample.running = stats.find<int64_t>("running");
  sample.waiting = stats.find<int64_t>("waiting");
  sample.host_bytes = stats.find<int64_t>("resident_memory_bytes");
  sample.vram_bytes = stats.find<int64_t>("device_memory_bytes");
  const auto pages = stats.find<int64_t>("kv_pages");
  const auto free = stats.find<int64_t>("kv_pages_free");
  if (pages && free) sample.kv_pages_used = *pages - *free;
}

// The value of a line "name{labels} value".
std::optional<double> metric(std::string_view line, std::string_view name) {
  if (!line.starts_with(name)) return std::nullopt;
  line.remove_prefix(name.size());
  if (line.empty() || (line.front() != ' ' && line.front() != '{')) return std::nullopt;
  const size_t space = line.rfind(' ');
  line.remove_prefix(space == std::string_view::npos ? line.size() : space + 1);
  double value = 0;
  const auto [end, code] = std::from_chars(line.data(), line.data() + line.size(), value);
  return code == std::errc{} ? std::optional(value) : std::nullopt;
}

// qwen2 runs on a card: only there are steps recorded.
bool plans_graphs(const JsonFields& stats) {
  const auto plan = stats.find<JsonFields>("memory_plan");
  return plan && plan->find<int64_t>("graphs").value_or(0) > 0;
}

// The cards of this machine say nothing of a server on another.
bool is_here(const Url& url) {
  return url.host == "localhost" || url.host == "::1" || url.host.starts_with("127.");
}

bool has_metrics(ServerKind kind) {
  return kind == ServerKind::kVllm || kind == ServerKind::kLlamaCpp || kind == ServerKind::kTgi;
}

void add(std::optional<int64_t>& sum, std::optional<double> value) {
  if (value) sum = sum.value_or(0) + static_cast<int64_t>(*value);
}

}  // namespace

JsonFields fetch_stats(const Url& url, ServerKind kind) {
  if (kind != ServerKind::kQwen2) return {};
  const auto body = http_get(url, "/stats", kLookSeconds);
  if (!body) return {};
  return JsonFields::parse(*body, "/stats").value_or(JsonFields());
}

void read_metrics(std::string_view page, WatchSample& sample) {
  while (!page.empty()) {
    const size_t end = std::min(page.find('\n'), page.size());
    const std::string_view line = page.substr(0, end);
    page.remove_prefix(std::min(end + 1, page.size()));
    for (const char* name :
         {"vllm:num_requests_running", "llamacpp:requests_processing", "tgi_batch_current_size"})
      add(sample.running, metric(line, name));
    for (const char* name : {"vllm:num_requests_waiting", "llamacpp:requests_deferred", "tgi_queue_size"})
      add(sample.waiting, metric(line, name));
  }
}

Watcher::Watcher(Url url, ServerKind kind, int pid, double interval, const std::atomic<int64_t>& in_flight)
    : url_(std::move(url)),
      kind_(kind),
      pid_(pid),
      interval_(interval),
      in_flight_(in_flight),
      start_(now_seconds()),
      thread_(&Watcher::run, this) {}

Watcher::~Watcher() {
  stop();
}

std::vector<WatchSample> Watcher::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  return std::move(samples_);
}

void Watcher::run() {
  for (size_t i = 0;; ++i) {
    samples_.push_back(look());
    std::unique_lock lock(mutex_);
    // At multiples of the interval from the start, without the looks that a slow one has made late.
    const double elapsed = now_seconds() - start_;
    const double next = (static_cast<double>(static_cast<int64_t>(elapsed / interval_)) + 1) * interval_;
    if (wake_.wait_for(lock, std::chrono::duration<double>(next - elapsed), [this] { return stopping_; }))
      break;
  }
  samples_.push_back(look());
}

WatchSample Watcher::look() {
  WatchSample sample;
  sample.t = now_seconds() - start_;
  sample.in_flight = in_flight_.load(std::memory_order_relaxed);
  bool on_card = true;
  if (kind_ == ServerKind::kQwen2) {
    const JsonFields stats = fetch_stats(url_, kind_);
    read_stats(stats, sample);
    on_card = plans_graphs(stats);
  } else if (page_answers_ && has_metrics(kind_)) {
    const auto page = http_get(url_, "/metrics", kLookSeconds);
    if (page) read_metrics(*page, sample);
    page_answers_ = page.has_value();
  }
  if (!sample.host_bytes && pid_ > 0) {
    if (const uint64_t bytes = resident_memory_bytes(pid_)) sample.host_bytes = static_cast<int64_t>(bytes);
  }
  if (!sample.vram_bytes && on_card && is_here(url_)) {
    const auto gpu = first_gpu_bus_id();
    auto bytes = gpu && pid_ > 0 ? gpu_memory_of(*gpu, pid_) : std::nullopt;
    if (gpu && !bytes) bytes = gpu_memory_in_use(*gpu);
    if (bytes) sample.vram_bytes = static_cast<int64_t>(*bytes);
  }
  return sample;
}

}  // namespace qwen2
