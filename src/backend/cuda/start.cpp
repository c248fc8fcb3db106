// The start of the CUDA backend: opens the GPU, plans and allocates memory, loads the weights, records the
// steps.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/weights.h"
#include "backend/key_bias.h"
#include "base/gpu_info.h"
#include "base/parallel.h"
#include "base/units.h"
#include "kernels/cuda/common/code_architecture.h"
#include "model/rope.h"

namespace qwen2 {

bool cuda_is_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

std::optional<std::string> cuda_build_advice() {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return std::nullopt;
  const int gpu = properties.major * 10 + properties.minor;
  const int code = cuda::code_architecture();
  if (code == 0 || cuda::code_generation(code) >= cuda::code_generation(gpu)) return std::nullopt;
  return fmt::format(
      "{} (sm_{}) runs code that was compiled for sm_{}, at 60 to 90 % of the speed; "
      "`scripts/build release` on this machine compiles for its GPU",
      properties.name, gpu, code);
}

Result<std::unique_ptr<Backend>> create_cuda_backend(const Checkpoint& checkpoint, const Limits& limits,
                                                     const CudaOptions& options) {
  QWEN2_TRY(Qwen2Config config,
            parse_qwen2_config(checkpoint.config_json(), checkpoint.generation_config_json()));
  auto backend = std::make_unique<CudaBackend>(std::move(config), options);
  QWEN2_CHECK(backend->start(checkpoint, limits));
  return backend;
}

CudaBackend::~CudaBackend() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (const auto& [key, step] : recorded_) {
    cudaGraphExecDestroy(step.exec);
    cudaGraphDestroy(step.graph);
  }
  for (const Inputs& inputs : inputs_) {
    if (inputs.sent != nullptr) cudaEventDestroy(inputs.sent);
  }
  for (const cudaEvent_t done : done_) {
    if (done != nullptr) cudaEventDestroy(done);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Status CudaBackend::open_device() {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0) {
    return fail(ErrorKind::kNotFound, "--device cuda: no usable GPU ({})",
                found == cudaSuccess ? "none found" : cudaGetErrorString(found));
  }
  QWEN2_CHECK(cuda_status(cudaSetDevice(0), "opening the GPU"));
  cudaDeviceProp properties{};
  QWEN2_CHECK(cuda_status(cudaGetDeviceProperties(&properties, 0), "reading the GPU's properties"));
  if (properties.major * 10 + properties.minor < 75) {
    return fail(ErrorKind::kUnsupported, "--device cuda: {} has compute capability {}.{}; 7.5 is needed",
                properties.name, properties.major, properties.minor);
  }
  device_name_ = properties.name;
  std::array<char, 32> bus_id{};
  QWEN2_CHECK(cuda_status(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), 0), "reading the GPU's place"));
  bus_id_ = bus_id.data();
  return cuda_status(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

Status CudaBackend::start(const Checkpoint& checkpoint, const Limits& limits) {
  QWEN2_CHECK(open_device());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  QWEN2_CHECK(cuda_status(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory"));
  CudaOverhead overhead;
  overhead.context = gpu_memory_of(bus_id_, getpid()).value_or(total_bytes - free_bytes);
  overhead.graphs = kCudaGraphBytes;
  overhead.available = overhead.context + free_bytes;
  QWEN2_TRY(plan_, plan_cuda(checkpoint, config_, limits, options_, overhead));

  CudaArena counter(nullptr);
  QWEN2_TRY(const CudaWeights shape, lay_out_cuda_weights(checkpoint, config_, options_.precision, counter));
  QWEN2_TRY(weights_memory_, DeviceBuffer::allocate(counter.used(), "the weights"));
  QWEN2_CHECK(
      cuda_status(cudaMemset(weights_memory_.data(), 0, weights_memory_.size()), "clearing the weights"));
  CudaArena arena(weights_memory_.data());
  QWEN2_TRY(weights_, lay_out_cuda_weights(checkpoint, config_, options_.precision, arena));
  QWEN2_CHECK(load_cuda_weights(checkpoint, config_, cpu::kernels_for(cpu::detect_isa()), weights_));
  QWEN2_CHECK(allocate());
  QWEN2_TRY(dense_, CublasLt::open(w_.gemm, kCudaGemmWorkspace));
  QWEN2_CHECK(separate_key_bias());
  QWEN2_CHECK(prepare_layers());
  // Copies from pageable memory may still be in flight, and stream_ does not wait for other streams.
  QWEN2_CHECK(cuda_status(cudaDeviceSynchronize(), "sending the model"));
  QWEN2_CHECK(record_steps());
  QWEN2_CHECK(load_kernels());
  const uint64_t held = device_memory().value_or(0);
  if (held > plan_.budget) {
    return refuse_plan(fmt::format("the driver counts {} where the budget is {}", format_bytes(held),
                                   format_bytes(plan_.budget)),
                       plan_);
  }
  return {};
}

Status CudaBackend::allocate() {
  const int64_t page_bytes = cuda::kv_page_bytes(options_.kv_bits, config_.head_dim) * config_.kv_heads;
  const auto kv_bytes = static_cast<size_t>(config_.layers * (plan_.kv_pages + 1) * page_bytes);
  QWEN2_TRY(kv_memory_, DeviceBuffer::allocate(kv_bytes, "the KV pool"));
  QWEN2_CHECK(cuda_status(cudaMemset(kv_memory_.data(), 0, kv_bytes), "clearing the KV pool"));
  CudaArena counter(nullptr);
  lay_out_cuda_workspace(config_, plan_.limits, weights_, plan_.kv_pages, counter);
  QWEN2_TRY(workspace_memory_, DeviceBuffer::allocate(counter.used(), "the workspace"));
  QWEN2_CHECK(cuda_status(cudaMemset(workspace_memory_.data(), 0, counter.used()), "clearing the workspace"));
  CudaArena arena(workspace_memory_.data());
  w_ = lay_out_cuda_workspace(config_, plan_.limits, weights_, plan_.kv_pages, arena);

  for (Inputs& inputs : inputs_) {
    QWEN2_TRY(inputs.host, PinnedBuffer::allocate(static_cast<size_t>(w_.input_bytes()), "a step's inputs"));
    QWEN2_CHECK(cuda_status(cudaEventCreateWithFlags(&inputs.sent, cudaEventDisableTiming), "an event"));
    inputs.free = inputs.sent;
  }
  for (cudaEvent_t& done : done_) {
    QWEN2_CHECK(cuda_status(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "an event"));
  }
  QWEN2_TRY(host_tokens_,
            PinnedBuffer::allocate(static_cast<size_t>(2 * plan_.limits.max_num_seqs) * sizeof(int32_t),
                                   "a step's tokens"));
  const auto logits = static_cast<size_t>(plan_.limits.max_num_seqs * vocabulary_stride()) * sizeof(float);
  QWEN2_TRY(host_logits_, PinnedBuffer::allocate(logits, "the logits"));

  const int64_t half = config_.head_dim / 2;
  std::vector<float> rotations(static_cast<size_t>(plan_.limits.max_model_len * config_.head_dim));
  const Rotation rope = rotation_of(config_);
  parallel_ranges(plan_.limits.max_model_len, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * rope.frequencies[static_cast<size_t>(i)];
        float* pair = rotations.data() + (position * half + i) * 2;
        pair[0] = static_cast<float>(std::cos(angle) * rope.magnitude);
        pair[1] = static_cast<float>(std::sin(angle) * rope.magnitude);
      }
    }
  });
  return cuda_status(
      cudaMemcpy(w_.rotations, rotations.data(), rotations.size() * sizeof(float), cudaMemcpyHostToDevice),
      "sending rotation angles");
}

Status CudaBackend::separate_key_bias() {
  const auto entries = static_cast<size_t>(config_.kv_heads) * cuda::kMaxBiasPairs;
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    layer_bias_pairs_.push_back(0);
    if (options_.key_bias == KeyBiasPlace::kKeys) continue;
    float* place = weights_.layers[layer].qkv_bias + config_.q_size();
    std::vector<float> bias(static_cast<size_t>(config_.kv_size()));
    QWEN2_CHECK(
        cuda_status(cudaMemcpy(bias.data(), place, bias.size() * sizeof(float), cudaMemcpyDeviceToHost),
                    "reading a key bias"));
    const auto taken = take_large_key_bias(config_, bias.data());
    std::vector<int32_t> index(entries);
    std::vector<float> first(entries), second(entries);
    for (size_t head = 0; head < taken.size(); ++head) {
      const cpu::KeyBias& own = taken[head];
      layer_bias_pairs_[layer] = std::max(layer_bias_pairs_[layer], own.pairs);
      const auto to = static_cast<std::ptrdiff_t>(head * cuda::kMaxBiasPairs);
      std::copy_n(own.index, own.pairs, index.begin() + to);
      std::copy_n(own.first, own.pairs, first.begin() + to);
      std::copy_n(own.second, own.pairs, second.begin() + to);
    }
    std::byte* target = w_.key_bias + layer * entries * 12;
    const size_t bytes = entries * 4;
    const auto send = [&](std::byte* to, const void* from, size_t size) {
      return cuda_status(cudaMemcpy(to, from, size, cudaMemcpyHostToDevice), "sending a key bias");
    };
    QWEN2_CHECK(send(target, index.data(), bytes));
    QWEN2_CHECK(send(target + bytes, first.data(), bytes));
    QWEN2_CHECK(send(target + 2 * bytes, second.data(), bytes));
    QWEN2_CHECK(send(reinterpret_cast<std::byte*>(place), bias.data(), bias.size() * sizeof(float)));
  }
  return {};
}

Status CudaBackend::prepare_layers() {
  if (!cuda::card_runs_layers()) return {};
  const std::vector<cuda::LayerArgs> layers = layers_of_a_row();
  if (!cuda::can_run_layers(layers)) return {};
  const std::vector<std::byte> table = cuda::layers_table(layers, cuda::layers_blocks());
  QWEN2_CHECK(cuda_status(cudaMemcpy(w_.layers_table, table.data(), table.size(), cudaMemcpyHostToDevice),
                          "sending the layers' arguments"));
  layers_ = cuda::layers_args(layers, cuda::layers_blocks(), w_.layers_table, layers_arrived());
  return {};
}

// Runs prompts of several lengths, for which cuBLASLt has different kernels, and every kind of sampling
// once. Code is loaded on first use: otherwise that would take memory later and delay the first request.
Status CudaBackend::load_kernels() {
  const int64_t chunk = std::min(plan_.limits.prefill_chunk, plan_.limits.max_model_len);
  const std::vector<TokenId> tokens(static_cast<size_t>(chunk));
  const std::vector<uint32_t> pages(static_cast<size_t>((chunk + cuda::kPageTokens - 1) / cuda::kPageTokens));
  for (int64_t size = kShortChunk + 1; size < 2 * chunk; size = size < 32 ? 32 : size * 2) {
    Group prompt;
    prompt.rows = std::min(size, chunk);
    prompt.is_prompt = true;
    prompt.pieces.emplace_back().tokens = std::span(tokens).first(static_cast<size_t>(prompt.rows));
    prompt.pieces.front().pages = pages;
    QWEN2_CHECK(run_group(prompt, {}));
  }
  QWEN2_CHECK(prompt_head(0, 1));
  const cuda::SampleRow row{.logits_row = 0,
                            .place = 0,
                            .temperature = 1,
                            .top_p = 1,
                            .top_k = 1,
                            .penalty = 1,
                            .seen_offset = 0,
                            .seen_count = 0,
                            .pending = -1,
                            .in_step = 0,
                            .uniform = 0.5};
  QWEN2_CHECK(cuda_status(
      cudaMemcpyAsync(w_.inputs + w_.samples_offset(), &row, sizeof(row), cudaMemcpyHostToDevice, stream_),
      "sampling"));
  cuda::sample(sample_args(1), {.penalised = true, .greedy = true, .drawn = true}, stream_);
  return cuda_status(cudaStreamSynchronize(stream_), "the first prompt");
}

Status CudaBackend::record_steps() {
  row_limit_ =
      row_bucket(std::min<int64_t>(cuda::kMaxRows, std::max(kShortChunk, plan_.limits.max_num_seqs)));
  const int last_class = split_class(plan_.limits.max_model_len);
  for (int rows = 1; rows <= row_limit_; rows *= 2) {
    for (const int splits : kSplitClasses) {
      if (splits > last_class) break;
      QWEN2_CHECK(record_step(rows, splits));
    }
  }
  return cuda_status(cudaStreamSynchronize(stream_), "preparing recorded steps");
}

Status CudaBackend::record_step(int rows, int splits) {
  cuda::FetchArgs nothing;
  nothing.embed = embedding(rows, w_.hidden[0]);
  cuda::fetch(nothing, stream_);  // run once before recording, to load the kernels
  enqueue_rows(rows, splits);
  QWEN2_CHECK(cuda_status(cudaGetLastError(), "launching the first step"));
  QWEN2_CHECK(cuda_status(cudaStreamSynchronize(stream_), "the first step"));
  RecordedStep& step = recorded_[{rows, splits}];
  QWEN2_CHECK(cuda_status(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording"));
  enqueue_rows(rows, splits);
  const cudaError_t launched = cudaGetLastError();
  QWEN2_CHECK(cuda_status(cudaStreamEndCapture(stream_, &step.graph), "recording a step"));
  QWEN2_CHECK(cuda_status(launched, "launching a recorded step"));
  QWEN2_CHECK(cuda_status(cuda::prepend_fetch(step.graph, nothing, step.fetch), "a recorded step's inputs"));
  QWEN2_CHECK(cuda_status(cudaGraphInstantiate(&step.exec, step.graph, 0), "preparing a recorded step"));
  return cuda_status(cudaGraphUpload(step.exec, stream_), "sending a recorded step");
}

}  // namespace qwen2
