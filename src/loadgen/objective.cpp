#include "loadgen/objective.h"

#include <charconv>

#include "loadgen/measures.h"

namespace qwen2 {
namespace {

std::optional<double> number_before(std::string_view text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return std::nullopt;
  text.remove_suffix(suffix.size());
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size() || !(value > 0) || value > 1e9)
    return std::nullopt;
  return value;
}

std::optional<double> seconds(std::string_view text) {
  if (const auto ms = number_before(text, "ms")) return *ms / 1e3;
  return number_before(text, "s");
}

bool within_limit(const std::optional<double>& value, const std::optional<double>& limit) {
  return !value || !limit || *value <= *limit;
}

}  // namespace

Result<Objective> Objective::parse(std::string_view text) {
  Objective objective;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    const size_t equals = std::min(part.find('='), part.size());
    const std::string_view name = part.substr(0, equals);
    const std::string_view value = part.substr(std::min(equals + 1, part.size()));
    const auto time = seconds(value);
    if (name == "ttft" && time) {
      objective.ttft = time;
    } else if (name == "tpot" && time) {
      objective.tpot = time;
    } else if (name == "e2el" && time) {
      objective.e2el = time;
    } else if (const auto percent = number_before(value, ""); name == "p" && percent && *percent <= 100) {
      objective.percent = *percent;
    } else {
      return fail(
          ErrorKind::kInvalidArgument,
          "--slo '{}': '{}' is none of ttft=TIME, tpot=TIME, e2el=TIME (such as 2s or 100ms), p=PERCENT",
          text, part);
    }
  }
  if (!objective.ttft && !objective.tpot && !objective.e2el) {
    return fail(ErrorKind::kInvalidArgument, "--slo '{}' names no limit; such as ttft=2s,tpot=100ms,p=99",
                text);
  }
  return objective;
}

std::string Objective::text() const {
  std::string out;
  if (ttft) out += fmt::format("ttft={}ms,", *ttft * 1e3);
  if (tpot) out += fmt::format("tpot={}ms,", *tpot * 1e3);
  if (e2el) out += fmt::format("e2el={}ms,", *e2el * 1e3);
  return out + fmt::format("p={}", percent);
}

bool is_good(const RequestRecord& record, const Objective& objective) {
  // Without a token there was no first one in time.
  if (objective.ttft && !ttft_of(record)) return false;
  return record.failure.empty() && within_limit(ttft_of(record), objective.ttft) &&
         within_limit(tpot_of(record), objective.tpot) && within_limit(e2el_of(record), objective.e2el);
}

}  // namespace qwen2
