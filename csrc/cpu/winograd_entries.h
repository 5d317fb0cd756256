// The entry points of every instruction set, as dispatch.cpp calls them.
#pragma once

#include "r2kd/winograd.h"

#define R2KD_DECLARE_WINOGRAD(isa)                                                            \
  namespace isa {                                                                             \
  Status winograd_conv2d(const WinogradParams& params, const float* x, const float* weight,   \
                         const float* bias, const float* other, float* y, int threads);       \
  }

namespace r2kd {

R2KD_DECLARE_WINOGRAD(baseline)
#if defined(__x86_64__)
R2KD_DECLARE_WINOGRAD(avx2)
R2KD_DECLARE_WINOGRAD(avx512)
#endif

}  // namespace r2kd
