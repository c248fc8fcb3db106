// One short row through all layers in one kernel, with the results of the single kernels. For GPUs below
// sm_80, which have neither asynchronous copies to shared memory nor programmatic dependent launch.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/product/product.h"

namespace qwen2::cuda {

// The arguments that product() and attend_rows() would get for one row of at most kShortKeys keys.
struct LayerArgs {
  ProductArgs qkv, output, gate_up, down;
  RowAttentionArgs attention;
};

struct LayersArgs {
  const void* table = nullptr;  // layers_table() in device memory: at most kLayerEntryBytes a layer
  int layers = 0;
  int blocks = 0;                      // the table was made for: layers_blocks(), or fewer
  MatrixForm form = MatrixForm::kF16;  // of every matrix
  int head_dim = 0;
  size_t staged_bytes = 0;      // of the widest activations
  uint32_t* arrived = nullptr;  // [1], zeroed by the caller before every run
};
// Whether the GPU in use runs code below sm_80 and can launch this kernel.
bool card_runs_layers();
// Whether the kernel supports these layers: one form, 16-bit KV, every input staged.
bool can_run_layers(std::span<const LayerArgs> layers);
// One block for each multiprocessor. Any number from kMaxSplitK on gives the same results.
int layers_blocks();
std::vector<std::byte> layers_table(std::span<const LayerArgs> layers, int blocks);
LayersArgs layers_args(std::span<const LayerArgs> layers, int blocks, const void* table, uint32_t* arrived);
void run_layers(const LayersArgs& args, cudaStream_t stream);

}  // namespace qwen2::cuda
