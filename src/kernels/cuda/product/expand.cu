// A quantised matrix in fp16, for cuBLASLt.
#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/product/product.h"

namespace qwen2::cuda {
namespace {

// One word of codes for each thread: four columns of 8 bits, or two times four of 4 bits.
template <MatrixForm form>
__global__ void expand_kernel(const __grid_constant__ DeviceMatrix w, uint16_t* out, int64_t stride) {
  wait_for_previous();
  trigger_dependents();
  const int row = blockIdx.y;
  const int words = static_cast<int>(w.row_bytes / 4);
  auto* to = reinterpret_cast<__half*>(out) + row * stride;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
    const int chunk = i / 16;
    const int t = i % 4;  // neighbouring threads write neighbouring columns
    const int j = i % 16 / 4;
    const uint32_t word =
        *reinterpret_cast<const uint32_t*>(w.codes + chunk_offset(w, row, chunk) + t * 16 + j * 4);
    constexpr int fours = form_bits(form) == 8 ? 1 : 2;
#pragma unroll
    for (int f = 0; f < fours; ++f) {
      const int col = chunk * chunk_columns(form) + 64 * f + 16 * j + 4 * t;
      if (col >= w.cols) continue;
      const int64_t at = (int64_t(row / kTileRows) * w.groups + col / w.group) * kTileRows + row % kTileRows;
      float scale;
      float minimum = 0;
      if constexpr (is_general(form)) {
        scale = static_cast<const float*>(w.scales)[at];
        minimum = w.minima[at];
      } else {
        scale = __half2float(static_cast<const __half*>(w.scales)[at]);
      }
      __half v[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int byte = static_cast<int>(word >> (8 * c) & 255U);
        int code = signed_code(form, byte, 4 * f);
        if constexpr (is_general(form)) code = form_bits(form) == 8 ? byte - 128 : byte >> 4 * f & 15;
        v[c] = __float2half_rn(saturate_half(scale * float(code) - minimum));
      }
      if (w.order != nullptr) {
        for (int c = 0; c < 4; ++c) to[w.order[col + c]] = v[c];
      } else {
        *reinterpret_cast<uint2*>(to + col) = {as_bits(__halves2half2(v[0], v[1])),
                                               as_bits(__halves2half2(v[2], v[3]))};
      }
    }
  }
}

}  // namespace

void expand(const DeviceMatrix& w, uint16_t* out, int64_t stride, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((w.row_bytes / 4 + 255) / 256), w.rows);
  switch (w.form) {
    case MatrixForm::kInt8:
      return launch<expand_kernel<MatrixForm::kInt8>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt4:
      return launch<expand_kernel<MatrixForm::kInt4>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt8General:
      return launch<expand_kernel<MatrixForm::kInt8General>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kInt4General:
      return launch<expand_kernel<MatrixForm::kInt4General>>(blocks, 256, 0, stream, w, out, stride);
    case MatrixForm::kF16:
      break;  // needs no expansion
  }
}

}  // namespace qwen2::cuda
