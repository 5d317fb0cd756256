// Stands in for csr_linear.cu and csr_conv2d.cu in a build without CUDA.
#include "sparse.h"

namespace r2kd {
namespace cuda {
namespace {

constexpr CudaStatus kAbsent{-1, kPreparing, "built without CUDA"};

}  // namespace

CudaStatus csr_linear(const ConstMatrix&, std::int64_t, const CsrMatrix&, const void*, void*,
                      const Place&) {
  return kAbsent;
}

CudaStatus csr_conv2d(const Conv2dParams&, const ConstImages&, const CsrMatrix&, const void*, void*,
                      bool, const Place&) {
  return kAbsent;
}

}  // namespace cuda
}  // namespace r2kd
