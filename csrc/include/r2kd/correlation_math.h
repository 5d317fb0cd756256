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

template <typename T>
R2KD_SHARED Correlation<T> correlation_from_moments(T saa, T sbb, T sab, T eps) {
  const T norm_a = std::sqrt(saa);
  const T norm_b = std::sqrt(sbb);
  const T alpha = T(1) / (norm_a * norm_b + eps);
  const T r = sab * alpha;
  const T beta = norm_a > T(0) ? r * alpha * norm_b / norm_a : T(0);
  return {r, alpha, beta};
}

}  // namespace r2kd
