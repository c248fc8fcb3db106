// The SwiGLU of a prompt's rows.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/rows/rows.h"

namespace qwen2::cuda {
namespace {

__device__ __forceinline__ float swiglu(float gate, float up) {
  return gate / (1.0F + __expf(-gate)) * up;
}

// One block for each row. A row that must be scaled down is computed twice.
__global__ void swiglu_kernel(const __grid_constant__ SwigluArgs a) {
  __shared__ float scratch[64];
  wait_for_previous();
  trigger_dependents();
  const int64_t row = blockIdx.x;
  const float* in = a.gate_up + row * a.gate_up_stride;
  __half* x = reinterpret_cast<__half*>(a.x) + row * a.stride;
  float max = 0;
  const auto run = [&](float down) {
    for (int k = threadIdx.x * 4; k < a.stride; k += blockDim.x * 4) {
      float v[4] = {};
      if (k < a.cols) {
        const float4 gate = __ldcg(reinterpret_cast<const float4*>(in + k / 8 * 16 + k % 8));
        const float4 up = __ldcg(reinterpret_cast<const float4*>(in + k / 8 * 16 + k % 8 + 8));
        v[0] = swiglu(gate.x, up.x);
        v[1] = swiglu(gate.y, up.y);
        v[2] = swiglu(gate.z, up.z);
        v[3] = swiglu(gate.w, up.w);
      }
      for (float& value : v) {
        max = fmaxf(max, fabsf(value));
        value = saturate_half(value * down);
      }
      *reinterpret_cast<uint2*>(x + k) = {as_bits(__floats2half2_rn(v[0], v[1])),
                                          as_bits(__floats2half2_rn(v[2], v[3]))};
    }
  };
  run(1);
  max = block_sum_max(0, max, scratch).max;
  if (threadIdx.x == 0) a.row_max[row] = __float_as_uint(max);
  const float scale = half_scale(max);
  if (scale != 1) run(1 / scale);
}

}  // namespace

void swiglu_rows(const SwigluArgs& args, cudaStream_t stream) {
  launch<swiglu_kernel>(dim3(args.rows), 256, 0, stream, args);
}

}  // namespace qwen2::cuda
