#include "backend/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <tuple>

namespace qwen2 {
namespace {

// The functions of the library that are used.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;

  Status load() {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
      if (handle == nullptr) handle = dlopen(name, RTLD_NOW);
    }
    if (handle == nullptr) {
      return fail(ErrorKind::kNotFound,
                  "--device cuda needs libcublasLt.so.13 (CUDA 13's cuBLAS), which was not found: {}",
                  dlerror());
    }
    bool found = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      found = found && function != nullptr;
    };
    find(create, "cublasLtCreate");
    find(destroy, "cublasLtDestroy");
    find(matmul, "cublasLtMatmul");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    if (!found) return fail(ErrorKind::kUnsupported, "libcublasLt.so.13 lacks a function of cuBLASLt 13");
    return {};
  }
};

Status check(cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return fail(ErrorKind::kInternal, "cuBLASLt: {} failed with status {}", what, static_cast<int>(status));
}

// The descriptions and the algorithm of a shape, prepared once.
struct Prepared {
  cublasLtMatrixLayout_t w = nullptr;
  cublasLtMatrixLayout_t x = nullptr;
  cublasLtMatrixLayout_t y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

class Loaded final : public CublasLt {
 public:
  Loaded(void* workspace, size_t bytes) : workspace_(workspace), workspace_bytes_(bytes) {}
  ~Loaded() override {
    for (const auto& [shape, p] : prepared_) {
      for (cublasLtMatrixLayout_t layout : {p.w, p.x, p.y}) library_.layout_destroy(layout);
    }
    if (desc_ != nullptr) library_.desc_destroy(desc_);
    if (handle_ != nullptr) library_.destroy(handle_);
  }

  Status start() {
    QWEN2_CHECK(library_.load());
    QWEN2_CHECK(check(library_.create(&handle_), "opening"));
    // Column-major: y' [n, m] = (w')^T [n, k] x' [k, m].
    QWEN2_CHECK(check(library_.desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description"));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    return check(library_.desc_set(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
                 "a description");
  }

  Status multiply(const DenseProduct& p, cudaStream_t stream) override {
    const Shape shape{p.n, p.k, p.m, p.w_stride, p.x_stride, p.y_stride};
    auto found = prepared_.find(shape);
    if (found == prepared_.end()) {
      QWEN2_TRY(const Prepared prepared, prepare(p));
      found = prepared_.emplace(shape, prepared).first;
    }
    const Prepared& ready = found->second;
    const float one = 1;
    const float zero = 0;
    return check(library_.matmul(handle_, desc_, &one, p.w, ready.w, p.x, ready.x, &zero, p.y, ready.y, p.y,
                                 ready.y, &ready.algorithm, workspace_, workspace_bytes_, stream),
                 "a product");
  }

 private:
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

  Result<Prepared> prepare(const DenseProduct& p) {
    Prepared ready;
    const auto k = static_cast<uint64_t>(p.k);
    const auto n = static_cast<uint64_t>(p.n);
    const auto m = static_cast<uint64_t>(p.m);
    QWEN2_CHECK(check(library_.layout_create(&ready.w, CUDA_R_16F, k, n, p.w_stride), "a layout"));
    QWEN2_CHECK(check(library_.layout_create(&ready.x, CUDA_R_16F, k, m, p.x_stride), "a layout"));
    QWEN2_CHECK(check(library_.layout_create(&ready.y, CUDA_R_32F, n, m, p.y_stride), "a layout"));
    cublasLtMatmulPreference_t preference = nullptr;
    QWEN2_CHECK(check(library_.preference_create(&preference), "a preference"));
    const uint64_t bytes = workspace_bytes_;
    QWEN2_CHECK(check(
        library_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes),
        "a preference"));
    std::array<cublasLtMatmulHeuristicResult_t, 1> results{};
    int count = 0;
    const cublasStatus_t status =
        library_.heuristic(handle_, desc_, ready.w, ready.x, ready.y, ready.y, preference,
                           static_cast<int>(results.size()), results.data(), &count);
    library_.preference_destroy(preference);
    QWEN2_CHECK(check(status, "choosing an algorithm"));
    if (count == 0)
      return fail(ErrorKind::kInternal, "cuBLASLt has no algorithm for {} x {} x {}", p.n, p.k, p.m);
    ready.algorithm = results[0].algo;
    return ready;
  }

  Library library_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  void* workspace_;
  size_t workspace_bytes_;
  std::map<Shape, Prepared> prepared_;
};

}  // namespace

Result<std::unique_ptr<CublasLt>> CublasLt::open(void* workspace, size_t workspace_bytes) {
  auto loaded = std::make_unique<Loaded>(workspace, workspace_bytes);
  QWEN2_CHECK(loaded->start());
  return loaded;
}

}  // namespace qwen2
