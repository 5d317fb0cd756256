// exp(d / T) for d <= 0, one SIMD register at a time.
//
// With c = log2(e) / T:  d c = n + f, n an integer, |f| <= 1/2, and exp(d / T) = 2^n 2^f.
// n comes from adding 1.5 * 2^23 (double: 2^52), which leaves the nearest integer in the low bits.
// A fused multiply-subtract gives f without the rounding error of d c, and c is held in two parts,
// so that the relative error stays at about one unit in the last place however large |d| is.
// 2^f is a minimax polynomial with constant term 1 (relative error 2.6e-9 and 1.8e-17; fitted by
// the Remez exchange, see docs/mathematics.md), so that exp(0) = 1 exactly.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

R2KD_INLINE Vector<float> exp2_polynomial(Vector<float> f) {
  Vector<float> y = f * 0.00015594678161326619f + 0.0013406643902351760f;
  y = y * f + 0.0096176929729930623f;
  y = y * f + 0.055503105510137972f;
  y = y * f + 0.24022652782887738f;
  y = y * f + 0.69314721496802790f;
  return y * f + 1.0f;
}

R2KD_INLINE Vector<double> exp2_polynomial(Vector<double> f) {
  Vector<double> y = f * 4.0780719295883367e-10 + 7.0725704128144235e-9;
  y = y * f + 1.0180647659234139e-7;
  y = y * f + 1.3215442675329822e-6;
  y = y * f + 1.5252727385193868e-5;
  y = y * f + 1.5403530441572130e-4;
  y = y * f + 1.3333558153439965e-3;
  y = y * f + 9.6181291076070024e-3;
  y = y * f + 5.5504108664790395e-2;
  y = y * f + 0.24022650695910098;
  y = y * f + 0.69314718055994570;
  return y * f + 1.0;
}

template <typename T>
class ScaledExp {
 public:
  explicit ScaledExp(double temperature) {
    const double c = kLog2E / temperature;
    const T high = static_cast<T>(c);
    // What c lost to float, or to the rounding of the division and of log2(e) itself.
    const double low = sizeof(T) == 4 ? c - static_cast<double>(high)
                                      : (std::fma(-c, temperature, kLog2E) + kLog2ETail) / temperature;
    const double bound = -kLargestPower / c;
    high_ = broadcast<T>(high);
    low_ = broadcast<T>(static_cast<T>(low));
    bound_ = broadcast<T>(bound < -std::numeric_limits<T>::max() ? -std::numeric_limits<T>::max()
                                                                 : static_cast<T>(bound));
  }

  // NaN stays NaN; -inf and everything below the bound give 0.
  R2KD_INLINE Vector<T> operator()(Vector<T> d) const {
    d = maximum<T>(bound_, d);
    if constexpr (kBySixteenths) {
      return by_sixteenths(d);
    } else {
      const Vector<T> n = (d * high_ + kRound) - kRound;
      Vector<T> f = d * high_ - n;
      f = d * low_ + f;
      return scale_by_power(exp2_polynomial(f), n);
    }
  }

 private:
  static constexpr bool kBySixteenths = R2KD_VECTOR_BYTES == 64 && sizeof(T) == 4;
  static constexpr double kLog2E = 1.4426950408889634;  // rounded to double
  static constexpr double kLog2ETail = 2.0355273740931033e-17;
  // By sixteenths: at the bound 16 n + k must not round below n = -127.
  static constexpr double kLargestPower =
      sizeof(T) == 8 ? 1023.0 : kBySixteenths ? 126.9 : 127.0;
  static constexpr T kRound = static_cast<T>(sizeof(T) == 4 ? 12582912.0 : 6755399441055744.0);
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
