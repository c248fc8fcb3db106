// The layers of a decode step as kernel launches, top to bottom.
#include <algorithm>
#include <cmath>

#include "backend/cuda/cuda_backend.h"

namespace qwen2 {
namespace {

using cuda::ProductArgs;
using cuda::ProductInput;
using cuda::ProductOutput;

// Whether every block of a product stages the one row itself, from fp16 or float activations.
bool stages_plain(const cuda::DeviceMatrix& matrix, int rows) {
  return rows == 1 && cuda::can_stage(matrix, false);
}

// The layout in which attention writes its rows for the output projection. Split int8 activations are made
// later, from rows, because a scale covers columns of several heads.
cuda::ActivationLayout attention_layout(const CudaMatrix& output, int rows) {
  const cuda::ActivationLayout order = activation_layout(output);
  const bool as_rows =
      stages_plain(output.front().matrix, rows) || order == cuda::ActivationLayout::kSplitInt8;
  return as_rows ? cuda::ActivationLayout::kRows : order;
}

void take_rows(const cuda::RowsOut& rows, ProductInput& input) {
  input.x = rows.x;
  input.stride = rows.stride;
  input.layout = rows.layout;
  input.scales = rows.scales;
}

}  // namespace

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

// Multiplies each part of a matrix whose rows have several formats. Where parts read activations in different
// layouts, each gets its own copy.
void CudaBackend::multiply(const CudaMatrix& matrix, ProductArgs args) const {
  const ProductInput given = args.input;
  for (const CudaMatrixPart& part : matrix) {
    const cuda::DeviceMatrix& w = part.matrix;
    const bool several = given.x != nullptr && given.stride > 0;
    if (several && (w.order != nullptr || given.layout != cuda::activation_layout(w))) {
      cuda::RepackArgs repack;
      repack.rows = args.rows;
      repack.cols = w.cols;
      repack.halves = given.x;
      repack.order = w.order;
      repack.out = {w_.permuted, given.stride, cuda::activation_layout(w), w_.permuted_scales};
      cuda::repack(repack, stream_);
      args.input.x = w_.permuted;
      args.input.scales = w_.permuted_scales;
    }
    args.w = w;
    args.first_row = part.first_row;
    cuda::product(args, stream_);
    args.input.x = given.x;
    args.input.scales = given.scales;
    args.input.hidden_out = nullptr;
  }
}

// Launches the layers, the head and greedy sampling, for rows whose inputs and embeddings are in the
// workspace.
void CudaBackend::enqueue_rows(int count, int max_splits) const {
  int current = 0;
  if (count == 1 && max_splits == 1 && layers_) {
    cuda::run_layers(*layers_, stream_);
  } else {
    for (int layer = 0; layer < config_.layers; ++layer) enqueue_layer(layer, count, max_splits, current);
  }
  multiply(weights_.head, head_product(count, kDownSplit, current));
  cuda::SampleArgs sample = sample_args(count);
  sample.in_step = true;
  cuda::sample(sample, {.penalised = false, .greedy = true, .drawn = false}, stream_);
}

// Logits of the rows of the residual stream.
ProductArgs CudaBackend::head_product(int count, int splits, int& current) const {
  ProductArgs head;
  head.rows = count;
  head.input = input_of(weights_.final_norm, weights_.head, count, splits, current, false);
  head.out_rows = static_cast<int>(config_.vocab_size);
  head.y = w_.logits;
  head.y_stride = vocabulary_stride();
  return head;
}

// The normed residual stream as a product's input. The kernel that adds its partial sums writes to the
// other buffer.
ProductInput CudaBackend::input_of(const float* norm, const CudaMatrix& matrix, int count, int splits,
                                   int& current, bool keeps) const {
  ProductInput input;
  const cuda::ActivationLayout order = activation_layout(matrix);
  const bool stages = std::all_of(matrix.begin(), matrix.end(), [](const CudaMatrixPart& part) {
    return cuda::can_stage(part.matrix, true);
  });
  // Parts with different layouts are repacked from rows of fp16, so that they round alike in every batch.
  if (count == 1 && stages && order != cuda::ActivationLayout::kRows) {
    input.hidden = w_.hidden[current];
    input.partials = w_.partials;
    input.splits = splits;
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
  args.splits = splits;
  args.norm = norm;
  args.epsilon = config_.rms_norm_eps;
  args.out = {w_.x, cuda_row_stride(config_.hidden_size), order, w_.x_scales};
  args.factors = w_.x_factors;
  cuda::add_norm(args, stream_);
  take_rows(args.out, input);
  if (order == cuda::ActivationLayout::kSplitInt8) input.factors = w_.x_factors;
  return input;
}

ProductArgs CudaBackend::qkv_product(int layer, int count, int max_splits, int& current) const {
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
  // Meanwhile a long row's keys and values are in flight, and in fp16 the weights of the output projection.
  qkv.trigger_early = max_splits > 1 || w.qkv.front().matrix.form == cuda::MatrixForm::kF16;
  return qkv;
}

// Where attention writes. w_.attended is for blocked layouts only: rows would overwrite the zeros of its
// padding.
uint16_t* CudaBackend::attended(cuda::ActivationLayout order) const {
  return order == cuda::ActivationLayout::kRows ? w_.x : w_.attended;
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
  // 4-bit weights of the output projection arrive before a short row's attention ends if their loads are
  // issued early. Larger weights would delay the loads of its keys.
  attention.trigger_first = count == 1 && max_splits == 1 && cuda::form_bits(output.front().matrix.form) == 4;
  attention.layout = attention_layout(output, count);
  attention.out = attended(attention.layout);
  attention.out_stride = cuda_row_stride(config_.q_size());
  attention.split_sums = w_.split_sums;
  attention.split_scalars = w_.split_scalars;
  attention.arrived = w_.arrived;
  return attention;
}

ProductArgs CudaBackend::output_product(int layer, int count) const {
  const CudaMatrix& matrix = weights_.layers[static_cast<size_t>(layer)].attention_output;
  ProductArgs output;
  output.rows = count;
  output.input.layout = attention_layout(matrix, count);
  if (!stages_plain(matrix.front().matrix, count)) output.input.stride = cuda_row_stride(config_.q_size());
  output.input.x = attended(output.input.layout);
  output.out_rows = static_cast<int>(config_.hidden_size);
  output.y = w_.partials;
  output.y_stride = config_.hidden_size;
  output.split_k = kOutputSplit;
  output.trigger_early = true;
  return output;
}

// Where each row's largest SwiGLU product is written: fp16 activations are scaled by it, split int8 ones
// need no maximum.
uint32_t* CudaBackend::products_max(int layer) const {
  const CudaMatrix& down = weights_.layers[static_cast<size_t>(layer)].down;
  return activation_layout(down) == cuda::ActivationLayout::kSplitInt8 ? nullptr
                                                                       : w_.row_max + layer * cuda::kMaxRows;
}

ProductArgs CudaBackend::gate_up_product(int layer, int count, int& current) const {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  ProductArgs gate_up;
  gate_up.rows = count;
  gate_up.input = input_of(w.post_attention_norm, w.gate_up, count, kOutputSplit, current, true);
  gate_up.output = ProductOutput::kSwiglu;
  gate_up.launched_early = true;
  gate_up.y = w_.products;
  gate_up.y_stride = config_.intermediate_size;
  gate_up.row_max = products_max(layer);
  return gate_up;
}

ProductArgs CudaBackend::down_product(int layer, int count) const {
  const CudaMatrix& matrix = weights_.layers[static_cast<size_t>(layer)].down;
  ProductArgs down;
  down.rows = count;
  down.input.row_max = products_max(layer);
  if (stages_plain(matrix.front().matrix, count)) {
    down.input.values = w_.products;
  } else {
    cuda::RepackArgs repack;
    repack.rows = count;
    repack.cols = static_cast<int>(config_.intermediate_size);
    repack.values = w_.products;
    repack.out = {w_.x, cuda_row_stride(config_.intermediate_size), activation_layout(matrix), w_.x_scales};
    repack.row_max = down.input.row_max;
    cuda::repack(repack, stream_);
    take_rows(repack.out, down.input);
  }
  down.out_rows = static_cast<int>(config_.hidden_size);
  down.y = w_.partials;
  down.y_stride = config_.hidden_size;
  down.split_k = kDownSplit;
  down.launched_early = true;
  return down;
}

// The arguments of the layers kernel for a short row, if every block can stage its products' inputs;
// otherwise empty.
std::vector<cuda::LayerArgs> CudaBackend::layers_of_a_row() const {
  const auto stages = [](const CudaMatrix& matrix, bool normed) {
    return matrix.size() == 1 && cuda::can_stage(matrix.front().matrix, normed);
  };
  const auto with = [](ProductArgs args, const CudaMatrix& matrix) {
    args.w = matrix.front().matrix;
    args.first_row = matrix.front().first_row;
    return args;
  };
  std::vector<cuda::LayerArgs> layers;
  int current = 0;
  for (int layer = 0; layer < config_.layers; ++layer) {
    const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
    if (!stages(w.qkv, true) || !stages(w.attention_output, false) || !stages(w.gate_up, true) ||
        !stages(w.down, false))
      return {};
    cuda::LayerArgs args;
    args.qkv = with(qkv_product(layer, 1, 1, current), w.qkv);
    args.attention = row_attention(layer, 1, 1);
    args.output = with(output_product(layer, 1), w.attention_output);
    args.gate_up = with(gate_up_product(layer, 1, current), w.gate_up);
    args.down = with(down_product(layer, 1), w.down);
    layers.push_back(args);
  }
  return layers;
}

void CudaBackend::enqueue_layer(int layer, int count, int max_splits, int& current) const {
  const CudaLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const ProductArgs qkv = qkv_product(layer, count, max_splits, current);
  multiply(w.qkv, qkv);
  if (options_.kv_bits == 8) cuda::store_kv_int8({count, rows(), heads(), qkv.cache, w_.new_kv}, stream_);
  cuda::attend_rows(row_attention(layer, count, max_splits), stream_);
  multiply(w.attention_output, output_product(layer, count));
  multiply(w.gate_up, gate_up_product(layer, count, current));
  multiply(w.down, down_product(layer, count));
}

}  // namespace qwen2
