// The entry points of every instruction set, as dispatch.cpp calls them.
#pragma once

#include "r2kd/correlation.h"

#define R2KD_DECLARE_CORRELATION(isa)                                                              \
  namespace isa {                                                                                  \
  Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,          \
                             const ConstMatrix& teacher, const std::uint8_t* mask,                 \
                             std::int64_t mask_stride, const double* sample_weight, void* loss,    \
                             void* stats, int threads);                                            \
  Status correlation_moments(const CorrelationParams& params, const ConstMatrix& student,          \
                             const ConstMatrix& teacher, const std::uint8_t* mask,                 \
                             std::int64_t mask_stride, const double* sample_weight, double* sums,  \
                             double* columns, void* stats, int threads);                           \
  Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,         \
                              const ConstMatrix& teacher, const std::uint8_t* mask,                \
                              std::int64_t mask_stride, const void* grad_loss, const void* stats,  \
                              void* grad_student, int threads);                                    \
  }

namespace r2kd {

R2KD_DECLARE_CORRELATION(baseline)
#if defined(__x86_64__)
R2KD_DECLARE_CORRELATION(avx2)
R2KD_DECLARE_CORRELATION(avx512)
#endif

}  // namespace r2kd
