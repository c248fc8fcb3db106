#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "base/units.h"
#include "cli/cli.h"
#include "server/http_server.h"

namespace qwen2::cli {
namespace {

struct ServeFlags {
  ModelFlags model;
  ServerOptions server;
  EngineOptions engine;
  std::string policy = "continuous";
  std::string served_name;
  bool quiet = false;
};

Status serve(ServeFlags& flags) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("qwen2"));
  if (flags.engine.max_queue_requests < 0)
    return fail(ErrorKind::kInvalidArgument, "--max-queue-requests must not be negative");
  const double start = now_seconds();
  QWEN2_TRY(OpenModel open, open_model(flags.model, false));
  ServedModel model;
  model.name = flags.served_name.empty() ? model_name(flags.model.model) : flags.served_name;
  model.tokenizer = open.tokenizer_or_null();
  model.chat = open.chat;
  if (model.tokenizer != nullptr) model.chat_end_tokens = chat_end_tokens(*model.tokenizer, model.chat);
  QWEN2_TRY(model.sampling_defaults, sampling_defaults(open.generation_config));
  model.max_model_len = open.backend->plan().limits.max_model_len;
  spdlog::info("{} on {} in {:.1f} s; memory plan:\n{}", model.name, open.backend->describe(),
               now_seconds() - start, open.backend->plan().table());
  spdlog::info("chat template: {}", model.chat.source());
  flags.engine.policy = flags.policy == "serial" ? Policy::kSerial : Policy::kContinuous;
  flags.server.log_requests = !flags.quiet;
  // The engine posts to the server's event loop until its thread has ended: it goes first.
  auto engine = std::make_unique<Engine>(std::move(open.backend), model.tokenizer, flags.engine);
  QWEN2_TRY(const auto server, HttpServer::listen(flags.server, *engine, std::move(model)));
  std::printf("listening on http://%s:%u\n", flags.server.host.c_str(), unsigned{server->port()});
  std::fflush(stdout);
  server->run();
  engine.reset();
  return {};
}

}  // namespace

void add_serve(CLI::App& app, Action& action) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = app.add_subcommand("serve", "Serve a model over HTTP");
  flags->model.add_to(*command);
  add_chat_flags(*command, flags->model);
  command->add_option("--host", flags->server.host, "Address to listen on");
  command->add_option("--port", flags->server.port, "Port; 0 takes a free one");
  command->add_option("--served-model-name", flags->served_name, "Name in the API (default: the folder's)");
  command->add_option("--policy", flags->policy, "continuous, or serial: one request at a time")
      ->check(CLI::IsMember({"continuous", "serial"}));
  command->add_option("--max-queue-requests", flags->engine.max_queue_requests,
                      "Requests that may wait; more get 429");
  command->add_flag("--quiet", flags->quiet, "No line for each request");
  command->callback([flags, &action] { action = [flags] { return serve(*flags); }; });
}

}  // namespace qwen2::cli
