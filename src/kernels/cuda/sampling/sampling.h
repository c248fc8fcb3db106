// From logits to tokens on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace qwen2::cuda {

struct SampleRow {
  int32_t logits_row;
  int32_t place;  // of the token in SampleArgs::tokens
  float temperature;
  float top_p;
  int32_t top_k;
  float penalty;
  int32_t seen_offset, seen_count;
  int32_t pending;  // the place of one more seen token, among the sampled ones; -1: none
  int32_t in_step;  // not zero: greedy without penalty, sampled by the recorded step, see SampleArgs
  double uniform;   // in [0, 1)
};

struct SampleArgs {
  int count = 0;
  const SampleRow* rows = nullptr;
  float* logits = nullptr;  // [.][stride]; penalties are applied in place
  int64_t stride = 0;       // a multiple of 4, at least vocab
  int vocab = 0;
  const int32_t* seen = nullptr;
  int32_t* tokens = nullptr;       // sampled, by place; also those of earlier steps
  int32_t* host_tokens = nullptr;  // the same in page-locked host memory; null: none
  bool in_step = false;            // samples the rows with `in_step` set, otherwise all others; greedy only
  unsigned long long* best = nullptr;  // [count], zero; the kernel leaves zeros
  uint32_t* arrived = nullptr;         // [count], zero; the kernel leaves zeros
};

// The kernels that the rows need.
struct SampleKinds {
  bool penalised = false;
  bool greedy = false;
  bool drawn = false;
};
void sample(const SampleArgs& args, const SampleKinds& kinds, cudaStream_t stream);

}  // namespace qwen2::cuda
