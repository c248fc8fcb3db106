// From a model argument to the checkpoint: what it names, and who reads that.
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/folder_checks.h"
#include "checkpoint/gguf_shards.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSynthetic = "synthetic:";

// A GGUF file is known by its first bytes: stores of models name files by their hash.
Status check_gguf(const fs::path& path) {
  std::string start(64, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(ErrorKind::kIo, "cannot open '{}'", path.string());
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<size_t>(file.gcount()));
  if (start.starts_with(kGgufMagic)) return {};
  if (is_lfs_pointer(start)) return lfs_pointer_error(path);
  return fail(
      ErrorKind::kFormat,
      "'{}' does not begin with \"GGUF\": this is no GGUF file; a GGUF file, a folder with config.json "
      "or synthetic:NAME was expected",
      path.string());
}

// The .gguf files of a folder; of a split model only the shard with the lowest number.
Result<std::set<fs::path>> gguf_models_in(const fs::path& folder) {
  std::set<fs::path> files;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code)) {
    std::error_code ignored;
    if (entry.path().extension() == ".gguf" && entry.is_regular_file(ignored)) files.insert(entry.path());
  }
  if (code) return fail(ErrorKind::kIo, "cannot list '{}': {}", folder.string(), code.message());
  std::set<fs::path> models;
  std::set<std::string> split;
  for (const fs::path& file : files) {
    auto name = ShardName::parse(file.filename().string());
    if (name) name->number = 1;
    if (!name || split.insert(name->text()).second) models.insert(file);
  }
  return models;
}

// The one snapshot of a repository's folder in the Hugging Face cache, models--ORG--NAME: what refs/main names.
Result<fs::path> snapshot_in(const fs::path& folder) {
  std::error_code ignored;
  std::ifstream reference(folder / "refs" / "main");
  std::string commit;
  if (reference >> commit) {
    const bool plain = commit.find('/') == std::string::npos && !commit.starts_with('.');
    if (plain && fs::is_directory(folder / "snapshots" / commit, ignored))
      return folder / "snapshots" / commit;
    return fail(ErrorKind::kNotFound,
                "'{}': refs/main names the snapshot '{}', which is not there: download it again",
                folder.string(), commit.substr(0, 64));
  }
  std::vector<fs::path> snapshots;
  for (const auto& entry : fs::directory_iterator(folder / "snapshots", ignored))
    snapshots.push_back(entry.path());
  if (snapshots.size() == 1) return snapshots.front();
  return fail(ErrorKind::kNotFound, "'{}' has {} snapshots and no refs/main: name one of snapshots/",
              folder.string(), snapshots.size());
}

// Where the Hugging Face client keeps what it downloads.
fs::path hub_cache() {
  const auto variable = [](const char* name) -> fs::path {
    const char* value = std::getenv(name);
    return value == nullptr ? fs::path() : fs::path(value);
  };
  if (const fs::path cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  const fs::path cache = variable("XDG_CACHE_HOME");
  return (cache.empty() ? variable("HOME") / ".cache" : cache) / "huggingface" / "hub";
}

// Is this the name of a repository, ORG/NAME?
bool is_repository(std::string_view model) {
  const auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
  };
  const size_t slash = model.find('/');
  if (slash == std::string_view::npos || slash == 0 || slash + 1 == model.size()) return false;
  const std::string_view name = model.substr(slash + 1);
  return model[0] != '.' && name[0] != '.' && std::ranges::all_of(model.substr(0, slash), allowed) &&
         std::ranges::all_of(name, allowed);
}

Result<ModelSource> find_in_folder(const fs::path& given) {
  std::error_code ignored;
  fs::path folder = given;
  if (fs::is_directory(given / "snapshots", ignored) && !fs::exists(given / "config.json", ignored)) {
    QWEN2_TRY(folder, snapshot_in(given));
  }
  if (fs::exists(folder / "config.json", ignored)) return ModelSource{ModelKind::kFolder, folder};
  QWEN2_TRY(const auto models, gguf_models_in(folder));
  if (models.empty()) return ModelSource{ModelKind::kFolder, folder};
  if (models.size() > 1) {
    std::vector<std::string> names;
    for (const fs::path& path : models) names.push_back(path.filename().string());
    return fail(ErrorKind::kInvalidArgument, "'{}' holds {} models; name the file: {}", folder.string(),
                models.size(), fmt::join(names, ", "));
  }
  QWEN2_CHECK(check_gguf(*models.begin()));
  return ModelSource{ModelKind::kGguf, *models.begin()};
}

Result<ModelSource> find_in_cache(const std::string& repository) {
  std::string name = "models--" + repository;
  name.replace(name.find('/'), 1, "--");
  const fs::path folder = hub_cache() / name;
  std::error_code ignored;
  if (fs::is_directory(folder, ignored)) return find_in_folder(folder);
  return fail(ErrorKind::kNotFound,
              "model '{}' is neither here nor in the cache '{}': download it with `hf download {}`",
              repository, hub_cache().string(), repository);
}

}  // namespace

Result<ModelSource> find_model(const std::string& model) {
  if (model.starts_with(kSynthetic)) return ModelSource{ModelKind::kSynthetic, {}};
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return find_in_folder(model);
  if (!fs::is_regular_file(model, ignored)) {
    if (is_repository(model)) return find_in_cache(model);
    return fail(ErrorKind::kNotFound, "model '{}' is neither a folder, a GGUF file nor synthetic:NAME",
                model);
  }
  QWEN2_CHECK(check_gguf(model));
  return ModelSource{ModelKind::kGguf, model};
}

bool is_gguf_model(const std::string& model) {
  const auto source = find_model(model);
  return source && source->kind == ModelKind::kGguf;
}

Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& model) {
  QWEN2_TRY(const ModelSource source, find_model(model));
  switch (source.kind) {
    case ModelKind::kSynthetic:
      return open_synthetic(std::string_view(model).substr(kSynthetic.size()));
    case ModelKind::kGguf:
      return open_gguf(source.path);
    case ModelKind::kFolder:
      break;
  }
  return open_hf_folder(source.path);
}

fs::path tokenizer_folder(const std::string& model) {
  const auto source = find_model(model);
  if (!source) return model;
  return source->kind == ModelKind::kFolder ? source->path : fs::path();
}

}  // namespace qwen2
