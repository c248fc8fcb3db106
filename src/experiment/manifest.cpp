#include "experiment/manifest.h"

#include <fmt/chrono.h>

#include <ctime>

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

Result<Outcome> parse_outcome(std::string_view text) {
  for (const Outcome outcome : {Outcome::kOk, Outcome::kFailed, Outcome::kRefused}) {
    if (name_of(outcome) == text) return outcome;
  }
  return fail(ErrorKind::kFormat, "unknown status '{}'; expected ok, failed or refused", text);
}

// Throws boost::system::system_error where a field is missing or of another type; so do the others here.
Result<ManifestPoint> point_from(const json::object& object) {
  ManifestPoint p;
  p.id = object.at("id").as_string();
  p.label = object.at("label").as_string();
  p.grid = object.at("grid").as_string();
  QWEN2_TRY(p.measure, parse_measure(object.at("measure").as_string()));
  p.axes = object.at("axes").as_object();
  p.flags = object.at("flags").as_object();
  p.command = object.at("command").as_string();
  for (const json::value& item : object.at("repeats").as_array()) {
    const json::object& fields = item.as_object();
    Repeat r;
    r.number = fields.at("repeat").to_number<int64_t>();
    r.file = fields.at("file").as_string();
    if (fs::path(r.file).is_absolute() || r.file.find("..") != std::string::npos)
      return fail(ErrorKind::kFormat, "'{}' is no file of the directory", r.file);
    QWEN2_TRY(r.outcome, parse_outcome(fields.at("status").as_string()));
    r.seconds = fields.at("seconds").to_number<double>();
    if (const json::value* error = fields.if_contains("error")) r.error = error->as_string();
    p.repeats.push_back(std::move(r));
  }
  return p;
}

Result<Manifest> manifest_from(const json::object& object) {
  Manifest m;
  if (object.at("schema").as_string() != kSchema) {
    return fail(ErrorKind::kFormat, "the schema is '{}', expected '{}'",
                std::string(object.at("schema").as_string()), kSchema);
  }
  m.name = object.at("name").as_string();
  m.title = object.at("title").as_string();
  m.question = object.at("question").as_string();
  m.started = object.at("started").as_string();
  if (object.at("finished").is_string()) m.finished = object.at("finished").as_string();
  m.interrupted = object.at("interrupted").as_bool();
  m.seed = object.at("seed").to_number<uint64_t>();
  if (object.at("profile").is_string()) m.profile = object.at("profile").as_string();
  m.overrides = json::value_to<std::vector<std::string>>(object.at("set"));
  m.environment = object.at("environment").as_object();
  m.plots = object.at("plots").as_array();
  for (const json::value& point : object.at("points").as_array()) {
    QWEN2_TRY(ManifestPoint p, point_from(point.as_object()));
    m.points.push_back(std::move(p));
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
  const fs::path path = directory / "manifest.json";
  QWEN2_TRY(const json::value root, read_json_file(path));
  try {
    auto manifest = manifest_from(root.as_object());
    if (!manifest) return within(fmt::format("'{}'", path.string()), manifest.error());
    return manifest;
  } catch (const std::exception& error) {
    return fail(ErrorKind::kFormat, "'{}' is no experiment's manifest: {}", path.string(), error.what());
  }
}

Result<json::value> read_json_file(const fs::path& path) {
  QWEN2_TRY(const std::string text, read_text_file(path, size_t{1} << 30));
  boost::system::error_code code;
  json::value value = json::parse(text, code);
  if (code) return fail(ErrorKind::kFormat, "'{}' is no JSON: {}", path.string(), code.message());
  return value;
}

std::string utc_now() {
  return fmt::format("{:%FT%TZ}", fmt::gmtime(std::time(nullptr)));
}

}  // namespace qwen2
