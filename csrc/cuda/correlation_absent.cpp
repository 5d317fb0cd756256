// Stands in for correlation.cu in a build without CUDA.
#include "correlation.h"

namespace r2kd {
namespace cuda {

const bool kCompiled = false;

namespace {

constexpr CudaStatus kAbsent{-1, kPreparing, "built without CUDA"};

}  // namespace

CudaStatus plan_correlation(const CorrelationParams&, DType, DType, bool, int, Plan*) {
  return kAbsent;
}

CudaStatus correlation_forward(const CorrelationParams&, const ConstMatrix&, const ConstMatrix&,
                               const std::uint8_t*, std::int64_t, const double*, void*, void*, void*,
                               const Place&) {
  return kAbsent;
}

CudaStatus correlation_backward(const CorrelationParams&, const ConstMatrix&, const ConstMatrix&,
                                const std::uint8_t*, std::int64_t, const void*, const void*, void*,
                                const Place&) {
  return kAbsent;
}

}  // namespace cuda
}  // namespace r2kd
