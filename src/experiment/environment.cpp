#include "experiment/environment.h"

#include <algorithm>

#include <filesystem>
#include <vector>

#include "base/gpu_info.h"
#include "base/machine.h"
#include "base/memory.h"
#include "base/parallel.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "checkpoint/checkpoint.h"
#include "experiment/manifest.h"
#include "kernels/cpu/kernels.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

class Fnv1a {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) value_ = (value_ ^ static_cast<uint64_t>(b)) * 0x100000001b3U;
  }
  // With its length, so that "ab", "c" differs from "a", "bc".
  void add(std::string_view text) {
    add(uint64_t{text.size()});
    add(std::as_bytes(std::span(text)));
  }
  void add(uint64_t number) { add(std::as_bytes(std::span(&number, 1))); }
  [[nodiscard]] std::string text() const { return fmt::format("fnv1a64:{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325U;
};

Status add_file(const fs::path& path, Fnv1a& hash) {
  constexpr size_t kSample = 4 * kKiB;
  QWEN2_TRY(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  hash.add(uint64_t{bytes.size()});
  if (bytes.size() <= kMiB) {
    hash.add(bytes);
    return {};
  }
  for (size_t begin = 0; begin < bytes.size(); begin += kMiB)
    hash.add(bytes.subspan(begin, std::min(kSample, bytes.size() - begin)));
  hash.add(bytes.last(kSample));
  return {};
}

json::value text_or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}

template <class T>
json::value or_null(const std::optional<T>& value) {
  return value ? json::value(*value) : json::value(nullptr);
}

void add_gpu(json::object& environment) {
  const auto bus_id = first_gpu_bus_id();
  const auto gpu = bus_id ? gpu_state(*bus_id) : std::nullopt;
  environment["gpu"] = gpu ? json::value(gpu->name) : json::value(nullptr);
  environment["gpu_memory_bytes"] = gpu ? json::value(gpu->memory_bytes) : json::value(nullptr);
  environment["driver"] = gpu ? text_or_null(gpu->driver) : json::value(nullptr);
  environment["clocks"] = nullptr;
  if (gpu) {
    environment["clocks"] =
        json::object{{"sm_mhz", or_null(gpu->sm_mhz)}, {"memory_mhz", or_null(gpu->memory_mhz)}};
  }
}

}  // namespace

Result<std::string> model_fingerprint(const std::string& model) {
  Fnv1a hash;
  if (is_gguf_model(model)) {
    QWEN2_TRY(const auto files, gguf_paths(model));
    for (const fs::path& file : files) QWEN2_CHECK(add_file(file, hash));
    return hash.text();
  }
  std::error_code code;
  QWEN2_TRY(const ModelSource source, find_model(model));
  if (source.kind != ModelKind::kFolder) {
    QWEN2_TRY(const auto checkpoint, open_checkpoint(model));
    hash.add(model);
    hash.add(checkpoint->config_json());
    return hash.text();
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(source.path, code)) {
    const fs::path extension = entry.path().extension();
    if (extension == ".json" || extension == ".safetensors") files.push_back(entry.path());
  }
  if (code) return fail(ErrorKind::kIo, "cannot list '{}': {}", model, code.message());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    hash.add(file.filename().string());
    QWEN2_CHECK(add_file(file, hash));
  }
  return hash.text();
}

json::object describe_environment(const std::string& model, std::optional<uint64_t> seed) {
  const Machine machine = describe_machine();
  json::object environment{{"cpu", machine.cpu},
                           {"cores", machine.cores},
                           {"threads", parallel_threads()},
                           {"memory_bytes", machine.memory_bytes},
                           {"isa", cpu::isa_name(cpu::detect_isa())},
                           {"kernel", machine.kernel},
                           {"host", machine.host},
                           {"compiler", machine.compiler},
                           {"flags", machine.flags},
                           {"commit", machine.commit},
                           {"dirty", machine.dirty},
                           {"version", machine.version},
                           {"cuda", text_or_null(machine.cuda)}};
  add_gpu(environment);
  environment["model"] = text_or_null(model);
  environment["model_hash"] = nullptr;
  // A result is worth keeping where its model has gone since.
  if (const auto hash = model.empty() ? Result<std::string>("") : model_fingerprint(model); hash)
    environment["model_hash"] = text_or_null(*hash);
  std::vector<std::string> command = command_line();
  // Where the program lies says nothing that its commit does not.
  if (!command.empty()) command[0] = std::filesystem::path(command[0]).filename().string();
  environment["command"] = shell_command(command);
  environment["seed"] = or_null(seed);
  environment["date"] = utc_now();
  return environment;
}

}  // namespace qwen2
