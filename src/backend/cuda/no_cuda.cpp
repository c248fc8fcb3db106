// In place of the CUDA backend, in builds without CUDA's compiler.
#include "backend/backend.h"

namespace qwen2 {

bool cuda_is_available() {
  return false;
}

std::optional<std::string> cuda_build_advice() {
  return std::nullopt;
}

Result<std::unique_ptr<Backend>> create_cuda_backend(const Checkpoint& /*checkpoint*/,
                                                     const Limits& /*limits*/,
                                                     const CudaOptions& /*options*/) {
  return fail(ErrorKind::kUnsupported,
              "--device cuda: this program was built without CUDA's compiler; use --device cpu");
}

}  // namespace qwen2
