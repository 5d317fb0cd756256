// Rows of logits of any dtype and stride, as contiguous float or double, and gradients back.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "r2kd/types.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <typename To, typename From>
R2KD_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the bits must fit");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// --- 16-bit formats -> float, for one number or a register of them ------------------------------
// U: std::uint32_t or a vector of them, holding the 16 bits; F: float or a vector.

template <typename F, typename U>
R2KD_INLINE F float_from_bfloat16(U half) {
  return bits_as<F>(half << 16);
}

// Rebiases the exponent by 112 (224 for inf and NaN). A denormal half gets its implicit bit by a
// subtraction of normal numbers, since the kernels count denormal floats as zero.
template <typename F, typename U>
R2KD_INLINE F float_from_float16(U half) {
  const U magnitude = (half & 0x7fffu) << 13;
  const U normal = magnitude + (112u << 23);
  const U denormal = bits_as<U>(bits_as<F>(magnitude + (113u << 23)) - 6.103515625e-05f);
  const U special = magnitude + (224u << 23);
  const U finite = magnitude < (0x0400u << 13) ? denormal : normal;
  const U value = magnitude >= (0x7c00u << 13) ? special : finite;
  return bits_as<F>(value | ((half & 0x8000u) << 16));
}

// --- float -> 16-bit formats, to nearest even, NaN kept ------------------------------------------

template <typename U, typename F>
R2KD_INLINE U bfloat16_from_float(F value) {
  const U bits = bits_as<U>(value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? ((bits >> 16) | 0x40u) : rounded;
}

template <typename U, typename F>
R2KD_INLINE U float16_from_float(F value) {
  const U bits = bits_as<U>(value);
  const U sign = (bits >> 16) & 0x8000u;
  const U magnitude = bits & 0x7fffffffu;
  // Normal numbers: rebias by -112 and round to nearest even.
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 aligns the last bit of the sum with the last bit of a denormal half.
  const U denormal = bits_as<U>(bits_as<F>(magnitude) + 0.5f) - 0x3f000000u;
  // From 65520 on: infinity; NaN keeps a set mantissa bit.
  const U special = magnitude > 0x7f800000u ? (U{} + 0x7e00u) : (U{} + 0x7c00u);
  const U finite = magnitude < (113u << 23) ? denormal : normal;
  return sign | (magnitude >= 0x477ff000u ? special : finite);
}

// --- rows ------------------------------------------------------------------------------------

using HalfVector = std::uint16_t __attribute__((vector_size(R2KD_VECTOR_BYTES / 2)));
using HalfVectorUnaligned =
    std::uint16_t __attribute__((vector_size(R2KD_VECTOR_BYTES / 2), aligned(2), may_alias));
using WideVector = std::uint32_t __attribute__((vector_size(R2KD_VECTOR_BYTES)));

template <DType dtype, typename F, typename U>
R2KD_INLINE F widen(U half) {
  return dtype == DType::bfloat16 ? float_from_bfloat16<F>(half) : float_from_float16<F>(half);
}

template <DType dtype, typename U, typename F>
R2KD_INLINE U narrow(F value) {
  return dtype == DType::bfloat16 ? bfloat16_from_float<U>(value) : float16_from_float<U>(value);
}

inline std::int64_t dtype_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

template <typename T>
R2KD_INLINE T element(const char* source, DType dtype) {
  if (dtype == DType::float64) {
    double value;
    std::memcpy(&value, source, sizeof(value));
    return static_cast<T>(value);
  }
  if (dtype == DType::float32) {
    float value;
    std::memcpy(&value, source, sizeof(value));
    return static_cast<T>(value);
  }
  std::uint16_t half;
  std::memcpy(&half, source, sizeof(half));
  const auto wide = static_cast<std::uint32_t>(half);
  return static_cast<T>(dtype == DType::bfloat16 ? float_from_bfloat16<float>(wide)
                                                 : float_from_float16<float>(wide));
}

template <DType dtype>
inline void widen_row(const void* source, std::int64_t cols, float* target) {
  const auto* half = static_cast<const std::uint16_t*>(source);
  std::int64_t j = 0;
  for (; j + kLanes<float> <= cols; j += kLanes<float>) {
    const HalfVector narrow = *reinterpret_cast<const HalfVectorUnaligned*>(half + j);
    store(target + j, widen<dtype, Vector<float>>(__builtin_convertvector(narrow, WideVector)));
  }
  for (; j < cols; ++j) target[j] = widen<dtype, float>(static_cast<std::uint32_t>(half[j]));
}

// Row `row` as contiguous T: where it lies if it is that already, else converted into `scratch`.
template <typename T>
inline const T* contiguous_row(const ConstMatrix& matrix, std::int64_t row, std::int64_t cols,
                               T* scratch) {
  const std::int64_t bytes = dtype_bytes(matrix.dtype);
  const char* source = static_cast<const char*>(matrix.data) + row * matrix.row_stride * bytes;
  if (matrix.col_stride == 1) {
    constexpr DType own = sizeof(T) == 4 ? DType::float32 : DType::float64;
    if (matrix.dtype == own) return reinterpret_cast<const T*>(source);
    if constexpr (sizeof(T) == 4) {
      if (matrix.dtype == DType::bfloat16) {
        widen_row<DType::bfloat16>(source, cols, scratch);
      } else {
        widen_row<DType::float16>(source, cols, scratch);
      }
      return scratch;
    }
  }
  for (std::int64_t j = 0; j < cols; ++j) {
    scratch[j] = element<T>(source + j * matrix.col_stride * bytes, matrix.dtype);
  }
  return scratch;
}

template <typename T>
R2KD_INLINE T row_maximum(const T* row, std::int64_t cols) {
  constexpr int lanes = kLanes<T>;
  Vector<T> first = broadcast<T>(static_cast<T>(kMinusInfinity)), second = first;
  std::int64_t j = 0;
  for (; j + 2 * lanes <= cols; j += 2 * lanes) {
    first = maximum<T>(first, load(row + j));
    second = maximum<T>(second, load(row + j + lanes));
  }
  for (; j < cols; j += lanes) {
    first = maximum<T>(first, cols - j >= lanes
                                  ? load(row + j)
                                  : load_part(row + j, cols - j, static_cast<T>(kMinusInfinity)));
  }
  return horizontal_maximum<T>(maximum<T>(first, second));
}

// Writes `count` (at most one register's) gradients at element `offset` of a contiguous tensor.
template <typename T>
R2KD_INLINE void store_gradient(void* target, DType dtype, std::int64_t offset, Vector<T> value,
                                std::int64_t count) {
  constexpr DType own = sizeof(T) == 4 ? DType::float32 : DType::float64;
  if (dtype == own) {
    T* place = static_cast<T*>(target) + offset;
    if (count == kLanes<T>) {
      store(place, value);
    } else {
      store_part(place, value, count);
    }
    return;
  }
  if constexpr (sizeof(T) == 4) {
    const WideVector wide = dtype == DType::bfloat16 ? narrow<DType::bfloat16, WideVector>(value)
                                                     : narrow<DType::float16, WideVector>(value);
    const HalfVector half = __builtin_convertvector(wide, HalfVector);
    std::memcpy(static_cast<std::uint16_t*>(target) + offset, &half,
                static_cast<std::size_t>(count) * sizeof(std::uint16_t));
  } else {
    // The teacher alone is double: the gradient keeps the student's narrower dtype.
    for (std::int64_t lane = 0; lane < count; ++lane) {
      const float single = static_cast<float>(value[lane]);
      if (dtype == DType::float32) {
        static_cast<float*>(target)[offset + lane] = single;
      } else {
        const auto bits = dtype == DType::bfloat16
                              ? bfloat16_from_float<std::uint32_t>(single)
                              : float16_from_float<std::uint32_t>(single);
        static_cast<std::uint16_t*>(target)[offset + lane] = static_cast<std::uint16_t>(bits);
      }
    }
  }
}

}  // namespace R2KD_ISA
}  // namespace r2kd
