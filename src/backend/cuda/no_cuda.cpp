// In place of the CUDA backend, where CUDA's compiler was not there.
#include "backend/backend.h"

namespace qwen2 {

bool cuda_is_available() {
  return false;
}

Result<std::unique_ptr<Backend>> create_cuda_backend(const Checkpoint& /*checkpoint*/,
                                                     const Limits& /*limits*/,
                                                     const CudaOptions& /*options*/) {
  return fail(ErrorKind::kUnsupported,
              "--device cuda: this program was built without CUDA's compiler; use --device cpu");
}

}  // namespace qwen2
