// "g_idx" of GPTQ and compressed-tensors: the group of each input, where groups are not neighbouring columns.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/tensor_table.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

// Stored column -> input: the inputs ordered by group, each group in ascending order; empty where that changes
// nothing. `g_idx` is I32 [cols]; groups of other sizes than `group` are an error that names it `name`.
Result<std::vector<int32_t>> column_order(std::string_view name, const RawTensor& g_idx, int64_t group);

// Gives `target` the order. Rows that are added to others share their activations, hence their order; another one
// is an error that names `name`.
Status set_permutation(std::string_view name, const RawTensor& g_idx, const std::vector<int32_t>& order,
                       const QuantizedMatrix& target, int64_t first_row);

}  // namespace qwen2
