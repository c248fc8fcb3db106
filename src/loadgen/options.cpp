#include "loadgen/options.h"

#include <cmath>

namespace qwen2 {
namespace {

namespace json = boost::json;

template <class T>
json::value or_null(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value(nullptr);
}

json::value or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}

json::value lengths_json(const Lengths& lengths) {
  return lengths.fixed() ? json::value(lengths.low()) : json::value(lengths.text());
}

Status at_least(std::string_view flag, int64_t value, int64_t low) {
  if (value >= low) return {};
  return fail(ErrorKind::kInvalidArgument, "{} must be at least {}", flag, low);
}

Status positive(std::string_view flag, double value) {
  if (std::isfinite(value) && value > 0) return {};
  return fail(ErrorKind::kInvalidArgument, "{} {} must be more than 0", flag, value);
}

Status exclude(std::string_view a, bool has_a, std::string_view b, bool has_b) {
  if (!has_a || !has_b) return {};
  return fail(ErrorKind::kInvalidArgument, "{} and {} exclude each other", a, b);
}

}  // namespace

std::string_view LoadTestOptions::mode() const {
  return !trace.empty() ? "trace" : rate ? "open" : "closed";
}

Status check(const LoadTestOptions& o) {
  QWEN2_CHECK(at_least("--concurrency", o.concurrency, 1));
  QWEN2_CHECK(at_least("--requests", o.requests.value_or(1), 1));
  QWEN2_CHECK(at_least("--warmup", o.warmup, 0));
  QWEN2_CHECK(at_least("--shared-prefix", o.shared_prefix, 0));
  QWEN2_CHECK(positive("--rate", o.rate.value_or(1)));
  QWEN2_CHECK(positive("--burstiness", o.burstiness));
  QWEN2_CHECK(positive("--speed", o.speed));
  QWEN2_CHECK(positive("--timeout", o.timeout_seconds));
  QWEN2_CHECK(positive("--sample-interval", o.sample_interval));
  QWEN2_CHECK(exclude("--trace", !o.trace.empty(), "--rate", o.rate.has_value()));
  QWEN2_CHECK(exclude("--trace", !o.trace.empty(), "--prompts", !o.prompts.empty()));
  QWEN2_CHECK(exclude("--shared-prefix", o.shared_prefix > 0, "--prompts", !o.prompts.empty()));
  if (!o.stream && o.objective && (o.objective->ttft || o.objective->tpot)) {
    return fail(ErrorKind::kInvalidArgument,
                "--slo with ttft or tpot needs streaming: with --no-stream only e2el is measured");
  }
  if (o.timeout_seconds > kMostSeconds || o.ramp.value_or(0) > kMostSeconds || o.ramp.value_or(0) < 0) {
    return fail(ErrorKind::kInvalidArgument, "--timeout and --ramp must lie between 0 and {:g} seconds",
                kMostSeconds);
  }
  if (o.temperature < 0 || !std::isfinite(o.temperature))
    return fail(ErrorKind::kInvalidArgument, "--temperature must not be negative");
  return {};
}

json::object parameters_json(const LoadTestOptions& o) {
  json::object out{{"url", o.url},
                   {"backend", o.backend ? json::value(name_of(*o.backend)) : json::value("auto")},
                   {"served_model", or_null(o.model)},
                   {"endpoint", name_of(o.flavour)},
                   {"stream", o.stream},
                   {"mode", o.mode()},
                   {"concurrency", o.open_loop() ? json::value(nullptr) : json::value(o.concurrency)},
                   {"ramp", or_null(o.ramp)},
                   {"rate", or_null(o.rate)},
                   {"arrivals", name_of(o.arrivals)},
                   {"burstiness", o.burstiness},
                   {"trace", or_null(o.trace)},
                   {"speed", o.speed},
                   {"requests", or_null(o.requests)},
                   {"warmup", o.warmup},
                   {"prompts", or_null(o.prompts)}};
  out["ctx_len"] = lengths_json(o.ctx_len);
  out["max_new_tokens"] = o.max_new_tokens ? lengths_json(*o.max_new_tokens) : json::value(nullptr);
  out["shared_prefix"] = o.shared_prefix;
  out["temperature"] = o.temperature;
  out["ignore_eos"] = o.ignore_eos;
  out["seed"] = o.seed;
  out["timeout"] = o.timeout_seconds;
  out["slo"] = o.objective ? json::value(o.objective->text()) : json::value(nullptr);
  out["sample_interval"] = o.sample_interval;
  return out;
}

}  // namespace qwen2
