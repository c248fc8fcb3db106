// Activations of several rows in another layout.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/rows/put_row.cuh"

namespace qwen2::cuda {
namespace {

__global__ void repack_kernel(const __grid_constant__ RepackArgs a) {
  trigger_dependents();
  wait_for_previous();
  const int row = blockIdx.y;
  const int k = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (k >= a.out.stride) return;
  const auto value = [&](int i) {
    const int from = a.order != nullptr ? a.order[i] : i;
    if (a.values != nullptr) return __ldcg(a.values + int64_t(row) * a.cols + from);
    return __half2float(__ushort_as_half(__ldcg(a.halves + row * a.out.stride + from)));
  };
  float4 v = {};
  if (k < a.cols) {
    if (a.order != nullptr) {
      v = {value(k), value(k + 1), value(k + 2), value(k + 3)};
    } else if (a.values != nullptr) {
      v = __ldcg(reinterpret_cast<const float4*>(a.values + int64_t(row) * a.cols + k));
    } else {
      v = to_floats(__ldcg(reinterpret_cast<const uint2*>(a.halves + row * a.out.stride + k)));
    }
  }
  if (a.row_max != nullptr) v = times(v, __fdividef(1, half_scale(__uint_as_float(__ldcg(a.row_max + row)))));
  put_row(a.out, row, k, v);
}

}  // namespace

void repack(const RepackArgs& args, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const auto quads = static_cast<unsigned>(args.out.stride / 4);
  launch<repack_kernel>(dim3((quads + kThreads - 1) / kThreads, args.rows), kThreads, 0, stream, args);
}

}  // namespace qwen2::cuda
