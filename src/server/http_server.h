// The HTTP service: listener, routes, streaming, cancellation, shutdown.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "engine/engine.h"
#include "server/openai_schema.h"

namespace qwen2 {

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  bool log_requests = true;
};

// Listens in the constructor's thread; run() serves until SIGTERM or SIGINT. On the first signal the port is
// closed, waiting requests get 503 and running ones end; a second signal cancels those too.
class HttpServer {
 public:
  static Result<std::unique_ptr<HttpServer>> listen(const ServerOptions& options, Engine& engine,
                                                    ServedModel model);

  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  ~HttpServer();

  [[nodiscard]] uint16_t port() const;
  void run();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace qwen2
