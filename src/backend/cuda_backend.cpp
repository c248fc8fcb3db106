#include "backend/cuda_backend.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/nvml.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

using cuda::ProductArgs;
using cuda::ProductInput;
using cuda::ProductOutput;
using cuda::Row;

static_assert(sizeof(Row) == CudaWorkspace::kRowBytes);
static_assert(sizeof(cuda::SampleRow) == CudaWorkspace::kSampleBytes);

// One row that every block of a product stages for itself, from fp16 or float activations.
bool stages_plain(const cuda::DeviceMatrix& matrix, int rows) {
  return rows == 1 && cuda::can_stage(matrix, false);
}

}  // namespace

std::optional<uint64_t> CudaBackend::device_memory() const {
  return nvml_process_memory(bus_id_);
}

int CudaBackend::row_bucket(int64_t rows) {
  return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

int64_t CudaBackend::vocabulary_stride() const {
  return round_up(config_.vocab_size, 128);
}

cuda::HeadShape CudaBackend::heads() const {
  return {static_cast<int>(config_.heads), static_cast<int>(config_.kv_heads),
          static_cast<int>(config_.head_dim)};
}

int CudaBackend::split_class(int64_t length) const {
  const int splits = cuda::split_count(static_cast<int>(length));
  return *std::lower_bound(kSplitClasses.begin(), kSplitClasses.end(), splits);
}

std::string CudaBackend::describe() const {
  return fmt::format("cuda {}", device_name_);
}

size_t CudaBackend::bytes_per_decode_step() const {
  return cuda_decode_bytes(weights_);
}

double CudaBackend::measure_read_bandwidth() const {
  constexpr int kRepeats = 5;
  std::vector<double> seconds;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  if (cudaEventCreate(&begin) != cudaSuccess || cudaEventCreate(&end) != cudaSuccess) return 0;
  // The larger of the two big allocations: beyond the caches for every model worth measuring.
  const DeviceBuffer& memory = weights_memory_.size() > kv_memory_.size() ? weights_memory_ : kv_memory_;
  for (int i = 0; i < kRepeats; ++i) {
    cudaEventRecord(begin, stream_);
    cuda::read_all(memory.data(), memory.size(), w_.arrived, stream_);
    cudaEventRecord(end, stream_);
    float milliseconds = 0;
    if (cudaEventSynchronize(end) != cudaSuccess) return 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    seconds.push_back(milliseconds / 1e3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(seconds.begin(), seconds.end());
  return static_cast<double>(memory.size()) / seconds[kRepeats / 2];
}

// Short chunks first and together, in groups of as many rows as graphs were recorded for; long ones after
// them.
Result<std::vector<CudaBackend::Group>> CudaBackend::group(std::span<const Chunk> chunks) {
  logits_order_.assign(chunks.size(), -1);
  std::vector<Group> groups;
  int64_t wanted = 0;
  const auto add = [&](Group& group, const Chunk& piece, size_t c, bool last) {
    group.pieces.push_back(piece);
    group.rows += static_cast<int64_t>(piece.tokens.size());
    if (!last || !chunks[c].wants_logits) return;
    logits_order_[c] = wanted;
    group.wanted.push_back({group.rows - 1, wanted++, piece.pending});
  };
  for (size_t c = 0; c < chunks.size(); ++c) {
    const auto size = static_cast<int64_t>(chunks[c].tokens.size());
    if (size > kShortChunk) continue;
    if (groups.empty() || groups.back().rows + size > row_limit_) groups.emplace_back();
    add(groups.back(), chunks[c], c, true);
  }
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (static_cast<int64_t>(chunks[c].tokens.size()) <= kShortChunk) continue;
    Group& group = groups.emplace_back();
    add(group, chunks[c], c, true);
    for (Group::Wanted& own : group.wanted) own.row = 0;  // the only row that the head is run for
    group.is_prompt = true;
  }
  if (wanted > plan_.limits.max_num_seqs) return fail(ErrorKind::kInternal, "{} chunks want logits", wanted);
  return groups;
}

Result<Logits> CudaBackend::forward(std::span<const Chunk> chunks) {
  QWEN2_TRY(const auto groups, group(chunks));
  for (const Group& group : groups) {
    QWEN2_CHECK(run_group(group, {}));
    for (const Group::Wanted& wanted : group.wanted) QWEN2_CHECK(fetch_logits(wanted.row, wanted.place));
  }
  QWEN2_CHECK(cuda_status(cudaStreamSynchronize(stream_), "a step"));
  std::erase(logits_order_, -1);
  return Logits{reinterpret_cast<const float*>(host_logits_.data()), vocabulary_stride(), config_.vocab_size,
                logits_order_};
}

Status CudaBackend::begin(std::span<const Chunk> chunks, std::span<Sampler* const> samplers) {
  if (begun_.size() == 2) return fail(ErrorKind::kInternal, "two steps are in flight already");
  QWEN2_TRY(const auto groups, group(chunks));
  std::erase(logits_order_, -1);
  // By place, which is the order in which groups take them.
  std::vector<Sampler*> by_place(samplers.size());
  for (size_t i = 0; i < samplers.size(); ++i) by_place[static_cast<size_t>(logits_order_[i])] = samplers[i];
  for (const Group& group : groups) QWEN2_CHECK(run_group(group, by_place));
  Begun step{{samplers.begin(), samplers.end()},
             logits_order_,
             token_place(steps_),
             done_[static_cast<size_t>(steps_ % 2)]};
  if (!samplers.empty()) {
    const auto offset = static_cast<size_t>(step.first_token) * sizeof(int32_t);
    QWEN2_CHECK(
        cuda_status(cudaMemcpyAsync(host_tokens_.data() + offset, w_.tokens + step.first_token,
                                    samplers.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream_),
                    "fetching tokens"));
  }
  QWEN2_CHECK(cuda_status(cudaEventRecord(step.done, stream_), "a step"));
  // A chunk of the next step says "the i-th token" in the order of the samplers.
  pending_order_ = logits_order_;
  begun_.push_back(std::move(step));
  ++steps_;
  return {};
}

Result<std::vector<TokenId>> CudaBackend::finish() {
  if (begun_.empty()) return fail(ErrorKind::kInternal, "no step is in flight");
  const Begun step = std::move(begun_.front());
  begun_.pop_front();
  QWEN2_CHECK(cuda_status(cudaEventSynchronize(step.done), "a step"));
  const auto* sampled = reinterpret_cast<const int32_t*>(host_tokens_.data()) + step.first_token;
  std::vector<TokenId> tokens(step.samplers.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = sampled[step.order[i]];
    step.samplers[i]->accept(tokens[i]);
  }
  return tokens;
}

Status CudaBackend::forward_all(const Chunk& chunk, const LogitSink& sink) {
  const auto size = static_cast<int64_t>(chunk.tokens.size());
  const auto hand_over = [&](int64_t first, int64_t count) -> Status {
    for (int64_t done = 0; done < count;) {
      const int64_t some = std::min(count - done, plan_.limits.max_num_seqs);
      for (int64_t i = 0; i < some; ++i) QWEN2_CHECK(fetch_logits(done + i, i));
      QWEN2_CHECK(cuda_status(cudaStreamSynchronize(stream_), "a step"));
      for (int64_t i = 0; i < some; ++i) {
        const auto* logits = reinterpret_cast<const float*>(host_logits_.data()) + i * vocabulary_stride();
        sink(first + done + i, {logits, static_cast<size_t>(config_.vocab_size)});
      }
      done += some;
    }
    return {};
  };
  Group group;
  group.pieces = {chunk};
  group.rows = size;
  group.is_prompt = size > kShortChunk;
  QWEN2_CHECK(run_group(group, {}));
  if (!group.is_prompt) return hand_over(0, size);
  for (int64_t first = 0; first < size; first += row_limit_) {
    const int64_t count = std::min(row_limit_, size - first);
    QWEN2_CHECK(prompt_head(first, count));
    QWEN2_CHECK(hand_over(first, count));
  }
  return {};
}

Status CudaBackend::fetch_logits(int64_t row, int64_t place) {
  const int64_t stride = vocabulary_stride();
  return cuda_status(
      cudaMemcpyAsync(host_logits_.data() + place * stride * sizeof(float), w_.logits + row * stride,
                      static_cast<size_t>(config_.vocab_size) * sizeof(float), cudaMemcpyDeviceToHost,
                      stream_),
      "fetching logits");
}

// Everything of a group that the card needs, in one copy.
Status CudaBackend::upload(const Group& group, int64_t padded_rows, std::span<Sampler* const> samplers) {
  const Inputs& inputs = inputs_[next_inputs_];
  next_inputs_ = 1 - next_inputs_;
  QWEN2_CHECK(cuda_status(cudaEventSynchronize(inputs.sent), "sending a step"));
  std::byte* host = inputs.host.data();
  auto* rows = reinterpret_cast<Row*>(host);
  auto* words = reinterpret_cast<uint32_t*>(host + w_.words_offset());
  int32_t word = 0;
  int64_t row = 0;
  words[word++] = static_cast<uint32_t>(plan_.kv_pages);  // where padding rows write
  for (const Chunk& chunk : group.pieces) {
    const auto size = static_cast<int64_t>(chunk.tokens.size());
    const int64_t pages = (chunk.position + size + cuda::kPageTokens - 1) / cuda::kPageTokens;
    for (int64_t i = 0; i < size; ++i) {
      rows[row++] = {chunk.tokens[static_cast<size_t>(i)], static_cast<int32_t>(chunk.position + i), word,
                     static_cast<int32_t>(chunk.position)};
    }
    if (chunk.pending >= 0) {
      const int64_t place = token_place(steps_ + 1) + pending_order_[static_cast<size_t>(chunk.pending)];
      rows[row - 1].token = static_cast<int32_t>(-1 - place);
    }
    for (int64_t i = 0; i < pages; ++i) words[word++] = chunk.pages[static_cast<size_t>(i)];
  }
  for (; row < padded_rows; ++row) rows[row] = {0, 0, 0, 0};
  seen_offset_ = word;
  if (!samplers.empty()) {
    auto* samples = reinterpret_cast<cuda::SampleRow*>(host + w_.samples_offset());
    write_samples(group, samplers, samples, words, word);
  }
  const auto bytes = static_cast<size_t>(w_.words_offset()) + static_cast<size_t>(word) * sizeof(uint32_t);
  QWEN2_CHECK(cuda_status(cudaMemcpyAsync(w_.inputs, host, bytes, cudaMemcpyHostToDevice, stream_),
                          "sending a step"));
  return cuda_status(cudaEventRecord(inputs.sent, stream_), "sending a step");
}

void CudaBackend::write_samples(const Group& group, std::span<Sampler* const> samplers,
                                cuda::SampleRow* samples, uint32_t* words, int32_t& word) const {
  for (size_t i = 0; i < group.wanted.size(); ++i) {
    const Group::Wanted& wanted = group.wanted[i];
    const Sampler& sampler = *samplers[static_cast<size_t>(wanted.place)];
    const SamplingParams& p = sampler.params();
    const auto seen = sampler.seen();
    cuda::SampleRow& sample = samples[i];
    sample.logits_row = static_cast<int32_t>(wanted.row);
    sample.place = static_cast<int32_t>(token_place(steps_) + wanted.place);
    sample.temperature = p.temperature;
    sample.top_p = p.top_p;
    sample.top_k = static_cast<int32_t>(std::min(p.top_k, config_.vocab_size));
    sample.penalty = p.repetition_penalty;
    sample.seen_offset = static_cast<int32_t>(word - seen_offset_);
    sample.seen_count = static_cast<int32_t>(seen.size());
    sample.pending = -1;
    if (wanted.pending >= 0) {
      sample.pending =
          static_cast<int32_t>(token_place(steps_ + 1) + pending_order_[static_cast<size_t>(wanted.pending)]);
    }
    sample.uniform = sampler.next_uniform(wanted.pending >= 0 ? 1 : 0);
    for (const TokenId token : seen) words[word++] = static_cast<uint32_t>(token);
  }
}

Status CudaBackend::run_group(const Group& group, std::span<Sampler* const> samplers) {
  const int64_t longest = std::accumulate(
      group.pieces.begin(), group.pieces.end(), int64_t{0}, [](int64_t length, const Chunk& chunk) {
        return std::max(length, chunk.position + static_cast<int64_t>(chunk.tokens.size()));
      });
  if (group.is_prompt) {
    QWEN2_CHECK(upload(group, group.rows, samplers));
    QWEN2_CHECK(run_prompt(group.pieces.front()));
    if (!group.wanted.empty()) QWEN2_CHECK(prompt_head(group.rows - 1, 1));
  } else {
    const int bucket = row_bucket(group.rows);
    QWEN2_CHECK(upload(group, bucket, samplers));
    const auto graph = graphs_.find({bucket, split_class(longest)});
    if (graph == graphs_.end()) return fail(ErrorKind::kInternal, "no recorded step of {} rows", bucket);
    QWEN2_CHECK(cuda_status(cudaGraphLaunch(graph->second, stream_), "a step"));
  }
  if (!samplers.empty() && !group.wanted.empty()) enqueue_sampling(group, samplers);
  return cuda_status(cudaGetLastError(), "a step");
}

void CudaBackend::enqueue_sampling(const Group& group, std::span<Sampler* const> samplers) const {
  cuda::SampleKinds kinds;
  for (const Group::Wanted& wanted : group.wanted) {
    const Sampler& sampler = *samplers[static_cast<size_t>(wanted.place)];
    kinds.penalised = kinds.penalised || sampler.params().repetition_penalty != 1.0F;
    (sampler.params().temperature == 0 ? kinds.greedy : kinds.drawn) = true;
  }
  cuda::SampleArgs args;
  args.count = static_cast<int>(group.wanted.size());
  args.rows = reinterpret_cast<const cuda::SampleRow*>(w_.inputs + w_.samples_offset());
  args.logits = w_.logits;
  args.stride = vocabulary_stride();
  args.vocab = static_cast<int>(config_.vocab_size);
  args.seen = reinterpret_cast<const int32_t*>(words() + seen_offset_);
  args.tokens = w_.tokens;
  args.best = w_.best;
  args.arrived = w_.arrived;
  cuda::sample(args, kinds, stream_);
}

cuda::KvCache CudaBackend::cache(int layer) const {
  const auto at = static_cast<size_t>(layer);
  const int64_t page_bytes = cuda::kv_page_bytes(options_.kv_bits, config_.head_dim) * config_.kv_heads;
  const auto entries = static_cast<size_t>(config_.kv_heads) * cuda::kMaxBiasPairs;
  const std::byte* bias = w_.key_bias + at * entries * 12;
  cuda::KvCache cache;
  cache.data = kv_memory_.data() + layer * (plan_.kv_pages + 1) * page_bytes;
  cache.kv_bits = options_.kv_bits;
  cache.pages = words();
  cache.rotations = w_.rotations;
  cache.bias = weights_.layers[at].qkv_bias;
  cache.key_bias = {layer_bias_pairs_[at], reinterpret_cast<const int32_t*>(bias),
                    reinterpret_cast<const float*>(bias + entries * 4),
                    reinterpret_cast<const float*>(bias + entries * 8)};
  return cache;
}

// Each part of a matrix whose rows have several formats.
void CudaBackend::multiply(const CudaMatrix& matrix, ProductArgs args) const {
  for (const CudaMatrixPart& part : matrix) {
    args.w = part.matrix;
    args.first_row = part.first_row;
    if (part.matrix.order != nullptr) {
      ProductArgs own = args;
      cuda::permute_half(args.rows, part.matrix.cols, args.input.stride, part.matrix.order, args.input.x,
                         w_.permuted, stream_);
      own.input.x = w_.permuted;
      cuda::product(own, stream_);
    } else {
      cuda::product(args, stream_);
    }
    args.input.hidden_out = nullptr;
  }
}

// The model, top to bottom, for rows whose inputs lie in the workspace.
void CudaBackend::enqueue_rows(int count, int max_splits) const {
  cuda::EmbedArgs embed;
  embed.embedding = weights_.embedding.front().matrix;
  embed.rows = count;
  embed.row_info = rows();
  embed.sampled = w_.tokens;
  embed.hidden = w_.hidden[0];
  embed.clear = w_.row_max;
  embed.clear_count = static_cast<int>(config_.layers * cuda::kMaxRows);
  cuda::embed(embed, stream_);
  int current = 0;
  for (int layer = 0; layer < config_.layers; ++layer) enqueue_layer(layer, count, max_splits, current);
  multiply(weights_.head, head_product(count, kDownSplit, current));
}

// Logits of the rows of the residual stream.
ProductArgs CudaBackend::head_product(int count, int parts, int& current) const {
  ProductArgs head;
  head.rows = count;
  head.input = input_of(weights_.final_norm, weights_.head, count, parts, current, false);
  head.out_rows = static_cast<int>(config_.vocab_size);
  head.y = w_.logits;
  head.y_stride = vocabulary_stride();
  return head;
}

// The residual stream, normed, as a product's input. The sum of its parts goes to the other buffer.
ProductInput CudaBackend::input_of(const float* norm, const CudaMatrix& matrix, int count, int parts,
                                   int& current, bool keeps) const {
  ProductInput input;
  if (count == 1 && std::all_of(matrix.begin(), matrix.end(), [](const CudaMatrixPart& part) {
        return cuda::can_stage(part.matrix, true);
      })) {
    input.hidden = w_.hidden[current];
    input.partials = w_.partials;
    input.parts = parts;
    input.norm = norm;
    input.epsilon = config_.rms_norm_eps;
    if (keeps) {
      current = 1 - current;
      input.hidden_out = w_.hidden[current];
    }
    return input;
  }
  cuda::AddNormArgs args;
  args.rows = count;
  args.cols = static_cast<int>(config_.hidden_size);
  args.hidden = w_.hidden[current];
  args.partials = w_.partials;
  args.parts = parts;
  args.norm = norm;
  args.epsilon = config_.rms_norm_eps;
  args.x = w_.x;
  args.stride = cuda_row_stride(config_.hidden_size);
  args.lane_order = wants_lane_order(matrix) && matrix.front().matrix.order == nullptr;
  cuda::add_norm(args, stream_);
  input.x = args.x;
  input.stride = args.stride;
  return input;
}

ProductArgs CudaBackend::qkv_product(int layer, int count, int& current) const {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  ProductArgs qkv;
  qkv.rows = count;
  qkv.input = input_of(w.input_norm, w.qkv, count, layer == 0 ? 0 : kDownSplit, current, true);
  qkv.output = ProductOutput::kQkv;
  qkv.row_info = rows();
  qkv.heads = heads();
  qkv.cache = cache(layer);
  qkv.q = w_.q;
  qkv.q_scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim));
  qkv.new_kv = w_.new_kv;
  return qkv;
}

cuda::RowAttentionArgs CudaBackend::row_attention(int layer, int count, int max_splits) const {
  const CudaMatrix& output = weights_.layers[static_cast<size_t>(layer)].attention_output;
  cuda::RowAttentionArgs attention;
  attention.rows = count;
  attention.row_info = rows();
  attention.heads = heads();
  attention.cache = cache(layer);
  attention.q = w_.q;
  attention.max_splits = max_splits;
  attention.max_split_keys = max_splits < cuda::kMaxSplits
                                 ? cuda::kMinSplitKeys
                                 : cuda::split_keys(static_cast<int>(plan_.limits.max_model_len));
  attention.out = w_.attended;
  attention.out_stride = cuda_row_stride(config_.q_size());
  attention.lane_order = !stages_plain(output.front().matrix, count) && wants_lane_order(output) &&
                         output.front().matrix.order == nullptr;
  attention.part_sums = w_.part_sums;
  attention.part_scalars = w_.part_scalars;
  attention.arrived = w_.arrived;
  return attention;
}

ProductArgs CudaBackend::output_product(int layer, int count) const {
  const CudaMatrix& matrix = weights_.layers[static_cast<size_t>(layer)].attention_output;
  ProductArgs output;
  output.rows = count;
  output.input.x = w_.attended;
  output.input.stride = stages_plain(matrix.front().matrix, count) ? 0 : cuda_row_stride(config_.q_size());
  output.out_rows = static_cast<int>(config_.hidden_size);
  output.y = w_.partials;
  output.y_stride = config_.hidden_size;
  output.split = kOutputSplit;
  output.next_starts_early = true;
  return output;
}

ProductArgs CudaBackend::gate_up_product(int layer, int count, int& current) const {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  ProductArgs gate_up;
  gate_up.rows = count;
  gate_up.input = input_of(w.post_attention_norm, w.gate_up, count, kOutputSplit, current, true);
  gate_up.output = ProductOutput::kSwiglu;
  gate_up.starts_early = true;
  gate_up.y = w_.products;
  gate_up.y_stride = config_.intermediate_size;
  gate_up.row_max = w_.row_max + layer * cuda::kMaxRows;
  return gate_up;
}

ProductArgs CudaBackend::down_product(int layer, int count) const {
  const CudaMatrix& matrix = weights_.layers[static_cast<size_t>(layer)].down;
  ProductArgs down;
  down.rows = count;
  down.input.row_max = w_.row_max + layer * cuda::kMaxRows;
  if (stages_plain(matrix.front().matrix, count)) {
    down.input.values = w_.products;
  } else {
    const int64_t stride = cuda_row_stride(config_.intermediate_size);
    cuda::scale_to_half({count, static_cast<int>(config_.intermediate_size), w_.products, down.input.row_max,
                         w_.x, stride, wants_lane_order(matrix) && matrix.front().matrix.order == nullptr},
                        stream_);
    down.input.x = w_.x;
    down.input.stride = stride;
  }
  down.out_rows = static_cast<int>(config_.hidden_size);
  down.y = w_.partials;
  down.y_stride = config_.hidden_size;
  down.split = kDownSplit;
  down.starts_early = true;
  return down;
}

void CudaBackend::enqueue_layer(int layer, int count, int max_splits, int& current) const {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const ProductArgs qkv = qkv_product(layer, count, current);
  multiply(w.qkv, qkv);
  if (options_.kv_bits == 8) cuda::store_kv_int8({count, rows(), heads(), qkv.cache, w_.new_kv}, stream_);
  cuda::attend_rows(row_attention(layer, count, max_splits), stream_);
  multiply(w.attention_output, output_product(layer, count));
  multiply(w.gate_up, gate_up_product(layer, count, current));
  multiply(w.down, down_product(layer, count));
}

}  // namespace qwen2
