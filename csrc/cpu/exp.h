// exp(d / T) for d <= 0, one SIMD register at a time, as r2kd/exp_math.h does it for numbers.
#pragma once

#include "r2kd/exp_math.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

R2KD_INLINE Vector<float> exp2_polynomial(Vector<float> f) { return exp2_polynomial_float(f); }
R2KD_INLINE Vector<double> exp2_polynomial(Vector<double> f) { return exp2_polynomial_double(f); }

template <typename T>
class ScaledExp {
 public:
  explicit ScaledExp(double temperature) {
    const ExpScale<T> scale = exp_scale<T>(temperature, kPowerAtBound);
    high_ = broadcast<T>(scale.high);
    low_ = broadcast<T>(scale.low);
    bound_ = broadcast<T>(scale.bound);
  }

  // NaN stays NaN; -inf and everything below the bound give 0.
  R2KD_INLINE Vector<T> operator()(Vector<T> d) const {
    d = maximum<T>(bound_, d);
    if constexpr (kBySixteenths) {
      return by_sixteenths(d);
    } else {
      const Vector<T> n = (d * high_ + kRoundToInteger<T>) - kRoundToInteger<T>;
      Vector<T> f = d * high_ - n;
      f = d * low_ + f;
      return scale_by_power(exp2_polynomial(f), n);
    }
  }

 private:
  static constexpr bool kBySixteenths = R2KD_VECTOR_BYTES == 64 && sizeof(T) == 4;
  // By sixteenths: at the bound 16 n + k must not round below n = -127.
  static constexpr double kPowerAtBound = kBySixteenths ? 126.9 : kLargestPower<T>;
  Vector<T> high_, low_, bound_;

#if R2KD_VECTOR_BYTES == 64
  // Adding 1.5 * 2^19 leaves 16 n + k in the low bits. Moved up by 19 they are n in the exponent and
  // k in the first bits of the mantissa, which the table has subtracted from the bits of 2^(k/16):
  // one integer addition makes 2^(n + k/16). n = -127, below the bound, gives a denormal number,
  // which counts as 0 (see FlushDenormals).
  R2KD_INLINE Vector<float> by_sixteenths(Vector<float> d) const {
    constexpr float kRoundSixteenth = 786432.0f;
    const Vector<float> shifted = d * high_ + kRoundSixteenth;
    Vector<float> f = d * high_ - (shifted - kRoundSixteenth);
    f = d * low_ + f;
    Vector<float> y = f * 0.055502135306596756f + 0.24023428559303284f;
    y = (y * f + 0.69314718246459961f) * f;  // 2^f - 1
    const __m512i bits = _mm512_castps_si512(shifted);
    const Vector<float> power = _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_permutexvar_epi32(bits, sixteenths()), _mm512_slli_epi32(bits, 19)));
    return y * power + power;
  }
  static R2KD_INLINE __m512i sixteenths() {
    return _mm512_setr_epi32(
        0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
        0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
  }
#endif
};

}  // namespace R2KD_ISA
}  // namespace r2kd
