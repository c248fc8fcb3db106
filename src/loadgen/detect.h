// Which server answers at a URL.
#pragma once

#include <string>

#include "base/error.h"
#include "loadgen/http_client.h"

namespace qwen2 {

struct ServedBy {
  ServerKind kind = ServerKind::kOpenAi;
  std::string model;  // as /v1/models names its first; empty where it names none
};

// Asks /v1/models and, where that leaves it open, the pages that only one kind of server has. Never an error:
// an unknown server is taken to speak OpenAI's format.
ServedBy detect_server(const Url& url);

}  // namespace qwen2
