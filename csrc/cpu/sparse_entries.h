// The entry points of every instruction set, as dispatch.cpp calls them.
#pragma once

#include "r2kd/sparse.h"

#define R2KD_DECLARE_SPARSE(isa)                                                                \
  namespace isa {                                                                               \
  Status csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight,          \
                    const void* bias, void* y, int threads);                                    \
  Status csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,  \
                    const void* bias, void* y, bool channels_last, int threads);                \
  }

namespace r2kd {

R2KD_DECLARE_SPARSE(baseline)
#if defined(__x86_64__)
R2KD_DECLARE_SPARSE(avx2)
R2KD_DECLARE_SPARSE(avx512)
#endif

}  // namespace r2kd
