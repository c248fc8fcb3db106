#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/key_bias.h"
#include "base/machine.h"
#include "base/parallel.h"
#include "base/units.h"

namespace qwen2 {
namespace {

// Chunks up to this length go row by row through the decode kernels: reading the weights once is then cheaper
// than a dense product.
constexpr size_t kShortChunk = 16;
// Keys of one part of a long decode attention. Fixed, so that a row's sums do not depend on the batch.
constexpr int64_t kSplitKeys = 512;
// Prompt tokens of one pass, where the user does not say.
constexpr int64_t kPrefillChunk = 256;
// An allowance for the program, its libraries, compiled products and a large tokeniser; see docs/design.md.
constexpr uint64_t kRuntimeBytes = 160 * kMiB;

struct WorkspaceShape {
  int64_t rows, hidden, qkv, gate_up, vocabulary, splits;

  WorkspaceShape(const Qwen2Config& c, const Limits& limits)
      : rows(std::max<int64_t>(round_up(limits.prefill_chunk, 16), cpu::kMaxGemvBatch)),
        hidden(round_up(c.hidden_size, kBlockRows)),
        qkv(round_up(c.qkv_size(), kBlockRows)),
        gate_up(round_up(2 * c.intermediate_size, kBlockRows)),
        vocabulary(round_up(c.vocab_size, kBlockRows)),
        splits((limits.max_model_len + kSplitKeys - 1) / kSplitKeys) {}
};

int64_t widest_columns(const Qwen2Config& c) {
  return std::max({c.hidden_size, c.intermediate_size, c.q_size()});
}

// Floats of each part, in the order of CpuBackend's members.
std::array<int64_t, 11> workspace_parts(const Qwen2Config& c, const Limits& limits) {
  const WorkspaceShape s(c, limits);
  const int64_t partials = cpu::kMaxGemvBatch * c.heads * s.splits;
  return {s.rows * s.hidden,
          s.rows * s.hidden,
          s.rows * s.qkv,
          s.rows * c.q_size(),
          s.rows * s.gate_up,
          s.rows * c.intermediate_size,
          s.rows * c.head_dim,
          limits.max_num_seqs * s.vocabulary,
          partials * c.head_dim,
          partials,
          partials};
}

uint64_t workspace_bytes(const Qwen2Config& c, const Limits& limits) {
  uint64_t bytes = 0;
  for (const int64_t part : workspace_parts(c, limits))
    bytes += static_cast<uint64_t>(round_up(part, 64)) * sizeof(float);
  return bytes;
}

Result<cpu::Isa> choose_isa(const std::string& name) {
  const cpu::Isa best = cpu::detect_isa();
  if (name == "auto") return best;
  const auto isa = cpu::parse_isa(name);
  if (!isa)
    return fail(ErrorKind::kInvalidArgument, "--isa '{}' is not auto, baseline, avx2 or avx512", name);
  if (*isa > best) {
    return fail(ErrorKind::kUnsupported, "--isa {}: this processor supports up to {}", name,
                cpu::isa_name(best));
  }
  return *isa;
}

Result<MemoryPlan> make_plan(const Checkpoint& checkpoint, const Qwen2Config& config, const Limits& asked,
                             cpu::Isa isa, const CpuOptions& options) {
  QWEN2_TRY(const Limits limits, choose_limits(config, asked, kPrefillChunk));
  BackendCosts costs;
  QWEN2_TRY(costs.weights, weight_bytes(checkpoint, config, options.precision));
  costs.workspace =
      workspace_bytes(config, limits) +
      cpu::Dense::workspace_bytes(isa, limits.prefill_chunk, widest_columns(config)) +
      cpu::RowProducts::workspace_bytes(widest_columns(config)) +
      (options.int8_activations
           ? cpu::Int8Products::workspace_bytes(WorkspaceShape(config, limits).rows, widest_columns(config))
           : 0) +
      static_cast<uint64_t>(angle_count(config, limits.max_model_len)) * sizeof(float);
  costs.runtime = kRuntimeBytes;
  costs.available = available_memory_bytes();
  costs.page_tokens = cpu::kPageTokens;
  costs.page_bytes = config.layers * config.kv_heads * cpu::kv_page_bytes(options.kv_bits, config.head_dim);
  return plan_memory(limits, costs);
}

}  // namespace

Result<MemoryPlan> plan_cpu_backend(const Checkpoint& checkpoint, const Qwen2Config& config,
                                    const Limits& limits, const CpuOptions& options) {
  QWEN2_TRY(const cpu::Isa isa, choose_isa(options.isa));
  return make_plan(checkpoint, config, limits, isa, options);
}

Result<std::unique_ptr<Backend>> create_cpu_backend(const Checkpoint& checkpoint, const Limits& limits,
                                                    const CpuOptions& options) {
  QWEN2_TRY(Qwen2Config config,
            parse_qwen2_config(checkpoint.config_json(), checkpoint.generation_config_json()));
  QWEN2_TRY(const cpu::Isa isa, choose_isa(options.isa));
  QWEN2_TRY(const MemoryPlan plan, make_plan(checkpoint, config, limits, isa, options));
  auto backend = std::make_unique<CpuBackend>(std::move(config), plan, cpu::kernels_for(isa), options);
  QWEN2_CHECK(backend->start(checkpoint));
  return backend;
}

Status CpuBackend::start(const Checkpoint& checkpoint) {
  QWEN2_TRY(weights_, load_weights(checkpoint, config_, options_.precision, kernels_));
  QWEN2_TRY(dense_, cpu::Dense::create(kernels_, plan_.limits.prefill_chunk, widest_columns(config_)));
  QWEN2_TRY(row_products_, cpu::RowProducts::create(kernels_, widest_columns(config_)));
  if (options_.int8_activations) {
    if (!weights_.layers.front().gate_up.is_quantized()) {
      return fail(ErrorKind::kInvalidArgument,
                  "--activations int8 needs quantised weights: add --precision int8 or int4");
    }
    QWEN2_TRY(int8_products_, cpu::Int8Products::create(kernels_, WorkspaceShape(config_, plan_.limits).rows,
                                                        widest_columns(config_)));
  }
  QWEN2_TRY(kv_pool_, LargeBuffer::allocate(plan_.kv_pool, "the KV pool"));
  QWEN2_TRY(workspace_, LargeBuffer::allocate(workspace_bytes(config_, plan_.limits), "the workspace"));
  const std::array<float**, 11> members{&hidden_,
                                        &normed_,
                                        &qkv_,
                                        &attended_,
                                        &gate_up_,
                                        &activated_,
                                        &rotation_,
                                        &logits_,
                                        &partial_sums_,
                                        &partial_maxima_,
                                        &partial_denominators_};
  auto* next = workspace_.as<float>();
  const auto parts = workspace_parts(config_, plan_.limits);
  for (size_t i = 0; i < parts.size(); ++i) {
    *members[i] = next;
    next += round_up(parts[i], 64);
  }
  rope_ = rotation_of(config_);
  return options_.key_bias == KeyBiasPlace::kScores ? separate_key_bias() : Status();
}

Status CpuBackend::separate_key_bias() {
  bool any = false;
  for (const LayerWeights& layer : weights_.layers) {
    key_bias_.push_back(take_large_key_bias(config_, layer.qkv_bias + config_.q_size()));
    for (const cpu::KeyBias& bias : key_bias_.back()) any = any || bias.pairs > 0;
  }
  if (!any) return {};
  const int64_t positions = plan_.limits.max_model_len;
  const size_t bytes = static_cast<size_t>(angle_count(config_, positions)) * sizeof(float);
  QWEN2_TRY(angles_, LargeBuffer::allocate(bytes, "rotation angles"));
  fill_angles(config_, rope_, positions, angles_.as<float>());
  return {};
}

std::string CpuBackend::describe() const {
  return fmt::format("cpu {} {} threads", cpu::isa_name(kernels_.isa), parallel_threads());
}

double CpuBackend::measure_read_bandwidth() const {
  constexpr size_t kSmallest = 512 * kMiB;  // beyond every cache
  const LargeBuffer* memory = &weights_.storage;
  LargeBuffer own;
  if (memory->size() < kSmallest) {
    auto buffer = LargeBuffer::allocate(kSmallest, "the bandwidth measurement");
    if (!buffer) return 0;
    own = std::move(*buffer);
    std::memset(own.data(), 1, own.size());  // a page that was never written is one shared page of zeros
    memory = &own;
  }
  std::atomic<uint64_t> sum = 0;
  const double start = now_seconds();
  parallel_ranges(static_cast<int64_t>(memory->size()) / 64, [&](int64_t begin, int64_t end) {
    sum += kernels_.read_lines(memory->data() + begin * 64, end - begin);
  });
  return static_cast<double>(memory->size()) / (now_seconds() - start);
}

int64_t CpuBackend::head_page_bytes() const {
  return cpu::kv_page_bytes(options_.kv_bits, config_.head_dim);
}

std::byte* CpuBackend::layer_cache(int64_t layer) const {
  return kv_pool_.data() + layer * plan_.kv_pages * config_.kv_heads * head_page_bytes();
}

// Null where the cached keys of this layer and KV head hold their whole bias.
const cpu::KeyBias* CpuBackend::key_bias(int64_t layer, int64_t head) const {
  if (key_bias_.empty()) return nullptr;
  const cpu::KeyBias& bias = key_bias_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
  return bias.pairs > 0 ? &bias : nullptr;
}

Result<Logits> CpuBackend::forward(std::span<const Chunk> chunks) {
  // Short chunks first and together, long ones after them one by one; their logits lie in that order.
  std::vector<Row> short_rows;
  std::vector<std::vector<Row>> long_chunks;
  const auto is_short = [](const Chunk& chunk) { return chunk.tokens.size() <= kShortChunk; };
  logits_order_.assign(chunks.size(), -1);
  int64_t wanted = 0;
  for (const bool short_pass : {true, false}) {
    for (size_t c = 0; c < chunks.size(); ++c) {
      const Chunk& chunk = chunks[c];
      if (is_short(chunk) != short_pass) continue;
      std::vector<Row>& rows = short_pass ? short_rows : long_chunks.emplace_back();
      for (size_t i = 0; i < chunk.tokens.size(); ++i) {
        rows.push_back({chunk.tokens[i], chunk.position + static_cast<int64_t>(i), chunk.pages, -1});
      }
      if (chunk.needs_logits) rows.back().logits_index = logits_order_[c] = wanted++;
    }
  }
  std::erase(logits_order_, -1);
  if (wanted > plan_.limits.max_num_seqs) return fail(ErrorKind::kInternal, "{} chunks want logits", wanted);
  for (std::span<const Row> rest = short_rows; !rest.empty();) {
    const auto count = std::min<size_t>(rest.size(), cpu::kMaxGemvBatch);
    QWEN2_CHECK(run_rows(rest.first(count), Products::kRowByRow));
    rest = rest.subspan(count);
  }
  for (const auto& rows : long_chunks) QWEN2_CHECK(run_rows(rows, Products::kDense));
  return Logits{logits_, round_up(config_.vocab_size, kBlockRows), config_.vocab_size, logits_order_};
}

Status CpuBackend::forward_all(const Chunk& chunk, const LogitSink& sink) {
  std::vector<Row> rows;
  rows.reserve(chunk.tokens.size());
  for (size_t i = 0; i < chunk.tokens.size(); ++i)
    rows.push_back({chunk.tokens[i], chunk.position + static_cast<int64_t>(i), chunk.pages, -1});
  // As forward() would run it. Then the head, for as many rows at a time as the logits have room for.
  QWEN2_CHECK(run_rows(rows, rows.size() <= kShortChunk ? Products::kRowByRow : Products::kDense));
  const auto batch = std::min<int64_t>(plan_.limits.max_num_seqs, cpu::kMaxGemvBatch);
  for (int64_t begin = 0; begin < static_cast<int64_t>(rows.size()); begin += batch) {
    const int64_t count = std::min(batch, static_cast<int64_t>(rows.size()) - begin);
    std::vector<int64_t> places(static_cast<size_t>(count));
    std::iota(places.begin(), places.end(), begin);
    QWEN2_CHECK(head(places, 0));
    for (int64_t i = 0; i < count; ++i) {
      const float* logits = logits_ + i * round_up(config_.vocab_size, kBlockRows);
      sink(begin + i, {logits, static_cast<size_t>(config_.vocab_size)});
    }
  }
  return {};
}

// The model, top to bottom.
Status CpuBackend::run_rows(std::span<const Row> rows, Products products) {
  const auto count = static_cast<int64_t>(rows.size());
  embed(rows);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    normalise(w.input_norm, count);
    QWEN2_CHECK(attention_block(w, layer, rows, products));
    normalise(w.post_attention_norm, count);
    QWEN2_CHECK(mlp_block(w, count, products));
  }
  // Only of the rows whose next token is sampled. Logits are numbered in the order in which rows are run, so
  // these lie one after the other.
  std::vector<int64_t> places;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[static_cast<size_t>(i)].logits_index >= 0) places.push_back(i);
  }
  return places.empty() ? Status() : head(places, rows[static_cast<size_t>(places.front())].logits_index);
}

void CpuBackend::embed(std::span<const Row> rows) {
  const int64_t stride = round_up(config_.hidden_size, kBlockRows);
  const int64_t half = config_.head_dim / 2;
  parallel_ranges(static_cast<int64_t>(rows.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      weights_.embedding.get_row(row.token, hidden_ + i * stride);
      float* cosines = rotation_ + i * config_.head_dim;
      for (int64_t d = 0; d < half; ++d) {
        const double angle = static_cast<double>(row.position) * rope_.frequencies[static_cast<size_t>(d)];
        cosines[d] = static_cast<float>(std::cos(angle) * rope_.magnitude);
        cosines[half + d] = static_cast<float>(std::sin(angle) * rope_.magnitude);
      }
    }
  });
}

Status CpuBackend::attention_block(const LayerWeights& w, int64_t layer, std::span<const Row> rows,
                                   Products products) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t hidden = round_up(config_.hidden_size, kBlockRows);
  // Queries and keys in two terms: softmax amplifies the rounding of its scores.
  QWEN2_CHECK(linear(w.qkv, normed_, hidden, count, products, qkv_, round_up(config_.qkv_size(), kBlockRows),
                     false, cpu::Rounding::kTwoBf16));
  rotate_and_store(w, layer, rows);
  if (products == Products::kDense) {
    attend_chunk(layer, rows);
  } else {
    attend_single_rows(layer, rows);
  }
  return linear(w.attention_output, attended_, config_.q_size(), count, products, hidden_, hidden, true);
}

Status CpuBackend::mlp_block(const LayerWeights& w, int64_t count, Products products) {
  const int64_t hidden = round_up(config_.hidden_size, kBlockRows);
  const int64_t width = config_.intermediate_size;
  const int64_t stride = round_up(2 * width, kBlockRows);
  QWEN2_CHECK(linear(w.gate_up, normed_, hidden, count, products, gate_up_, stride, false));
  parallel_ranges(count * width / 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * 16; i < end * 16;) {  // pieces of rows, so that one row uses every thread too
      const int64_t row = i / width;
      const int64_t from = i % width;
      const int64_t size = std::min(width - from, end * 16 - i);
      const float* gate = gate_up_ + row * stride + from;
      kernels_.swiglu(gate, gate + width, size, activated_ + row * width + from);
      i += size;
    }
  });
  return linear(w.down, activated_, width, count, products, hidden_, hidden, true);
}

Status CpuBackend::linear(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t count,
                          Products products, float* y, int64_t y_stride, bool accumulate,
                          cpu::Rounding rounding) {
  if (int8_products_ && w.is_quantized()) {
    int8_products_->run(w, x, x_stride, count, y, y_stride, accumulate);
    return {};
  }
  if (products == Products::kDense)
    return dense_->run(w, x, x_stride, count, y, y_stride, accumulate, rounding);
  row_products_->run(w, x, x_stride, count, y, y_stride, accumulate);
  return {};
}

void CpuBackend::normalise(const float* weight, int64_t count) {
  const int64_t stride = round_up(config_.hidden_size, kBlockRows);
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.rms_norm(hidden_ + i * stride, weight, config_.rms_norm_eps, config_.hidden_size,
                        normed_ + i * stride);
    }
  };
  if (count < 4) {
    rows(0, count);  // shorter than waking the other threads
  } else {
    parallel_ranges(count, rows);
  }
}

void CpuBackend::rotate_and_store(const LayerWeights& w, int64_t layer, std::span<const Row> rows) {
  const int64_t stride = round_up(config_.qkv_size(), kBlockRows);
  const int64_t head_stride = head_page_bytes();
  const auto store = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row& row = rows[static_cast<size_t>(i)];
      const uint32_t page = row.pages[static_cast<size_t>(row.position / cpu::kPageTokens)];
      const float* cosines = rotation_ + i * config_.head_dim;
      kernels_.rope({qkv_ + i * stride, w.qkv_bias, cosines, cosines + config_.head_dim / 2,
                     static_cast<int>(config_.heads), static_cast<int>(config_.kv_heads),
                     static_cast<int>(config_.head_dim),
                     1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                     layer_cache(layer) + page * config_.kv_heads * head_stride, head_stride,
                     static_cast<int>(row.position % cpu::kPageTokens), options_.kv_bits});
    }
  };
  if (rows.size() < 4) {
    store(0, static_cast<int64_t>(rows.size()));
  } else {
    parallel_ranges(static_cast<int64_t>(rows.size()), store);
  }
}

// Rows of different sequences: work is a part of the keys of one row and KV head.
void CpuBackend::attend_single_rows(int64_t layer, std::span<const Row> rows) {
  const int64_t group = config_.group();
  const int64_t dim = config_.head_dim;
  const int64_t splits = WorkspaceShape(config_, plan_.limits).splits;
  const int64_t head_bytes = head_page_bytes();
  const int64_t qkv_stride = round_up(config_.qkv_size(), kBlockRows);
  const auto count = static_cast<int64_t>(rows.size());
  int64_t deepest = 0;
  for (const Row& row : rows) deepest = std::max(deepest, row.position);
  const int64_t parts = deepest / kSplitKeys + 1;
  const auto partial = [&](int64_t i, int64_t h, int64_t s) {
    return ((i * config_.kv_heads + h) * splits + s) * group;
  };
  parallel_items(count * config_.kv_heads * parts, [&](int64_t item) {
    const int64_t s = item % parts;
    const int64_t h = item / parts % config_.kv_heads;
    const int64_t i = item / parts / config_.kv_heads;
    const Row& row = rows[static_cast<size_t>(i)];
    if (s * kSplitKeys > row.position) return;
    const int64_t p = partial(i, h, s);
    kernels_.attention({qkv_ + i * qkv_stride + h * group * dim, qkv_stride, 1, static_cast<int>(group),
                        static_cast<int>(dim), row.position, s * kSplitKeys,
                        std::min((s + 1) * kSplitKeys, row.position + 1), layer_cache(layer) + h * head_bytes,
                        config_.kv_heads * head_bytes, row.pages.data(), partial_sums_ + p * dim,
                        partial_maxima_ + p, partial_denominators_ + p, options_.kv_bits, key_bias(layer, h),
                        angles_.as<float>()});
  });
  for (int64_t i = 0; i < count; ++i) {
    const auto own_parts = static_cast<int>(rows[static_cast<size_t>(i)].position / kSplitKeys + 1);
    for (int64_t q = 0; q < config_.heads; ++q) {
      const int64_t p = partial(i, q / group, 0) + q % group;
      kernels_.merge_attention(partial_sums_ + p * dim, group * dim, partial_maxima_ + p,
                               partial_denominators_ + p, group, own_parts, static_cast<int>(dim),
                               attended_ + i * config_.q_size() + q * dim);
    }
  }
}

// Consecutive rows of one sequence: work is a tile of neighbouring tokens of one KV head.
void CpuBackend::attend_chunk(int64_t layer, std::span<const Row> rows) {
  const int64_t group = config_.group();
  const int64_t dim = config_.head_dim;
  const int64_t head_bytes = head_page_bytes();
  const int64_t qkv_stride = round_up(config_.qkv_size(), kBlockRows);
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t tile = std::max<int64_t>(1, cpu::kMaxAttentionRows / group);
  const int64_t tiles = (count + tile - 1) / tile;
  parallel_items(tiles * config_.kv_heads, [&](int64_t item) {
    alignas(64) std::array<float, size_t{cpu::kMaxAttentionRows} * cpu::kMaxHeadDim> sums;
    std::array<float, cpu::kMaxAttentionRows> maxima;
    std::array<float, cpu::kMaxAttentionRows> denominators;
    const int64_t h = item % config_.kv_heads;
    const int64_t first = item / config_.kv_heads * tile;
    const int64_t tokens = std::min(tile, count - first);
    const int64_t position = rows[static_cast<size_t>(first)].position;
    kernels_.attention({qkv_ + first * qkv_stride + h * group * dim, qkv_stride, static_cast<int>(tokens),
                        static_cast<int>(group), static_cast<int>(dim), position, 0, position + tokens,
                        layer_cache(layer) + h * head_bytes, config_.kv_heads * head_bytes,
                        rows[0].pages.data(), sums.data(), maxima.data(), denominators.data(),
                        options_.kv_bits, key_bias(layer, h), angles_.as<float>()});
    for (int64_t r = 0; r < tokens * group; ++r) {
      float* out = attended_ + (first + r / group) * config_.q_size() + (h * group + r % group) * dim;
      kernels_.merge_attention(sums.data() + r * dim, 0, &maxima[static_cast<size_t>(r)],
                               &denominators[static_cast<size_t>(r)], 0, 1, static_cast<int>(dim), out);
    }
  });
}

// Logits of the rows at `places`, from the `first`-th on.
Status CpuBackend::head(std::span<const int64_t> places, int64_t first) {
  const int64_t stride = round_up(config_.hidden_size, kBlockRows);
  const int64_t vocabulary = round_up(config_.vocab_size, kBlockRows);
  for (size_t i = 0; i < places.size(); ++i) {
    kernels_.rms_norm(hidden_ + places[i] * stride, weights_.final_norm, config_.rms_norm_eps,
                      config_.hidden_size, normed_ + static_cast<int64_t>(i) * stride);
  }
  return linear(weights_.head, normed_, stride, static_cast<int64_t>(places.size()), Products::kRowByRow,
                logits_ + first * vocabulary, vocabulary, false);
}

}  // namespace qwen2
