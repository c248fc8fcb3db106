// Where weights come from: one interface over Hugging Face folders, GGUF files and synthetic models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/architecture.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  Checkpoint() = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // The text of config.json.
  [[nodiscard]] virtual std::string config_json() const = 0;
  // The text of generation_config.json, empty when there is none.
  [[nodiscard]] virtual std::string generation_config_json() const = 0;
  // What a person should know of the model, in a line; empty for nothing.
  [[nodiscard]] virtual std::string note() const { return {}; }
  [[nodiscard]] virtual bool has(std::string_view name) const = 0;
  // Converts the tensor `name` of shape [size] to float.
  virtual Status load_vector(std::string_view name, int64_t size, float* out) const = 0;
  // How the matrix `name` is stored: nothing when in 16 or 32 bits. A missing tensor, another shape than
  // [rows, cols] or an unsupported type is an error.
  [[nodiscard]] virtual Result<std::optional<QuantizedFormat>> matrix_format(std::string_view name,
                                                                             int64_t rows,
                                                                             int64_t cols) const = 0;
  // Hands every row of a matrix of 16 or 32 bits to `sink` as floats [cols]. Rows come from several threads,
  // 64 neighbours (from a multiple of 64) from one.
  using RowSink = std::function<void(int64_t row, const float* values)>;
  virtual Status read_matrix(std::string_view name, int64_t rows, int64_t cols,
                             const RowSink& sink) const = 0;
  // Copies a quantised matrix [rows, target.cols] into rows [first_row, first_row + rows) of `target`, whose
  // format is what matrix_format() says. Fills the permutation too: tensors that share a matrix must
  // have the same.
  virtual Status load_quantized(std::string_view name, int64_t rows, const QuantizedMatrix& target,
                                int64_t first_row) const;
};

// read_matrix() for a matrix in any form: quantised ones are expanded.
Status read_expanded(const Checkpoint& checkpoint, std::string_view name, int64_t rows, int64_t cols,
                     const Checkpoint::RowSink& sink);

// A bias of a layer that has none in Qwen2 is an error where it is not zero: it would be left out.
Status check_biases(const Checkpoint& checkpoint, const ModelSizes& sizes);

// A folder with config.json and model.safetensors, shards with model.safetensors.index.json, or the same under
// other names.
Result<std::unique_ptr<Checkpoint>> open_hf_folder(const std::filesystem::path& folder);

// A GGUF file of a Qwen2 model, or any shard of a split one, in F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1,
// Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL or IQ4_XS. The configuration is made from its metadata, and tensors go
// by their Hugging Face names.
Result<std::unique_ptr<Checkpoint>> open_gguf(const std::filesystem::path& path);

// What a model argument names.
enum class ModelKind : uint8_t { kFolder, kGguf, kSynthetic };
struct ModelSource {
  ModelKind kind = ModelKind::kFolder;
  std::filesystem::path path;  // the folder or the GGUF file; empty for a synthetic model
};

// `model` is a folder in Hugging Face layout, a GGUF file under any name, a folder without config.json that
// holds one GGUF model, a repository's folder in the Hugging Face cache (models--ORG--NAME), the name ORG/NAME of
// one that is in the cache, or "synthetic:NAME".
Result<ModelSource> find_model(const std::string& model);

// Whether find_model() says kGguf; false where it fails.
bool is_gguf_model(const std::string& model);

// The files of the GGUF model that `model` names: one, or its shards in order.
Result<std::vector<std::filesystem::path>> gguf_paths(const std::string& model);

// What a Hugging Face folder would have beside the weights of the GGUF model that `model` names. kNotFound for
// one without a tokeniser.
struct TokenizerTexts {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
  std::string chat_template;  // of chat_template.jinja; empty where tokenizer_config.json has it, if any
};
Result<TokenizerTexts> gguf_tokenizer(const std::filesystem::path& model);
// The second alone.
Result<std::string> gguf_tokenizer_config(const std::filesystem::path& model);

// Seeded random weights in a published shape: "qwen2-0.5b", "qwen2-1.5b", "qwen2-7b".
Result<std::unique_ptr<Checkpoint>> open_synthetic(std::string_view name, uint64_t seed = 0);

// Opens what find_model() finds.
Result<std::unique_ptr<Checkpoint>> open_checkpoint(const std::string& model);

// Where the tokeniser of `model` lies: the folder itself; none for a synthetic model and for GGUF, which
// carries its own.
std::filesystem::path tokenizer_folder(const std::string& model);

}  // namespace qwen2
