#include "backend/cuda/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backend/cuda/memory.h"
#include "base/parallel.h"
#include "tensor/quantized_storage.h"

namespace qwen2 {
namespace {

using cuda::DeviceMatrix;
using cuda::MatrixForm;

constexpr int64_t kRun = cuda::kTileRows / 2;  // rows stay neighbours in runs of eight, see cuda_stored_row()

// Uploads rows: each thread fills its own page-locked buffer and sends it run by run. The second half of the
// buffer is for repacking the run chunk by chunk, the order of codes in device memory.
class RowUploader {
 public:
  static Result<RowUploader> create(int64_t row_bytes) {
    RowUploader uploader;
    uploader.row_bytes_ = row_bytes;
    QWEN2_TRY(uploader.buffer_,
              PinnedBuffer::allocate(static_cast<size_t>(parallel_threads() * 2 * kRun * row_bytes),
                                     "a buffer for weights"));
    return uploader;
  }
  // This thread's buffer for row `row`, zeroed.
  [[nodiscard]] uint8_t* row(int64_t row) const {
    uint8_t* place = mine() + row % kRun * row_bytes_;
    std::memset(place, 0, static_cast<size_t>(row_bytes_));
    return place;
  }
  // Sends the run that ends with `row`. Its first row is stored row `stored` of `matrix`.
  void send(const DeviceMatrix& matrix, int64_t stored, int64_t row) {
    auto* target = const_cast<uint8_t*>(matrix.codes) + cuda::chunk_offset(matrix, stored, 0);
    const int64_t rows = row % kRun + 1;
    cudaError_t error = cudaSuccess;
    if (matrix.form == MatrixForm::kF16) {
      error = cudaMemcpy(target, mine(), static_cast<size_t>(rows * row_bytes_), cudaMemcpyHostToDevice);
    } else {
      constexpr size_t kPitch = kRun * cuda::kChunkBytes;
      constexpr size_t kTilePitch = size_t{cuda::kTileRows} * cuda::kChunkBytes;
      const auto width = static_cast<size_t>(rows * cuda::kChunkBytes);
      error = cudaMemcpy2D(target, kTilePitch, repacked(rows), kPitch, width,
                           static_cast<size_t>(matrix.chunks()), cudaMemcpyHostToDevice);
    }
    if (error != cudaSuccess) error_ = error;
  }
  [[nodiscard]] Status status() const { return cuda_status(error_, "sending weights"); }

  RowUploader(RowUploader&& other) noexcept
      : row_bytes_(other.row_bytes_), buffer_(std::move(other.buffer_)), error_(other.error_.load()) {}
  RowUploader& operator=(RowUploader&& other) noexcept {
    row_bytes_ = other.row_bytes_;
    buffer_ = std::move(other.buffer_);
    error_ = other.error_.load();
    return *this;
  }
  RowUploader(const RowUploader&) = delete;
  RowUploader& operator=(const RowUploader&) = delete;
  ~RowUploader() = default;

 private:
  RowUploader() = default;
  [[nodiscard]] uint8_t* mine() const {
    return reinterpret_cast<uint8_t*>(buffer_.data()) + parallel_thread() * 2 * kRun * row_bytes_;
  }
  // Repacks the first rows of the buffer chunk by chunk.
  [[nodiscard]] const uint8_t* repacked(int64_t rows) const {
    uint8_t* out = mine() + kRun * row_bytes_;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t at = 0; at < row_bytes_; at += cuda::kChunkBytes) {
        std::memcpy(out + at * kRun + row * cuda::kChunkBytes, mine() + row * row_bytes_ + at,
                    cuda::kChunkBytes);
      }
    }
    return out;
  }

  int64_t row_bytes_ = 0;
  PinnedBuffer buffer_;
  std::atomic<cudaError_t> error_ = cudaSuccess;
};

// The scales and minima of a matrix, collected on the host until all rows are loaded.
struct Tables {
  std::vector<uint16_t> halves;
  std::vector<float> scales, minima;

  explicit Tables(const DeviceMatrix& m) {
    const auto size = static_cast<size_t>(m.rows) * static_cast<size_t>(m.groups);
    if (m.form == MatrixForm::kF16) return;
    if (cuda::is_general(m.form)) {
      scales.resize(size);
      minima.resize(size);
    } else {
      halves.resize(size);
    }
  }
  static size_t index(const DeviceMatrix& m, int64_t stored, int64_t group) {
    return static_cast<size_t>((stored / cuda::kTileRows * m.groups + group) * cuda::kTileRows +
                               stored % cuda::kTileRows);
  }
  Status send(const DeviceMatrix& m) const {
    const auto copy = [](const void* target, const void* source, size_t bytes) {
      return cuda_status(cudaMemcpy(const_cast<void*>(target), source, bytes, cudaMemcpyHostToDevice),
                         "sending scales");
    };
    if (!halves.empty()) return copy(m.scales, halves.data(), halves.size() * sizeof(uint16_t));
    if (scales.empty()) return {};
    QWEN2_CHECK(copy(m.scales, scales.data(), scales.size() * sizeof(float)));
    return copy(m.minima, minima.data(), minima.size() * sizeof(float));
  }
};

const CudaMatrixPart& part_of(const CudaMatrix& matrix, int64_t stored) {
  const auto part = std::find_if(matrix.rbegin(), matrix.rend(),
                                 [&](const CudaMatrixPart& p) { return p.first_row <= stored; });
  return *part;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const Qwen2Config& config, const cpu::Kernels& kernels)
      : checkpoint_(checkpoint), config_(config), kernels_(kernels) {}

  Status load(const MatrixEntry& entry, const CudaMatrix& matrix) {
    std::vector<Tables> tables;
    tables.reserve(matrix.size());
    for (const CudaMatrixPart& part : matrix) tables.emplace_back(part.matrix);
    for (size_t s = 0; s < entry.sources.size(); ++s) {
      const CudaMatrixPart& part = part_of(matrix, cuda_stored_row(config_, entry, s, 0));
      QWEN2_CHECK(load_source(entry, s, part, tables[static_cast<size_t>(&part - matrix.data())]));
    }
    for (size_t p = 0; p < matrix.size(); ++p) QWEN2_CHECK(tables[p].send(matrix[p].matrix));
    return {};
  }

 private:
  Status load_source(const MatrixEntry& entry, size_t s, const CudaMatrixPart& part, Tables& tables) {
    const TensorSource& source = entry.sources[s];
    QWEN2_TRY(const auto stored, checkpoint_.matrix_format(source.name, source.rows, entry.cols));
    QWEN2_TRY(RowUploader uploader, RowUploader::create(part.matrix.row_bytes));
    const auto place = [&](int64_t row) { return cuda_stored_row(config_, entry, s, row) - part.first_row; };
    if (part.matrix.form != MatrixForm::kF16 && stored) {
      return load_quantized(entry, source, *stored, part.matrix, place, uploader, tables);
    }
    std::atomic<bool> overflow = false;
    QWEN2_CHECK(read_expanded(checkpoint_, source.name, source.rows, entry.cols,
                              [&](int64_t row, const float* values) {
                                uint8_t* codes = uploader.row(row);
                                if (part.matrix.form == MatrixForm::kF16) {
                                  if (!to_half(values, entry.cols, codes)) overflow = true;
                                } else {
                                  quantize(values, part.matrix, place(row), codes, tables);
                                }
                                finish_row(row, source.rows, part.matrix, place, uploader);
                              }));
    if (overflow) {
      return fail(ErrorKind::kUnsupported,
                  "tensor '{}' has values beyond 65504, which fp16 does not hold; --precision int8 does",
                  source.name);
    }
    return uploader.status();
  }

  template <class Place>
  static void finish_row(int64_t row, int64_t rows, const DeviceMatrix& m, const Place& place,
                         RowUploader& uploader) {
    if ((row + 1) % kRun == 0 || row + 1 == rows) uploader.send(m, place(row / kRun * kRun), row);
  }

  static bool to_half(const float* values, int64_t cols, uint8_t* out) {
    bool fits = true;
    for (int64_t k = 0; k < cols; ++k) {
      const uint16_t half = float_to_f16(values[k]);
      fits = fits && (half & 0x7fffU) < 0x7c00U;
      std::memcpy(out + 2 * k, &half, sizeof half);
    }
    return fits;
  }

  void quantize(const float* values, const DeviceMatrix& m, int64_t stored, uint8_t* codes,
                Tables& tables) const {
    const int bits = cuda::form_bits(m.form);
    std::vector<int8_t> group(static_cast<size_t>(m.group));
    for (int64_t g = 0; g < m.groups; ++g) {
      tables.halves[Tables::index(m, stored, g)] =
          kernels_.quantize_group(values + g * m.group, m.group, bits, group.data());
      for (int64_t i = 0; i < m.group; ++i)
        set_cuda_code(m.form, codes, g * m.group + i, group[static_cast<size_t>(i)] + (bits == 4 ? 8 : 0));
    }
  }

  template <class Place>
  Status load_quantized(const MatrixEntry& entry, const TensorSource& source, const QuantizedFormat& format,
                        const DeviceMatrix& m, const Place& place, RowUploader& uploader, Tables& tables) {
    const QuantizedStorage storage(format, source.rows, entry.cols);
    const QuantizedMatrix& host = storage.matrix();
    QWEN2_CHECK(checkpoint_.load_quantized(source.name, source.rows, host, 0));
    parallel_ranges((source.rows + kRun - 1) / kRun, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kRun; row < std::min(end * kRun, source.rows); ++row) {
        uint8_t* codes = uploader.row(row);
        for (int64_t k = 0; k < entry.cols; ++k) set_cuda_code(m.form, codes, k, host.code(row, k));
        for (int64_t g = 0; g < m.groups; ++g) {
          const size_t at = Tables::index(m, place(row), g);
          if (cuda::is_general(m.form)) {
            tables.scales[at] = host.scale(row, g * m.group);
            tables.minima[at] = host.minimum(row, g * m.group);
          } else {
            tables.halves[at] = float_to_f16(host.scale(row, g * m.group));  // exact: it came from fp16
          }
        }
        finish_row(row, source.rows, m, place, uploader);
      }
    });
    if (m.order != nullptr) {
      // Tensors that share a matrix share its order of columns.
      const std::vector<int32_t> order(host.permutation, host.permutation + entry.cols);
      if (order_of_ == m.order && order != order_) {
        return fail(ErrorKind::kUnsupported,
                    "tensor '{}' has another order of columns (desc_act) than the one it is multiplied with",
                    source.name);
      }
      order_of_ = m.order;
      order_ = order;
      QWEN2_CHECK(
          cuda_status(cudaMemcpy(const_cast<int32_t*>(m.order), host.permutation,
                                 static_cast<size_t>(m.cols) * sizeof(int32_t), cudaMemcpyHostToDevice),
                      "sending an order of columns"));
    }
    return uploader.status();
  }

  const Checkpoint& checkpoint_;
  const Qwen2Config& config_;
  const cpu::Kernels& kernels_;
  const int32_t* order_of_ = nullptr;  // the matrix whose order of columns was sent last
  std::vector<int32_t> order_;
};

}  // namespace

void set_cuda_code(MatrixForm form, uint8_t* codes, int64_t col, int code) {
  const cuda::CodeLocation place = cuda::code_location(form, col);
  if (cuda::form_bits(form) == 8) {
    codes[place.byte] = static_cast<uint8_t>(cuda::is_general(form) ? code + 128 : code);
  } else {
    const int bits = cuda::is_general(form) ? code : code ^ 8;  // signed: code - 8
    codes[place.byte] = static_cast<uint8_t>(codes[place.byte] | (bits << place.shift));
  }
}

Status load_cuda_weights(const Checkpoint& checkpoint, const Qwen2Config& config, const cpu::Kernels& kernels,
                         CudaWeights& weights) {
  QWEN2_CHECK(check_biases(checkpoint, config));
  const Inventory inventory(config);
  Loader loader(checkpoint, config, kernels);
  for (const MatrixEntry& entry : inventory.matrices)
    QWEN2_CHECK(loader.load(entry, matrix_of(weights, entry)));
  for (const VectorEntry& entry : inventory.vectors) {
    std::vector<float> values(static_cast<size_t>(entry.size()));
    float* out = values.data();
    for (const TensorSource& source : entry.sources) {
      QWEN2_CHECK(checkpoint.load_vector(source.name, source.rows, out));
      out += source.rows;
    }
    QWEN2_CHECK(cuda_status(cudaMemcpy(vector_of(weights, entry), values.data(),
                                       values.size() * sizeof(float), cudaMemcpyHostToDevice),
                            "sending a vector"));
  }
  return {};
}

}  // namespace qwen2
