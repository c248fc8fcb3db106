#include "backend/cuda/cuda_backend.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/gpu_info.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

using cuda::Row;

static_assert(sizeof(Row) == CudaWorkspace::kRowBytes);
static_assert(sizeof(cuda::SampleRow) == CudaWorkspace::kSampleBytes);

}  // namespace

std::optional<uint64_t> CudaBackend::device_memory() const {
  return gpu_memory_of(bus_id_, getpid());
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
  // The larger of the two big allocations, which exceeds the caches.
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

// Divides a step into groups: first short chunks together, as many rows as a recorded graph has, then each
// long chunk.
Result<std::vector<CudaBackend::Group>> CudaBackend::group(std::span<const Chunk> chunks) {
  logits_order_.assign(chunks.size(), -1);
  std::vector<Group> groups;
  int64_t wanted = 0;
  const auto add = [&](Group& group, const Chunk& piece, size_t c, bool last) {
    group.pieces.push_back(piece);
    group.rows += static_cast<int64_t>(piece.tokens.size());
    if (!last || !chunks[c].needs_logits) return;
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
    for (Group::Wanted& own : group.wanted) own.row = 0;  // the head runs for one row only
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
  if (chunks.empty()) return fail(ErrorKind::kInternal, "a step has no chunks");
  if (begun_.size() == 2) return fail(ErrorKind::kInternal, "two steps are in flight already");
  QWEN2_TRY(const auto groups, group(chunks));
  std::erase(logits_order_, -1);
  // In the order of the logits, in which groups use them.
  std::vector<Sampler*> by_place(samplers.size());
  for (size_t i = 0; i < samplers.size(); ++i) by_place[static_cast<size_t>(logits_order_[i])] = samplers[i];
  Begun step{{samplers.begin(), samplers.end()},
             logits_order_,
             token_place(steps_),
             done_[static_cast<size_t>(steps_ % 2)]};
  for (const Group& group : groups)
    QWEN2_CHECK(run_group(group, by_place, &group == &groups.back() ? step.done : nullptr));
  // Chunk::pending of the next step counts in the order of the samplers.
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

cuda::EmbedArgs CudaBackend::embedding(int64_t rows, float* hidden) const {
  cuda::EmbedArgs embed;
  embed.embedding = weights_.embedding.front().matrix;
  embed.rows = static_cast<int>(rows);
  embed.sampled = w_.tokens;
  embed.hidden = hidden;
  embed.clear = w_.row_max;
  embed.clear_count = static_cast<int>(config_.layers * cuda::kMaxRows + 1);
  return embed;
}

// Writes a group's inputs to host memory. The GPU reads them itself: a copy between two steps would delay the
// second.
Result<cuda::FetchArgs> CudaBackend::write_inputs(const Group& group, int64_t padded_rows,
                                                  std::span<Sampler* const> samplers) {
  const Inputs& inputs = inputs_[next_inputs_];
  QWEN2_CHECK(cuda_status(cudaEventSynchronize(inputs.free), "sending a step"));
  std::byte* host = inputs.host.data();
  auto* rows = reinterpret_cast<Row*>(host);
  auto* words = reinterpret_cast<uint32_t*>(host + w_.words_offset());
  int32_t word = 0;
  int64_t row = 0;
  words[word++] = static_cast<uint32_t>(plan_.kv_pages);  // the page of padding rows
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
  auto* samples = reinterpret_cast<cuda::SampleRow*>(host + w_.samples_offset());
  for (int i = 0; i < cuda::kMaxRows; ++i) samples[i].in_step = 0;
  if (!samplers.empty()) write_samples(group, samplers, samples, words, word);
  const int64_t samples_count = std::min<int64_t>(padded_rows, cuda::kMaxRows);
  cuda::FetchArgs fetch;
  fetch.from = host;
  fetch.to = w_.inputs;
  fetch.pieces[0] = {0, padded_rows * CudaWorkspace::kRowBytes};
  fetch.pieces[1] = {w_.samples_offset(), samples_count * CudaWorkspace::kSampleBytes};
  fetch.pieces[2] = {w_.words_offset(), int64_t{word} * 4};
  fetch.embed = embedding(padded_rows, group.is_prompt ? w_.prompt_hidden : w_.hidden[0]);
  fetch.embed.row_info = rows;
  for (int64_t i = 0; i < samples_count; ++i) fetch.embed.first_tokens[i] = rows[i].token;
  return fetch;
}

// Whether the recorded step samples the token itself: greedy, without penalty.
bool CudaBackend::sampled_in_step(const Group& group, const Sampler& sampler) {
  return !group.is_prompt && sampler.params().temperature == 0 && sampler.params().repetition_penalty == 1.0F;
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
    sample.in_step = sampled_in_step(group, sampler) ? 1 : 0;
    sample.uniform = sampler.next_uniform(wanted.pending >= 0 ? 1 : 0);
    for (const TokenId token : seen) words[word++] = static_cast<uint32_t>(token);
  }
}

Status CudaBackend::run_group(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done) {
  if (!group.is_prompt) return run_rows(group, samplers, done);
  QWEN2_TRY(const cuda::FetchArgs fetch, write_inputs(group, group.rows, samplers));
  cuda::fetch(fetch, stream_);
  QWEN2_CHECK(inputs_are_free_at(inputs_[next_inputs_].sent));
  QWEN2_CHECK(run_prompt(group.pieces.front()));
  if (!group.wanted.empty()) QWEN2_CHECK(prompt_head(group.rows - 1, 1));
  if (!samplers.empty() && !group.wanted.empty()) enqueue_sampling(group, samplers);
  QWEN2_CHECK(cuda_status(cudaGetLastError(), "a prompt"));
  return done == nullptr ? Status{} : cuda_status(cudaEventRecord(done, stream_), "a step");
}

Status CudaBackend::run_rows(const Group& group, std::span<Sampler* const> samplers, cudaEvent_t done) {
  const int64_t longest = std::accumulate(
      group.pieces.begin(), group.pieces.end(), int64_t{0}, [](int64_t length, const Chunk& chunk) {
        return std::max(length, chunk.position + static_cast<int64_t>(chunk.tokens.size()));
      });
  const int bucket = row_bucket(group.rows);
  const auto found = recorded_.find({bucket, split_class(longest)});
  if (found == recorded_.end()) return fail(ErrorKind::kInternal, "no recorded step of {} rows", bucket);
  const RecordedStep& step = found->second;
  QWEN2_TRY(const cuda::FetchArgs fetch, write_inputs(group, bucket, samplers));
  QWEN2_CHECK(cuda_status(cuda::set_fetch(step.exec, step.fetch, fetch), "a step's inputs"));
  QWEN2_CHECK(cuda_status(cudaGraphLaunch(step.exec, stream_), "a step"));
  if (!samplers.empty() && !group.wanted.empty()) enqueue_sampling(group, samplers);
  const cudaError_t launched = cudaGetLastError();
  QWEN2_CHECK(inputs_are_free_at(done != nullptr ? done : inputs_[next_inputs_].sent));
  return cuda_status(launched, "a step");
}

// The inputs written last may be overwritten when the work enqueued up to now is done.
Status CudaBackend::inputs_are_free_at(cudaEvent_t event) {
  inputs_[next_inputs_].free = event;
  next_inputs_ = 1 - next_inputs_;
  return cuda_status(cudaEventRecord(event, stream_), "a step's inputs");
}

void CudaBackend::enqueue_sampling(const Group& group, std::span<Sampler* const> samplers) const {
  cuda::SampleKinds kinds;
  for (const Group::Wanted& wanted : group.wanted) {
    const Sampler& sampler = *samplers[static_cast<size_t>(wanted.place)];
    if (sampled_in_step(group, sampler)) continue;
    kinds.penalised = kinds.penalised || sampler.params().repetition_penalty != 1.0F;
    (sampler.params().temperature == 0 ? kinds.greedy : kinds.drawn) = true;
  }
  cuda::sample(sample_args(static_cast<int>(group.wanted.size())), kinds, stream_);
}

cuda::SampleArgs CudaBackend::sample_args(int count) const {
  cuda::SampleArgs args;
  args.count = count;
  args.rows = reinterpret_cast<const cuda::SampleRow*>(w_.inputs + w_.samples_offset());
  args.logits = w_.logits;
  args.stride = vocabulary_stride();
  args.vocab = static_cast<int>(config_.vocab_size);
  args.seen = reinterpret_cast<const int32_t*>(words() + seen_offset_);
  args.tokens = w_.tokens;
  // The GPU writes to host memory itself: a copy would delay the next step.
  args.host_tokens = reinterpret_cast<int32_t*>(host_tokens_.data());
  args.best = w_.best;
  args.arrived = w_.arrived;
  return args;
}

}  // namespace qwen2
