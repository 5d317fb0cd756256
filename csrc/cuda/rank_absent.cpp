// Stands in for rank.cu in a build without CUDA.
#include "rank.h"

namespace r2kd {
namespace cuda {
namespace {

constexpr CudaStatus kAbsent{-1, kPreparing, "built without CUDA"};

}  // namespace

CudaStatus spearman_forward(const SpearmanParams&, const ConstMatrix&, const ConstMatrix&,
                            const std::uint8_t*, std::int64_t, void*, void*, const Place&) {
  return kAbsent;
}

CudaStatus spearman_backward(const SpearmanParams&, const ConstMatrix&, const ConstMatrix&,
                             const std::uint8_t*, std::int64_t, const void*, std::int64_t, void*,
                             void*, const Place&) {
  return kAbsent;
}

CudaStatus soft_rank_forward(const SoftRankParams&, const ConstMatrix&, void*, std::uint32_t*,
                             void*, const Place&) {
  return kAbsent;
}

CudaStatus soft_rank_backward(const SoftRankParams&, const ConstMatrix&, const std::uint32_t*,
                              void*, DType, void*, const Place&) {
  return kAbsent;
}

}  // namespace cuda
}  // namespace r2kd
