#include "loadgen/detect.h"

#include <boost/json.hpp>

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr double kSeconds = 10;

json::object get_object(const Url& url, const std::string& path) {
  const auto body = http_get(url, path, kSeconds);
  if (!body) return {};
  json::error_code code;
  json::value root = json::parse(*body, code);
  return !code && root.is_object() ? std::move(root.get_object()) : json::object();
}

std::string text_at(const json::value& root, std::string_view pointer) {
  json::error_code code;
  const json::value* value = root.find_pointer(pointer, code);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::optional<ServerKind> kind_of_owner(std::string_view owner) {
  if (owner == "llamacpp") return ServerKind::kLlamaCpp;
  if (owner == "library") return ServerKind::kOllama;  // models of Ollama's own collection
  if (owner == "qwen2") return ServerKind::kQwen2;
  if (owner == "vllm") return ServerKind::kVllm;
  return std::nullopt;
}

}  // namespace

ServedBy detect_server(const Url& url) {
  ServedBy served;
  const json::value models = get_object(url, "/v1/models");
  served.model = text_at(models, "/data/0/id");
  if (const auto kind = kind_of_owner(text_at(models, "/data/0/owned_by"))) {
    served.kind = *kind;
    return served;
  }
  const json::object info = get_object(url, "/info");
  if (info.contains("model_id") && info.contains("max_total_tokens")) {
    served.kind = ServerKind::kTgi;
    if (served.model.empty()) served.model = text_at(info, "/model_id");
  } else if (get_object(url, "/props").contains("default_generation_settings")) {
    served.kind = ServerKind::kLlamaCpp;
  } else if (get_object(url, "/api/version").contains("version")) {
    served.kind = ServerKind::kOllama;
  }
  return served;
}

}  // namespace qwen2
