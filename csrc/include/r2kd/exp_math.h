// exp(d / T) for d <= 0, by scalars on the GPU and by SIMD registers on the CPU.
//
// With c = log2(e) / T:  d c = n + f, n an integer, |f| <= 1/2, and exp(d / T) = 2^n 2^f.
// n comes from adding 1.5 * 2^23 (double: 2^52), which leaves the nearest integer in the low bits.
// A fused multiply-subtract gives f without the rounding error of d c, and c is held in two parts,
// so that the relative error stays at about one unit in the last place however large |d| is.
// 2^f is a minimax polynomial with constant term 1 (relative error 2.6e-9 and 1.8e-17; fitted by
// the Remez exchange, see docs/mathematics.md), so that exp(0) = 1 exactly.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "r2kd/shared.h"

namespace r2kd {

template <typename T>
constexpr T kRoundToInteger = static_cast<T>(sizeof(T) == 4 ? 12582912.0 : 6755399441055744.0);

template <typename T>
constexpr double kLargestPower = sizeof(T) == 4 ? 127.0 : 1023.0;

template <typename T>
constexpr T kLowest = -std::numeric_limits<T>::max();

// 2^f for |f| <= 1/2, in float; V is float or a register of floats.
template <typename V>
R2KD_SHARED V exp2_polynomial_float(V f) {
  V y = f * 0.00015594678161326619f + 0.0013406643902351760f;
  y = y * f + 0.0096176929729930623f;
  y = y * f + 0.055503105510137972f;
  y = y * f + 0.24022652782887738f;
  y = y * f + 0.69314721496802790f;
  return y * f + 1.0f;
}

// Likewise in double.
template <typename V>
R2KD_SHARED V exp2_polynomial_double(V f) {
  V y = f * 4.0780719295883367e-10 + 7.0725704128144235e-9;
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

// log2(e) / T in two parts, and the d below which exp(d / T) counts as 0.
template <typename T>
struct ExpScale {
  T high, low, bound;
};

// largest_power: -log2 of the result at the bound, at most kLargestPower.
template <typename T>
R2KD_SHARED ExpScale<T> exp_scale(double temperature, double largest_power) {
  constexpr double kLog2E = 1.4426950408889634;  // rounded to double
  constexpr double kLog2ETail = 2.0355273740931033e-17;
  const double c = kLog2E / temperature;
  const T high = static_cast<T>(c);
  // What c lost to float, or to the rounding of the division and of log2(e) itself.
  const double low = sizeof(T) == 4 ? c - static_cast<double>(high)
                                    : (std::fma(-c, temperature, kLog2E) + kLog2ETail) / temperature;
  const double bound = -largest_power / c;
  return {high, static_cast<T>(low),
          bound < static_cast<double>(kLowest<T>) ? kLowest<T> : static_cast<T>(bound)};
}

// `shifted` is kRoundToInteger + n, -127 <= n <= 0 (double: -1023): 2^n, and 0 for the lowest n.
R2KD_SHARED float power_from_rounding(float shifted) {
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}
R2KD_SHARED double power_from_rounding(double shifted) {
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023u) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof(power));
  return power;
}

R2KD_SHARED float exp2_polynomial(float f) { return exp2_polynomial_float(f); }
R2KD_SHARED double exp2_polynomial(double f) { return exp2_polynomial_double(f); }

// exp(d / T). NaN stays NaN; -inf and everything below the bound give 0.
template <typename T>
R2KD_SHARED T scaled_exp(T d, const ExpScale<T>& scale) {
  d = d < scale.bound ? scale.bound : d;
  const T shifted = std::fma(d, scale.high, kRoundToInteger<T>);
  T f = std::fma(d, scale.high, kRoundToInteger<T> - shifted);
  f = std::fma(d, scale.low, f);
  return exp2_polynomial(f) * power_from_rounding(shifted);
}

}  // namespace r2kd
