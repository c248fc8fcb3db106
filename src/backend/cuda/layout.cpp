#include "backend/cuda/layout.h"

#include <algorithm>

#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

using cuda::DeviceMatrix;
using cuda::MatrixForm;
using Format = std::optional<QuantizedFormat>;

// The default of --prefill-chunk on a GPU.
constexpr int64_t kPrefillChunk = 1024;

// The format in device memory. Groups must be multiples of a tensor core step of 16 columns; otherwise the
// matrix is expanded to fp16.
Format on_the_card(const Format& format) {
  return format && format->group % 16 == 0 ? format : std::nullopt;
}

MatrixForm form_of(const Format& format) {
  if (!format) return MatrixForm::kF16;
  const bool plain = format->scale == ScaleForm::kF16 && format->offset == OffsetForm::kNone;
  if (format->bits == 8) return plain ? MatrixForm::kInt8 : MatrixForm::kInt8General;
  return plain ? MatrixForm::kInt4 : MatrixForm::kInt4General;
}

DeviceMatrix place(const Format& format, int64_t rows, int64_t cols, CudaArena& arena) {
  DeviceMatrix m;
  m.form = form_of(format);
  m.rows = static_cast<int>(round_up(rows, cuda::kTileRows));
  m.cols = static_cast<int>(cols);
  m.row_bytes = cuda::padded_row_bytes(m.form, cols);
  m.codes = arena.take<uint8_t>(m.rows * m.row_bytes);
  if (!format) return m;
  m.group = static_cast<int>(format->group);
  m.groups = static_cast<int>(cols / format->group);
  const int64_t scales = int64_t{m.rows} * m.groups;
  if (cuda::is_general(m.form)) {
    m.scales = arena.take<float>(scales);
    m.minima = arena.take<float>(scales);
  } else {
    m.scales = arena.take<uint16_t>(scales);
  }
  if (format->permuted) m.order = arena.take<int32_t>(cols);
  return m;
}

// Neighbouring sources of one format become one part. The rows of gate and up alternate, so they share a
// part.
Result<CudaMatrix> lay_out(const Checkpoint& checkpoint, const Precision& precision, const MatrixEntry& entry,
                           CudaArena& arena) {
  std::vector<std::pair<Format, int64_t>> runs;
  for (const TensorSource& source : entry.sources) {
    QWEN2_TRY(const Format kept, kept_format(checkpoint, precision, entry, source));
    const Format format = on_the_card(kept);
    // Column orders may differ from tensor to tensor.
    const bool apart = format && format->permuted && entry.role == MatrixRole::kQkv;
    if (!runs.empty() && runs.back().first == format && !apart) {
      runs.back().second += source.rows;
    } else {
      runs.emplace_back(format, source.rows);
    }
  }
  // Two formats become two parts. Gate and up must share a part, and so must fp16 and quantised rows, because
  // they read activations in different layouts: these are expanded to fp16.
  const auto is_fp16 = [](const auto& run) { return !run.first; };
  if (runs.size() > 1 &&
      (entry.role == MatrixRole::kGateUp || std::any_of(runs.begin(), runs.end(), is_fp16)))
    runs = {{Format(), entry.rows()}};
  CudaMatrix matrix;
  int64_t row = 0;
  for (const auto& [format, rows] : runs) {
    matrix.push_back({static_cast<int>(row), place(format, rows, entry.cols, arena)});
    row += rows;
  }
  return matrix;
}

int64_t largest_expanded(const CudaWeights& weights) {
  int64_t bytes = 0;
  for (const CudaLayer& layer : weights.layers) {
    for (const CudaMatrix* matrix : {&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down}) {
      int64_t rows = 0;
      bool quantized = matrix->size() > 1;
      for (const CudaMatrixPart& part : *matrix) {
        rows += part.matrix.rows;
        quantized = quantized || part.matrix.form != MatrixForm::kF16;
      }
      if (quantized) bytes = std::max(bytes, rows * cuda_row_stride(matrix->front().matrix.cols));
    }
  }
  return bytes;
}

}  // namespace

int64_t cuda_row_stride(int64_t cols) {
  return round_up(cols, 128);
}

Result<CudaWeights> lay_out_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config,
                                         const Precision& precision, CudaArena& arena) {
  if (config.head_dim != 64 && config.head_dim != 128) {
    return fail(ErrorKind::kUnsupported,
                "--device cuda: attention heads of {} are not supported (64 and 128 are)", config.head_dim);
  }
  CudaWeights w;
  w.layers.resize(static_cast<size_t>(config.layers));
  const Inventory inventory(config);
  for (const MatrixEntry& entry : inventory.matrices) {
    QWEN2_TRY(matrix_of(w, entry), lay_out(checkpoint, precision, entry, arena));
  }
  for (const VectorEntry& entry : inventory.vectors) vector_of(w, entry) = arena.take<float>(entry.size());
  if (config.tied_head) w.head = w.embedding;
  return w;
}

int64_t cuda_stored_row(const Qwen2Config& config, const MatrixEntry& entry, size_t source, int64_t row) {
  constexpr int64_t kHalfTile = cuda::kTileRows / 2;
  if (entry.role == MatrixRole::kGateUp)
    return row / kHalfTile * cuda::kTileRows + row % kHalfTile + (source == 1 ? kHalfTile : 0);
  int64_t first = 0;
  for (size_t i = 0; i < source; ++i) first += entry.sources[i].rows;
  if (entry.role != MatrixRole::kQkv || source == 2) return first + row;
  const int64_t half = config.head_dim / 2;
  const int64_t dim = row % config.head_dim;
  const int64_t pair = dim % half;
  return first + row - dim + pair / kHalfTile * cuda::kTileRows + pair % kHalfTile +
         (dim < half ? 0 : kHalfTile);
}

CudaWorkspace lay_out_cuda_workspace(const Qwen2Config& c, const Limits& limits, const CudaWeights& weights,
                                     int64_t kv_pages, CudaArena& arena) {
  constexpr int64_t kRows = cuda::kMaxRows;
  const int64_t chunk = limits.prefill_chunk;
  const int64_t widest = cuda_row_stride(std::max({c.hidden_size, c.intermediate_size, c.q_size()}));
  CudaWorkspace w;
  w.input_rows = std::max(kRows, chunk);
  // At most every page of the pool, one page for padding rows, and every token that a penalty may need.
  w.input_words = round_up(kv_pages + 1 + std::min(limits.max_num_seqs, kRows) * limits.max_model_len, 4);
  w.inputs = arena.take<std::byte>(w.input_bytes());
  w.tokens = arena.take<int32_t>(2 * limits.max_num_seqs);
  w.best = arena.take<unsigned long long>(kRows);
  w.rotations = arena.take<float>(round_up(limits.max_model_len, cuda::kPageTokens) * c.head_dim);
  w.key_bias = arena.take<std::byte>(c.layers * c.kv_heads * cuda::kMaxBiasPairs * 12);
  w.row_max = arena.take<uint32_t>(c.layers * kRows + 1);
  w.layers_table = arena.take<std::byte>(c.layers * cuda::kLayerEntryBytes);
  w.arrived = arena.take<uint32_t>(kRows * c.heads);
  w.logits = arena.take<float>(kRows * round_up(c.vocab_size, 128));
  w.gemm = arena.take<std::byte>(kCudaGemmWorkspace);
  w.prompt_weights = arena.take<uint16_t>(largest_expanded(weights));
  for (float*& hidden : w.hidden) hidden = arena.take<float>(kRows * c.hidden_size);
  w.partials = arena.take<float>(kDownSplit * kRows * c.hidden_size);
  w.q = arena.take<float>(kRows * c.q_size());
  w.new_kv = arena.take<float>(kRows * 2 * c.kv_size());
  w.products = arena.take<float>(kRows * c.intermediate_size);
  w.x = arena.take<uint16_t>(kRows * widest);
  w.attended = arena.take<uint16_t>(kRows * widest);
  w.permuted = arena.take<uint16_t>(kRows * widest);
  w.x_scales = arena.take<float>(kRows * widest / cuda::kActivationGroup);
  w.permuted_scales = arena.take<float>(kRows * widest / cuda::kActivationGroup);
  w.x_factors = arena.take<float>(kRows);
  w.split_sums = arena.take<float>(kRows * c.heads * cuda::kMaxSplits * c.head_dim);
  w.split_scalars = arena.take<float>(kRows * c.heads * cuda::kMaxSplits * 2);
  w.prompt_hidden = arena.take<float>(chunk * c.hidden_size);
  w.prompt_qkv = arena.take<float>(chunk * round_up(c.qkv_size(), cuda::kTileRows));
  w.prompt_out = arena.take<float>(chunk * round_up(c.hidden_size, cuda::kTileRows));
  w.prompt_gate_up = arena.take<float>(chunk * 2 * std::max(c.intermediate_size, c.kv_size()));
  w.prompt_q = arena.take<float>(chunk * c.q_size());
  w.prompt_x = arena.take<uint16_t>(chunk * widest);
  w.prompt_row_max = arena.take<uint32_t>(chunk);
  return w;
}

cuda::ActivationLayout activation_layout(const CudaMatrix& matrix) {
  const cuda::ActivationLayout first = cuda::activation_layout(matrix.front().matrix);
  const bool same = std::all_of(matrix.begin(), matrix.end(), [&](const CudaMatrixPart& part) {
    return part.matrix.order == nullptr && cuda::activation_layout(part.matrix) == first;
  });
  return same ? first : cuda::ActivationLayout::kRows;
}

uint64_t cuda_decode_bytes(const CudaWeights& weights) {
  uint64_t bytes = 0;
  const auto add = [&](const CudaMatrix& matrix) {
    for (const CudaMatrixPart& part : matrix) {
      const DeviceMatrix& m = part.matrix;
      const auto scales = static_cast<uint64_t>(m.rows) * static_cast<uint64_t>(m.groups);
      bytes += static_cast<uint64_t>(m.rows * m.row_bytes) + scales * (cuda::is_general(m.form) ? 8 : 2);
    }
  };
  for (const CudaLayer& layer : weights.layers) {
    for (const CudaMatrix* matrix : {&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down})
      add(*matrix);
  }
  add(weights.head);
  return bytes;
}

namespace {

struct CudaCosts {
  Limits limits;
  BackendCosts costs;
  uint64_t decode_bytes;
};

Result<CudaCosts> costs_of(const Checkpoint& checkpoint, const Qwen2Config& config, const Limits& asked,
                           const CudaOptions& options, const CudaOverhead& overhead) {
  QWEN2_TRY(const Limits limits, choose_limits(config, asked, kPrefillChunk));
  CudaArena weights_arena(nullptr);
  QWEN2_TRY(const CudaWeights weights,
            lay_out_cuda_weights(checkpoint, config, options.precision, weights_arena));
  BackendCosts costs;
  costs.weights = weights_arena.used();
  costs.runtime = overhead.context;
  costs.graphs = overhead.graphs;
  costs.available = overhead.available;
  costs.page_tokens = cuda::kPageTokens;
  costs.page_bytes = config.layers * config.kv_heads * cuda::kv_page_bytes(options.kv_bits, config.head_dim);
  // The size of the page tables depends on the pool, and the pool on the workspace: so every page is counted.
  const int64_t pages =
      limits.max_num_seqs * ((limits.max_model_len + cuda::kPageTokens - 1) / cuda::kPageTokens);
  CudaArena workspace(nullptr);
  lay_out_cuda_workspace(config, limits, weights, pages, workspace);
  // Padding rows write to one more page of KV.
  costs.workspace = workspace.used() + static_cast<uint64_t>(costs.page_bytes);
  return CudaCosts{limits, costs, cuda_decode_bytes(weights)};
}

}  // namespace

Result<CudaPlanDraft> draft_cuda_plan(const Checkpoint& checkpoint, const Qwen2Config& config,
                                      const Limits& limits, const CudaOptions& options,
                                      const CudaOverhead& overhead) {
  QWEN2_TRY(const CudaCosts own, costs_of(checkpoint, config, limits, options, overhead));
  const PlanDraft draft = draft_memory_plan(own.limits, own.costs);
  CudaPlanDraft result{draft.plan, draft.cure.empty(), draft.cure, own.decode_bytes, 0};
  const int64_t pages_each = (own.limits.max_model_len + cuda::kPageTokens - 1) / cuda::kPageTokens;
  if (result.fits) result.resident_requests = draft.plan.kv_pages / pages_each;
  return result;
}

Result<MemoryPlan> plan_cuda(const Checkpoint& checkpoint, const Qwen2Config& config, const Limits& limits,
                             const CudaOptions& options, const CudaOverhead& overhead) {
  QWEN2_TRY(const CudaCosts own, costs_of(checkpoint, config, limits, options, overhead));
  return plan_memory(own.limits, own.costs);
}

}  // namespace qwen2
