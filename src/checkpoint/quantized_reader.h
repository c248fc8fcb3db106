// Readers of quantised modules in a Hugging Face folder: one for each `quant_method` of config.json's
// "quantization_config". A module is a linear layer, NAME in "NAME.weight".
#pragma once

#include <boost/json/object.hpp>
#include <memory>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "checkpoint/tensor_table.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

class QuantizedReader {
 public:
  virtual ~QuantizedReader() = default;
  QuantizedReader() = default;
  QuantizedReader(const QuantizedReader&) = delete;
  QuantizedReader& operator=(const QuantizedReader&) = delete;

  // Whether `module` is stored quantised; its tensors say so, not its name.
  [[nodiscard]] virtual bool has(std::string_view module) const = 0;
  // Missing tensors, shapes other than of [rows, cols], other dtypes and broken group indices are errors.
  [[nodiscard]] virtual Result<QuantizedFormat> format(std::string_view module, int64_t rows,
                                                       int64_t cols) const = 0;
  // As Checkpoint::load_quantized(). Scales that are not finite are errors. Where `first_row` is not 0, the
  // permutation must be the one that `target` has already: the rows share their activations.
  virtual Status load(std::string_view module, int64_t rows, const QuantizedMatrix& target,
                      int64_t first_row) const = 0;
};

// The fields of "quantization_config". Errors name the field and what was expected.
class QuantizationSettings {
 public:
  explicit QuantizationSettings(const boost::json::object& object) : object_(object) {}

  [[nodiscard]] Result<int64_t> integer(std::string_view key) const;
  // Absent or null fields have the value `fallback`; without one they are errors.
  [[nodiscard]] Result<bool> boolean(std::string_view key, std::optional<bool> fallback) const;
  [[nodiscard]] Result<std::string_view> text(std::string_view key,
                                              std::optional<std::string_view> fallback) const;
  // "group_size": columns of a group, or -1 for whole rows.
  [[nodiscard]] Result<int64_t> group_size() const;

 private:
  [[nodiscard]] const boost::json::value* find(std::string_view key) const;

  const boost::json::object& object_;
};

using ReaderResult = Result<std::unique_ptr<QuantizedReader>>;

// Each keeps a reference to `tensors`.
ReaderResult open_gptq_reader(const TensorTable& tensors, const QuantizationSettings& settings);
ReaderResult open_awq_reader(const TensorTable& tensors, const QuantizationSettings& settings);
ReaderResult open_bitsandbytes_reader(const TensorTable& tensors, const QuantizationSettings& settings);

// The reader that `config_json` asks for; null when it has no "quantization_config".
ReaderResult open_quantized_reader(const TensorTable& tensors, std::string_view config_json);

// A group of -1 is the whole row. Groups that do not divide `cols` are an error, and so are columns that are
// no multiple of 8, as QuantizedMatrix requires.
Result<int64_t> columns_of_group(const TensorTable& tensors, std::string_view module, int64_t group,
                                 int64_t cols);

}  // namespace qwen2
