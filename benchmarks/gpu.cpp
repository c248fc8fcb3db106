// The decode kernels on a GPU, one by one: each is recorded many times in a graph, over as many copies of its
// weights as a model has layers, so that neither launches from the host nor the caches flatter it. Prints the
// median time of one call with its spread, and the rate of its bytes beside a plain read of the same memory.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/memory.h"
#include "kernels/cuda/layers/layers.h"
#include "kernels/cuda/rows/rows.h"
#include "kernels/cuda/sampling/sampling.h"

namespace qwen2 {
namespace {

using cuda::DeviceMatrix;
using cuda::MatrixForm;
using cuda::ProductArgs;

constexpr int kLayers = 28;
constexpr int kRuns = 15;
constexpr int kSplit = 4;  // of the columns of the projections into the residual stream

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fmt::print(stderr, "gpu_benchmarks: {}: {}\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* allocate(size_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, count * sizeof(T)), "allocating");
  check(cudaMemset(data, 0x11, count * sizeof(T)), "filling");  // small positive numbers in every format
  return static_cast<T*>(data);
}

struct Timing {
  double median, low, high;  // microseconds a call
};

Timing time_calls(cudaStream_t stream, int calls, const std::function<void(int)>& call) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording");
  for (int i = 0; i < calls; ++i) call(i);
  check(cudaStreamEndCapture(stream, &graph), "recording");
  check(cudaGraphInstantiate(&exec, graph, 0), "preparing");
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin), "events");
  check(cudaEventCreate(&end), "events");
  std::vector<double> times;
  for (int run = -3; run < kRuns; ++run) {
    check(cudaEventRecord(begin, stream), "timing");
    check(cudaGraphLaunch(exec, stream), "running");
    check(cudaEventRecord(end, stream), "timing");
    check(cudaEventSynchronize(end), "running");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (run >= 0) times.push_back(milliseconds * 1e3 / calls);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return {times[kRuns / 2], times.front(), times.back()};
}

struct Matrix {
  DeviceMatrix shape;
  int64_t bytes = 0;
};

Matrix make_matrix(MatrixForm form, int rows, int cols, int group) {
  Matrix m;
  m.shape.form = form;
  m.shape.rows = rows;
  m.shape.cols = cols;
  m.shape.row_bytes = cuda::padded_row_bytes(form, cols);
  m.bytes = rows * m.shape.row_bytes;
  if (form != MatrixForm::kF16) {
    m.shape.group = group;
    m.shape.groups = cols / group;
    m.bytes += int64_t{rows} * m.shape.groups * 2;
  }
  return m;
}

class Bench {
 public:
  explicit Bench(int rows) : rows_(rows) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    weights_ = allocate<uint8_t>(kWeights);
    x_ = allocate<uint16_t>(64 * 9216);
    floats_ = allocate<float>(64 * 152064);
    out_ = allocate<float>(64 * 152064);
    norm_ = allocate<float>(9216);
    words_ = allocate<uint32_t>(4096);
    table_ = allocate<std::byte>(kLayers * cuda::kLayerEntryBytes);
    check(cudaMemset(words_, 0, 4096 * sizeof(uint32_t)), "filling");
    const Timing read =
        time_calls(stream_, 1, [&](int) { cuda::read_all(weights_, kWeights, words_, stream_); });
    read_ = kWeights / read.median / 1e3;
    constexpr int64_t kHalf = kWeights / 2;
    const Timing copy = time_calls(stream_, 1, [&](int) {
      check(cudaMemcpyAsync(weights_, weights_ + kHalf, kHalf, cudaMemcpyDeviceToDevice, stream_), "copying");
    });
    // Of a copy, what is read and what is written.
    fmt::print("{} row(s), plain read {:.0f} GB/s, copy {:.0f} GB/s\n", rows, read_,
               2 * kHalf / copy.median / 1e3);
  }

  void product(const std::string& name, MatrixForm form, int n, int k, int group, cuda::ProductOutput output,
               int kind) {
    const Matrix m = make_matrix(form, n, k, group);
    report(name,
           time_calls(stream_, m.bytes > (int64_t{1} << 28) ? 4 : kLayers * 2,
                      [&](int i) { cuda::product(args_of(m, output, kind, i), stream_); }),
           m.bytes);
  }

  // A layer's kernels in their order, as decoding runs them; and all layers in one kernel, where it does.
  void layers(const std::string& name, MatrixForm form, int group, int length) {
    cuda::RowAttentionArgs attend = attention_args(length);
    attend.trigger_first = rows_ == 1 && cuda::form_bits(form) == 4 && attend.max_splits == 1;
    std::vector<cuda::LayerArgs> layers(kLayers);
    for (int i = 0; i < kLayers; ++i) {
      layers[i] = {args_of(make_matrix(form, 2048, 1536, group), cuda::ProductOutput::kQkv, 1, i),
                   args_of(make_matrix(form, 1536, 1536, group), cuda::ProductOutput::kStore, 0, i),
                   args_of(make_matrix(form, 17920, 1536, group), cuda::ProductOutput::kSwiglu, 1, i),
                   args_of(make_matrix(form, 1536, 8960, group), cuda::ProductOutput::kStore, 2, i), attend};
    }
    int64_t bytes = 0;
    for (const auto& [n, k] : {std::pair{2048, 1536}, {1536, 1536}, {17920, 1536}, {1536, 8960}})
      bytes += make_matrix(form, n, k, group).bytes;
    const auto one_by_one = [&](int i) {
      cuda::product(layers[i].qkv, stream_);
      cuda::attend_rows(attend, stream_);
      cuda::product(layers[i].output, stream_);
      cuda::product(layers[i].gate_up, stream_);
      cuda::product(layers[i].down, stream_);
    };
    const std::string depth = fmt::format(", {} tokens", length);
    report(name + " layer" + depth, time_calls(stream_, kLayers, one_by_one), bytes);
    if (rows_ > 1 || !cuda::can_run_layers(layers)) return;
    const auto table = cuda::layers_table(layers, cuda::layers_blocks());
    check(cudaMemcpy(table_, table.data(), table.size(), cudaMemcpyHostToDevice), "the layers' arguments");
    const cuda::LayersArgs args = cuda::layers_args(layers, cuda::layers_blocks(), table_, words_ + 256);
    Timing t = time_calls(stream_, 1, [&](int) {
      check(cudaMemsetAsync(args.arrived, 0, sizeof(uint32_t), stream_), "clearing");
      cuda::run_layers(args, stream_);
    });
    for (double* time : {&t.median, &t.low, &t.high}) *time /= kLayers;
    report(name + " in one kernel" + depth, t, bytes);
  }

  void attention(int length) {
    cuda::RowAttentionArgs a = attention_args(length);
    const int64_t bytes = rows_ * pages_of(length) * 2 * cuda::kv_page_bytes(16, 128);
    const auto call = [&](int i) {
      a.cache.data = reinterpret_cast<std::byte*>(weights_) + i % (kWeights / bytes) * bytes;
      cuda::attend_rows(a, stream_);
    };
    report(fmt::format("attention {}", length), time_calls(stream_, kLayers * 2, call),
           int64_t{rows_} * length * 1024);
  }

 private:
  static int pages_of(int length) { return (length + cuda::kPageTokens - 1) / cuda::kPageTokens; }

  // `kind`: fp16, to be normed, or float activations. The i-th copy of the weights.
  ProductArgs args_of(const Matrix& m, cuda::ProductOutput output, int kind, int i) const {
    const auto copies = std::min<int64_t>(kLayers, (kWeights - (int64_t{1} << 24)) / m.bytes);
    const int n = m.shape.rows;
    ProductArgs a;
    a.w = m.shape;
    a.w.codes = weights_ + i % copies * m.bytes;
    a.w.scales = weights_ + i % copies * m.bytes + m.shape.rows * m.shape.row_bytes;
    a.rows = rows_;
    a.output = output;
    a.out_rows = n;
    a.y = out_;
    a.y_stride = output == cuda::ProductOutput::kSwiglu ? n / 2 : n;
    a.row_max = m.shape.form == MatrixForm::kF16 ? words_ + 64 : nullptr;
    a.split_k = output != cuda::ProductOutput::kStore || n > 10000 ? 1 : kSplit;
    a.trigger_early = kind == 0 || (output == cuda::ProductOutput::kQkv && m.shape.form == MatrixForm::kF16);
    a.launched_early = kind == 2 || output == cuda::ProductOutput::kSwiglu;
    a.input.x = x_;
    a.input.scales = norm_;
    a.input.stride = rows_ == 1 ? 0 : 9216;
    if (rows_ == 1 && kind == 1) {
      a.input.x = nullptr;
      a.input.hidden = floats_;
      a.input.partials = floats_ + 2048;
      a.input.splits = kSplit;
      a.input.norm = norm_;
      a.input.hidden_out = floats_ + 8192;
    } else if (rows_ == 1 && kind == 2) {
      a.input.x = nullptr;
      a.input.values = floats_;
      a.input.row_max = words_;
    }
    if (output == cuda::ProductOutput::kQkv) {
      a.row_info = reinterpret_cast<const cuda::Row*>(words_ + 1024);
      a.heads = {12, 2, 128};
      a.cache.data = reinterpret_cast<std::byte*>(out_);
      a.cache.pages = words_ + 2048;
      a.cache.rotations = norm_;
      a.cache.bias = norm_;
      a.q = out_ + 65536;
    }
    return a;
  }

  cuda::RowAttentionArgs attention_args(int length) {
    check(cudaMemset(words_, 0, 4096 * sizeof(uint32_t)), "filling");
    std::vector<uint32_t> info(64 * 4);
    for (size_t i = 0; i < 64; ++i) {
      info[i * 4 + 1] = info[i * 4 + 3] = static_cast<uint32_t>(length - 1);
      info[i * 4 + 2] = static_cast<uint32_t>(i) * static_cast<uint32_t>(pages_of(length));
    }
    std::vector<uint32_t> pages(2048);
    std::iota(pages.begin(), pages.end(), 0U);
    check(cudaMemcpy(words_ + 2048, pages.data(), pages.size() * 4, cudaMemcpyHostToDevice), "pages");
    check(cudaMemcpy(words_ + 1024, info.data(), info.size() * 4, cudaMemcpyHostToDevice), "rows");
    cuda::RowAttentionArgs a;
    a.rows = rows_;
    a.row_info = reinterpret_cast<const cuda::Row*>(words_ + 1024);
    a.heads = {12, 2, 128};
    a.cache.pages = words_ + 2048;
    a.cache.data = reinterpret_cast<std::byte*>(weights_);
    a.cache.rotations = norm_;
    a.q = floats_;
    a.max_splits = cuda::split_count(length);
    a.out = x_;
    a.out_stride = 1536;
    a.split_sums = out_;
    a.split_scalars = floats_ + (1 << 20);
    a.arrived = words_;
    return a;
  }

  void report(const std::string& name, const Timing& t, int64_t bytes) const {
    const double rate = static_cast<double>(bytes) / t.median / 1e3;
    fmt::print("  {:<30} {:8.2f} us [{:.2f}, {:.2f}]  {:7.2f} MB  {:5.0f} GB/s = {:3.0f} %\n", name, t.median,
               t.low, t.high, static_cast<double>(bytes) / 1e6, rate, 100 * rate / read_);
  }

  static constexpr int64_t kWeights = int64_t{2} << 30;
  int rows_;
  cudaStream_t stream_ = nullptr;
  double read_ = 0;
  uint8_t* weights_ = nullptr;
  uint16_t* x_ = nullptr;
  float* floats_ = nullptr;
  float* out_ = nullptr;
  float* norm_ = nullptr;
  uint32_t* words_ = nullptr;
  std::byte* table_ = nullptr;
};

void run(int rows) {
  Bench bench(rows);
  using enum cuda::ProductOutput;
  for (const auto& [name, form, group] :
       {std::tuple{"fp16", MatrixForm::kF16, 0}, std::tuple{"int8", MatrixForm::kInt8, 128},
        std::tuple{"int4", MatrixForm::kInt4, 128}}) {
    const std::string prefix = std::string(name) + " ";
    bench.product(prefix + "qkv", form, 2048, 1536, group, kQkv, 1);
    bench.product(prefix + "attention output", form, 1536, 1536, group, kStore, 0);
    bench.product(prefix + "gate and up", form, 17920, 1536, group, kSwiglu, 1);
    bench.product(prefix + "down", form, 1536, 8960, group, kStore, 2);
    bench.layers(name, form, group, 129);
    bench.product(prefix + "head", form == MatrixForm::kInt4 ? MatrixForm::kInt8 : form, 151936, 1536, 1536,
                  kStore, 1);
  }
  for (const int length : {1, 129, 256, 2048}) bench.attention(length);
  if (rows == 1) bench.attention(30721);
}

}  // namespace
}  // namespace qwen2

// gpu_benchmarks [ROWS...]
int main(int argc, char** argv) {
  std::vector<int> rows{1, 8, 32, 64};
  if (argc > 1) rows.clear();
  for (int i = 1; i < argc; ++i) {
    const std::string_view text = argv[i];
    int count = 0;
    const auto read = std::from_chars(text.begin(), text.end(), count);
    if (read.ec != std::errc() || read.ptr != text.end() || count < 1 || count > qwen2::cuda::kMaxRows ||
        (count & (count - 1)) != 0) {
      fmt::print(stderr, "gpu_benchmarks: ROWS must be powers of two up to {}, not '{}'\n",
                 qwen2::cuda::kMaxRows, text);
      return 2;
    }
    rows.push_back(count);
  }
  for (const int count : rows) qwen2::run(count);
  return 0;
}
