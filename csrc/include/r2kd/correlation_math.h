// The scalar mathematics of a correlation, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define R2KD_SHARED __host__ __device__ __forceinline__
#else
// Inlined without exception: the CPU kernels are compiled for several instruction sets, and the
// linker would otherwise keep one copy of the function for all of them.
#define R2KD_SHARED inline __attribute__((always_inline))
#endif

namespace r2kd {

// r and its derivative dr/da = alpha b - beta a, from the moments of a and b (centred where the
// correlation is): saa = sum a^2, sbb = sum b^2, sab = sum a b, N = sqrt(saa) sqrt(sbb) + eps,
//   r = sab / N,  alpha = 1 / N,  beta = sab sqrt(sbb) / (N^2 sqrt(saa)), and 0 where saa = 0
// (the subgradient 0 of the norm at the origin).
template <typename T>
struct Correlation {
  T r, alpha, beta;
};

// From norm = sqrt(saa) sqrt(sbb): sqrt(sbb) / sqrt(saa) is norm / saa. T is a number or a register.
template <typename T, typename Number>
R2KD_SHARED Correlation<T> correlation_from_norm(T norm, T saa, T sab, Number eps) {
  const T alpha = Number(1) / (norm + eps);
  const T r = sab * alpha;
  const T ratio = norm / saa;
  const T beta = r * alpha * (saa > Number(0) ? ratio : T{});
  return {r, alpha, beta};
}

template <typename T>
R2KD_SHARED Correlation<T> correlation_from_moments(T saa, T sbb, T sab, T eps) {
  return correlation_from_norm(std::sqrt(saa) * std::sqrt(sbb), saa, sab, eps);
}

}  // namespace r2kd
