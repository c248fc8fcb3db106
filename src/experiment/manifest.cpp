#include "experiment/manifest.h"

#include <fmt/chrono.h>

#include <ctime>

#include "base/json_fields.h"
#include "base/memory.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::string_view kSchema = "qwen2-experiment/1";

json::object to_json(const Repeat& r) {
  json::object object{
      {"repeat", r.number}, {"file", r.file}, {"status", name_of(r.outcome)}, {"seconds", r.seconds}};
  if (!r.error.empty()) object["error"] = r.error;
  return object;
}

json::object to_json(const ManifestPoint& p) {
  json::array repeats;
  for (const Repeat& r : p.repeats) repeats.push_back(to_json(r));
  return {{"id", p.id},           {"label", p.label},
          {"grid", p.grid},       {"axes", p.axes},
          {"flags", p.flags},     {"measure", name_of(p.measure)},
          {"command", p.command}, {"repeats", std::move(repeats)}};
}

Result<Outcome> parse_outcome(const JsonFields& repeat) {
  std::string text;
  QWEN2_CHECK(repeat.required("status", text));
  for (const Outcome outcome : {Outcome::kOk, Outcome::kFailed, Outcome::kRefused}) {
    if (name_of(outcome) == text) return outcome;
  }
  return repeat.error("status", fmt::format("must be ok, failed or refused, not '{}'", text));
}

Result<Repeat> repeat_from(const JsonFields& fields) {
  Repeat r;
  QWEN2_CHECK(fields.required("repeat", r.number));
  QWEN2_CHECK(fields.required("file", r.file));
  if (fs::path(r.file).is_absolute() || r.file.find("..") != std::string::npos)
    return fields.error("file", fmt::format("is '{}', no file of the directory", r.file));
  QWEN2_TRY(r.outcome, parse_outcome(fields));
  QWEN2_CHECK(fields.required("seconds", r.seconds));
  QWEN2_CHECK(fields.optional("error", r.error));
  return r;
}

Result<ManifestPoint> point_from(const JsonFields& fields) {
  ManifestPoint p;
  std::string measure;
  std::vector<JsonFields> repeats;
  QWEN2_CHECK(fields.required("id", p.id));
  QWEN2_CHECK(fields.required("label", p.label));
  QWEN2_CHECK(fields.required("grid", p.grid));
  QWEN2_CHECK(fields.required("measure", measure));
  const auto parsed = parse_measure(measure);
  if (!parsed) {
    return fields.error("measure", fmt::format("must be engine, serve, evaluate or plan, not '{}'", measure));
  }
  p.measure = *parsed;
  QWEN2_CHECK(fields.required("axes", p.axes));
  QWEN2_CHECK(fields.required("flags", p.flags));
  QWEN2_CHECK(fields.required("command", p.command));
  QWEN2_CHECK(fields.required("repeats", repeats));
  for (const JsonFields& item : repeats) {
    QWEN2_TRY(Repeat repeat, repeat_from(item));
    p.repeats.push_back(std::move(repeat));
  }
  return p;
}

Result<Manifest> manifest_from(const JsonFields& fields) {
  Manifest m;
  std::string schema;
  std::vector<JsonFields> points;
  QWEN2_CHECK(fields.required("schema", schema));
  if (schema != kSchema)
    return fields.error("schema", fmt::format("must be '{}', not '{}'", kSchema, schema));
  QWEN2_CHECK(fields.required("name", m.name));
  QWEN2_CHECK(fields.required("title", m.title));
  QWEN2_CHECK(fields.required("question", m.question));
  QWEN2_CHECK(fields.required("started", m.started));
  QWEN2_CHECK(fields.optional("finished", m.finished));
  QWEN2_CHECK(fields.required("interrupted", m.interrupted));
  QWEN2_CHECK(fields.required("seed", m.seed));
  QWEN2_CHECK(fields.optional("profile", m.profile));
  QWEN2_CHECK(fields.required("set", m.overrides));
  QWEN2_CHECK(fields.required("environment", m.environment));
  QWEN2_CHECK(fields.required("plots", m.plots));
  QWEN2_CHECK(fields.required("points", points));
  for (const JsonFields& item : points) {
    QWEN2_TRY(ManifestPoint point, point_from(item));
    m.points.push_back(std::move(point));
  }
  return m;
}

}  // namespace

std::string_view name_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::kOk:
      return "ok";
    case Outcome::kFailed:
      return "failed";
    case Outcome::kRefused:
      return "refused";
  }
  return "";
}

Status write_manifest(const fs::path& directory, const Manifest& m) {
  json::array points;
  for (const ManifestPoint& p : m.points) points.push_back(to_json(p));
  const json::object root{{"schema", kSchema},
                          {"name", m.name},
                          {"title", m.title},
                          {"question", m.question},
                          {"started", m.started},
                          {"finished", m.finished.empty() ? json::value(nullptr) : json::value(m.finished)},
                          {"interrupted", m.interrupted},
                          {"seed", m.seed},
                          {"profile", m.profile.empty() ? json::value(nullptr) : json::value(m.profile)},
                          {"set", json::value_from(m.overrides)},
                          {"environment", m.environment},
                          {"points", std::move(points)},
                          {"plots", m.plots}};
  return write_file(directory / "manifest.json", json::serialize(root) + "\n");
}

Result<Manifest> read_manifest(const fs::path& directory) {
  QWEN2_TRY(const JsonFields fields, JsonFields::read(directory / "manifest.json"));
  return manifest_from(fields);
}

std::string utc_now() {
  return fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace qwen2
