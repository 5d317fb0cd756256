// exp((z - origin) / T) along one row of logits, one SIMD register at a time. The origin is the row's
// largest logit or one near it.
//
// With c = log2(e) / T:  z c = u + f, u the nearest number on a grid, |f| at most half its step, and
// 2^(z c) = 2^u 2^f. Adding a large constant puts z c on the grid: 1.5 * 2^23 (double: 2^52) has the
// integers for neighbours. The origin's grid point k is taken off in that constant, and 2^(u - k) is
// formed from the low bits of the sum, so that no operation subtracts the origin: the results are
// exp((z - origin) / T) times 2^d, where d, at most half a step, is the same for the whole row and
// drops out of the softmax. Where that is not exact enough, `subtracts` takes the origin off first.
// A fused multiply-subtract gives f without the rounding error of z c.
// 2^f is a minimax polynomial with constant term 1 (relative error 2.6e-9 and 1.8e-17; fitted by
// the Remez exchange, see docs/mathematics.md), so that exp(0) = 1 exactly.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "r2kd/exp_math.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

R2KD_INLINE Vector<float> exp2_polynomial(Vector<float> f) { return exp2_polynomial_float(f); }
R2KD_INLINE Vector<double> exp2_polynomial(Vector<double> f) { return exp2_polynomial_double(f); }

// The exponentials of one row, times `scale`. `subtracts`: of z - origin, at one operation more; then
// equal logits give 1 exactly, and any origin will do.
template <typename T, bool subtracts>
class RowExp {
 public:
  // c = high + low, inverse = 1 / high; unless subtracted, `origin` is one that ScaledExp::takes.
  RowExp(T high, T low, T inverse, T origin, T scale = T(1)) {
    const T shift = subtracts ? kRound : std::fma(-origin, high, kRound);  // kRound - k
    const T bound = (kRound - shift + lowest(scale)) * inverse;
    high_ = broadcast<T>(high);
    low_ = broadcast<T>(low);
    shift_ = broadcast<T>(shift);
    bound_ = broadcast<T>(bound > kLowest<T> ? bound : kLowest<T>);
    origin_ = broadcast<T>(origin);
    set_scale(scale);
  }

  // NaN stays NaN; -inf and all that exp would make denormal give 0 or a denormal number, which
  // counts as 0 (see FlushDenormals).
  R2KD_INLINE Vector<T> operator()(Vector<T> z) const {
    if constexpr (subtracts) z -= origin_;
    z = maximum<T>(bound_, z);
    const Vector<T> shifted = z * high_ + shift_;
    Vector<T> f = z * high_ - (shifted - shift_);
    if constexpr (subtracts || sizeof(T) == 8) f = z * low_ + f;
    return finish(shifted, f);
  }

#if R2KD_VECTOR_BYTES >= 32
 private:
  // Steps as fine as one permutation can look their powers up: a sixteenth where it chooses among the
  // 16 numbers of a register, a quarter where it stays within 4.
  static constexpr int kStepBits = sizeof(T) == 8 ? 0 : R2KD_VECTOR_BYTES == 64 ? 4 : 2;
#else
 private:
  static constexpr int kStepBits = 0;
#endif
  static constexpr bool kByTable = kStepBits > 0;
  static constexpr T kStepsOfOne = T(1 << kStepBits);

 public:
  // The grid holds while |origin c| stays below this: then k, like every u, has no more bits than T.
  static constexpr T kLimit = static_cast<T>(sizeof(T) == 4 ? 4194304.0 : 2251799813685248.0) / kStepsOfOne;

 private:
  static constexpr T kRound = 3 * kLimit;
  static constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  using Bits = typename VectorOf<T>::bits;  // unsigned: powers above 2^0 wrap around

  // The power of two, relative to k, that stands for all smaller ones. 2^n alone: its exponent bits
  // are 0, and so is the number.
  static T lowest(T scale) {
    if constexpr (kByTable) {
      // The result, scale included, is to have exponent bits 0 and be a number between 2^-127 and
      // 2^-126. A float's bits, as an integer, are its logarithm, off by 0.043 at most.
      std::int32_t bits;
      std::memcpy(&bits, &scale, sizeof(bits));
      return -126.5f - (static_cast<float>(bits) * 0x1p-23f - 126.957f);
    } else {
      return sizeof(T) == 4 ? T(-127) : T(-1023);
    }
  }

  R2KD_INLINE Vector<T> finish(Vector<T> shifted, Vector<T> f) const {
    if constexpr (kByTable) {
      return by_table(shifted, f);
    } else {
      constexpr auto one = std::uint64_t{sizeof(T) == 4 ? 127 : 1023} << kMantissa;
      const Bits power = (reinterpret_cast<Bits>(shifted) << kMantissa) +
                         static_cast<std::remove_reference_t<decltype(Bits{}[0])>>(one);
      return exp2_polynomial(f) * (reinterpret_cast<Vector<T>>(power) * scale_);
    }
  }

  Vector<T> high_, low_, shift_, bound_, origin_;

#if R2KD_VECTOR_BYTES >= 32
  // Steps of 1/S, S = 2^kStepBits: the low bits of the sum hold S n + m. Moved up by 23 - kStepBits
  // they are n in the exponent and m in the first bits of the mantissa, which the table has subtracted
  // from the bits of 2^(m/S) times the scale: one integer addition makes scale 2^(n + m/S).
  static constexpr int kUp = 23 - kStepBits;

  R2KD_INLINE Vector<float> by_table(Vector<float> shifted, Vector<float> f) const {
#if R2KD_VECTOR_BYTES == 64
    const __m512i bits = _mm512_castps_si512(shifted);
    const Vector<float> power = _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_permutexvar_epi32(bits, table_), _mm512_slli_epi32(bits, kUp)));
    Vector<float> y = f * 0.055502135306596756f + 0.24023428559303284f;
    y = y * f + 0.69314718246459961f;  // (2^f - 1) / f, |f| <= 1/32
#else
    const __m256i bits = _mm256_castps_si256(shifted);
    const __m256 root = _mm256_permutevar_ps(_mm256_castsi256_ps(table_), bits);
    const Vector<float> power = _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(root), _mm256_slli_epi32(bits, kUp)));
    Vector<float> y = f * 0.009616183117032051f + 0.05552995577454567f;
    y = y * f + 0.24022656679153442f;
    y = y * f + 0.6931470632553101f;  // (2^f - 1) / f, |f| <= 1/8
#endif
    return y * (f * power) + power;
  }
#if R2KD_VECTOR_BYTES == 64
  using Table = __m512i;
  static Table table(float scale) {
    const Vector<float> roots = {
        1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
        1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_sub_epi32(_mm512_castps_si512(roots * scale), _mm512_slli_epi32(steps, kUp));
  }
#else
  using Table = __m256i;
  static Table table(float scale) {
    const Vector<float> roots = {1.0f, 1.18920712f, 1.41421356f, 1.68179283f,
                                 1.0f, 1.18920712f, 1.41421356f, 1.68179283f};
    const __m256i steps = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
    return _mm256_sub_epi32(_mm256_castps_si256(roots * scale), _mm256_slli_epi32(steps, kUp));
  }
#endif
  void set_scale(T scale) {
    if constexpr (kByTable) {
      table_ = table(scale);
      if (!(scale > 0)) high_ = broadcast<T>(scale * T(0));  // NaN, which the table would not keep
    } else {
      scale_ = broadcast<T>(scale);
    }
  }
  union {
    Table table_;
    Vector<T> scale_;
  };
#else
  void set_scale(T scale) { scale_ = broadcast<T>(scale); }
  Vector<T> scale_;
#endif
};

// The exponentials at one temperature.
template <typename T>
class ScaledExp {
 public:
  explicit ScaledExp(double temperature)
      : scale_(exp_scale<T>(temperature, kLargestPower<T>)), inverse_(1 / scale_.high) {}

  // Whether this origin can be taken off the grid; else it is to be subtracted.
  bool takes(T origin) const { return std::abs(origin * scale_.high) < RowExp<T, false>::kLimit; }

  // Whether exponentials relative to `origin` stay below 2^48 up to `largest`: their squares, and the
  // sums of these, then stay within a float.
  bool spans(T origin, T largest) const { return (largest - origin) * scale_.high < T(48); }

  template <bool subtracts>
  RowExp<T, subtracts> of_row(T origin, T scale = T(1)) const {
    return RowExp<T, subtracts>(scale_.high, scale_.low, inverse_, origin, scale);
  }

 private:
  ExpScale<T> scale_;
  T inverse_;
};

}  // namespace R2KD_ISA
}  // namespace r2kd
