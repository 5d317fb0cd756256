// The correlation distance on the CPU, forward and backward. Compiled once per instruction set;
// dispatch.cpp picks one.

#include <type_traits>

#include "correlation_backward.h"
#include "correlation_call.h"
#include "correlation_entries.h"
#include "correlation_forward.h"
#include "rows.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

template <DType dtype>
using StoredAs = std::integral_constant<DType, dtype>;

// run(type, stored, centered): the working type, how rows are read, the correlation of this call.
// Rows of 16-bit numbers are read directly where both matrices have them; all that is rarer is
// converted row by row.
template <typename Run>
Status with_types(const Call& call, const Run& run) {
  const auto with_centered = [&](auto type, auto stored) {
    return call.params.centered ? run(type, stored, std::true_type{})
                                : run(type, stored, std::false_type{});
  };
  const DType dtype = call.student.dtype;
  if (dtype == DType::float64 || call.teacher.dtype == DType::float64) {
    return with_centered(double{}, StoredAs<DType::float64>{});
  }
  if (dtype == call.teacher.dtype && call.student.col_stride == 1 && call.teacher.col_stride == 1) {
    if (dtype == DType::bfloat16) return with_centered(float{}, StoredAs<DType::bfloat16>{});
    if (dtype == DType::float16) return with_centered(float{}, StoredAs<DType::float16>{});
  }
  return with_centered(float{}, StoredAs<DType::float32>{});
}

}  // namespace

Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, void* loss,
                           void* stats, int threads) {
  const Call call{params, student, teacher, mask, mask_stride, sample_weight};
  const auto run = [&](auto type, auto stored, auto centered) {
    using T = decltype(type);
    return forward<T, decltype(stored)::value, decltype(centered)::value>(
        call, static_cast<T*>(loss), static_cast<T*>(stats), threads);
  };
  return with_types(call, run);
}

Status correlation_moments(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, double* sums,
                           double* columns, void* stats, int threads) {
  const Call call{params, student, teacher, mask, mask_stride, sample_weight};
  const auto run = [&](auto type, auto stored, auto centered) {
    using T = decltype(type);
    return moments<T, decltype(stored)::value, decltype(centered)::value>(
        call, sums, columns, static_cast<T*>(stats), threads);
  };
  return with_types(call, run);
}

Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads) {
  const Call call{params, student, teacher, mask, mask_stride, nullptr};
  const auto run = [&](auto type, auto stored, auto centered) {
    using T = decltype(type);
    return backward<T, decltype(stored)::value, decltype(centered)::value>(
        call, *static_cast<const T*>(grad_loss), static_cast<const T*>(stats), grad_student, threads);
  };
  return with_types(call, run);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
