// Readers of quantised modules in a Hugging Face folder: one for each `quant_method` of config.json's
// "quantization_config". A module is a linear layer, NAME in "NAME.weight".
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json_fields.h"
#include "checkpoint/checkpoint.h"
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
  // Nothing where QuantizedMatrix has no exact form for the module: read_rows() expands it. Missing tensors,
  // shapes other than of [rows, cols], other dtypes and broken group indices are errors.
  [[nodiscard]] virtual Result<std::optional<QuantizedFormat>> format(std::string_view module, int64_t rows,
                                                                      int64_t cols) const = 0;
  // As Checkpoint::load_quantized(), for modules with a format. Scales that are not finite are errors. Where
  // `first_row` is not 0, the permutation must be the one that `target` has already: the rows share their
  // activations.
  virtual Status load(std::string_view module, int64_t rows, const QuantizedMatrix& target,
                      int64_t first_row) const;
  // As Checkpoint::read_matrix(), for modules without a format.
  virtual Status read_rows(std::string_view module, int64_t rows, int64_t cols,
                           const Checkpoint::RowSink& sink) const;
};

using ReaderResult = Result<std::unique_ptr<QuantizedReader>>;

// Each keeps a reference to `tensors`. `settings` is "quantization_config"; absent fields have the defaults of
// the programs that write them. Bits and groups of a module are those of its tensors.
ReaderResult open_gptq_reader(const TensorTable& tensors, const JsonFields& settings);
ReaderResult open_auto_round_reader(const TensorTable& tensors, const JsonFields& settings);
ReaderResult open_awq_reader(const TensorTable& tensors, const JsonFields& settings);
ReaderResult open_compressed_reader(const TensorTable& tensors, const JsonFields& settings);
ReaderResult open_fp8_reader(const TensorTable& tensors, const JsonFields& settings);
// `settings` is "quantization" here.
ReaderResult open_mlx_reader(const TensorTable& tensors, const JsonFields& settings);

// How "qzeros" of GPTQ's layout hold a zero.
enum class GptqZeros : uint8_t {
  kLessOne,
  kItself,
  kShown,  // itself, but less one where all of a symmetric module are in the middle that way
};
ReaderResult open_gptq_reader(const TensorTable& tensors, const JsonFields& settings, GptqZeros zeros);

// The layouts of bitsandbytes need no settings.
std::unique_ptr<QuantizedReader> bitsandbytes_8bit_reader(const TensorTable& tensors);
std::unique_ptr<QuantizedReader> bitsandbytes_4bit_reader(const TensorTable& tensors);

// Rows and columns that share a scale of FP8, where scales are of blocks.
struct Fp8Block {
  int64_t rows = 128;
  int64_t cols = 128;
};
std::unique_ptr<QuantizedReader> fp8_reader(const TensorTable& tensors, const Fp8Block& block);
// Where the settings have the field: [rows, columns].
Status read_fp8_block(const JsonFields& settings, std::string_view field, Fp8Block& block);

// The first of `readers` that has a module reads it.
std::unique_ptr<QuantizedReader> first_of(std::vector<std::unique_ptr<QuantizedReader>> readers);

// The reader that `config_json` asks for, or the folder's quantize_config.json; null where neither does.
ReaderResult open_quantized_reader(const TensorTable& tensors, std::string_view config_json);

// "group_size" where the settings have it: columns of a group, or -1 for whole rows.
Status read_group_size(const JsonFields& settings, int64_t& size);

// The groups of a row: as many as the scales [groups, out] have, whatever the settings say. Of a tensor that is
// missing or has another form, what `group` gives, for the message.
int64_t groups_of_scales(const TensorTable& tensors, const std::string& scales, int64_t cols, int64_t group);

// A group of -1 is the whole row. Groups that do not divide `cols` are an error, and so are columns that are
// no multiple of 8, as QuantizedMatrix requires.
Result<int64_t> columns_of_group(const TensorTable& tensors, std::string_view module, int64_t group,
                                 int64_t cols);
// The same where a row has `groups` groups of equal size.
Result<int64_t> columns_of_groups(const TensorTable& tensors, std::string_view module, int64_t groups,
                                  int64_t cols);

}  // namespace qwen2
