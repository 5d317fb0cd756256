// The scalar mathematics of a correlation, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>

#include "r2kd/shared.h"

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

// The same from norm = sqrt(saa) sqrt(sbb), since sqrt(sbb) / sqrt(saa) is norm / saa. T is a number or
// a register of numbers.
template <typename T, typename Number>
R2KD_SHARED Correlation<T> correlation_from_norm(T norm, T saa, T sab, Number eps) {
  const T alpha = Number(1) / (norm + eps);
  const T r = sab * alpha;
  const T ratio = norm / saa;
  const T beta = r * alpha * (saa > Number(0) ? ratio : T{});
  return {r, alpha, beta};
}

// 1 / n for a count n >= 1, to the last digit or nearly. On the GPU a division that is rounded for
// all floats ends in a call, whose registers spill; counts need none of it.
R2KD_SHARED float inverse_of_count(float n) {
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(n));
  return std::fma(std::fma(-n, inverse, 1.0f), inverse, inverse);
#else
  return 1.0f / n;
#endif
}
R2KD_SHARED double inverse_of_count(double n) { return 1.0 / n; }

// part / total, likewise; 1 exactly where they are equal.
template <typename T>
R2KD_SHARED T ratio_of_counts(T part, T total) {
  const T inverse = inverse_of_count(total);
  const T ratio = part * inverse;
  return std::fma(std::fma(-total, ratio, part), inverse, ratio);
}

// (value + rest) += change, where value is the rounded sum and rest what the rounding left: Knuth's
// exact sum of two numbers, of whichever order of magnitude. V is a number or a register of numbers.
template <typename V>
R2KD_SHARED void add_to_split(V& value, V& rest, V change) {
  change += rest;
  const V sum = value + change;
  const V taken = sum - value;
  rest = (value - (sum - taken)) + (change - taken);
  value = sum;
}

// Moments of one column, or of a register of columns, over the rows of a block: sums of squares and
// of products, and where centred the means (in two parts) and the sums of the deviations' products.
// A mean is kept in two parts because, rounded to one, it would lose at every row what matters where
// the deviations are small beside it, or where a row far from the others has passed.
template <typename V>
struct ColumnBlock {
  V pp, qq, pq, mean_p, rest_p, mean_q, rest_q;

  R2KD_SHARED void add(V p, V q) {
    pp += p * p;
    qq += q * q;
    pq += p * q;
  }

  // Welford's update with p = e p_scale and q = h q_scale. With this row there are n rows: the mean
  // moves by d / n and the sum of squares by d^2 (n - 1) / n. The form d (p - new mean) would take p
  // twice, once rounded and once inside a fused operation.
  // inverse: 1 / n, factor: (n - 1) / n
  template <typename S>
  R2KD_SHARED void add_centered(V e, S p_scale, V h, S q_scale, S inverse, S factor) {
    const V dp = (e * p_scale - mean_p) - rest_p;
    const V dq = (h * q_scale - mean_q) - rest_q;
    add_to_split(mean_p, rest_p, static_cast<V>(dp * inverse));
    add_to_split(mean_q, rest_q, static_cast<V>(dq * inverse));
    pp += dp * dp * factor;
    qq += dq * dq * factor;
    pq += dp * dq * factor;
  }

  // Chan's merge of n rows whose deviations from (mean_p, mean_q) are known: `group` has the sums of
  // their squares and products, and in rest_p and rest_q the sums of the deviations themselves.
  // inverse: 1 / n, share: n / (n + rows so far), factor: n rows / (n + rows)
  template <typename S>
  R2KD_SHARED void add_group(const ColumnBlock& group, S n, S inverse, S share, S factor) {
    const V rest_of_p = group.rest_p * inverse, rest_of_q = group.rest_q * inverse;
    const V dp = (group.mean_p - mean_p) + (rest_of_p - rest_p);
    const V dq = (group.mean_q - mean_q) + (rest_of_q - rest_q);
    pp += (group.pp - rest_of_p * rest_of_p * n) + dp * dp * factor;
    qq += (group.qq - rest_of_q * rest_of_q * n) + dq * dq * factor;
    pq += (group.pq - rest_of_p * rest_of_q * n) + dp * dq * factor;
    add_to_split(mean_p, rest_p, static_cast<V>(dp * share));
    add_to_split(mean_q, rest_q, static_cast<V>(dq * share));
  }
};

}  // namespace r2kd
