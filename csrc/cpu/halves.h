// 16-bit floating-point formats, one number or one SIMD register of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "r2kd/types.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

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

// --- one register ------------------------------------------------------------------------------

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

template <DType dtype>
R2KD_INLINE Vector<float> widen_register(HalfVector half) {
#if R2KD_VECTOR_BYTES == 64
  if constexpr (dtype == DType::float16) return _mm512_cvtph_ps(bits_as<__m256i>(half));
  if constexpr (dtype == DType::bfloat16) {  // each number to the upper half of its lane, in one operation
    const __m512i from = _mm512_setr_epi32(
        0x00000000, 0x00010001, 0x00020002, 0x00030003, 0x00040004, 0x00050005, 0x00060006, 0x00070007,
        0x00080008, 0x00090009, 0x000a000a, 0x000b000b, 0x000c000c, 0x000d000d, 0x000e000e, 0x000f000f);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(
        0xaaaaaaaau, from, _mm512_castsi256_si512(bits_as<__m256i>(half))));
  }
#elif R2KD_VECTOR_BYTES == 32
  if constexpr (dtype == DType::float16) return _mm256_cvtph_ps(bits_as<__m128i>(half));
  if constexpr (dtype == DType::bfloat16) {
    // As above; the eight numbers are in both halves of the register, since a permutation stays there.
    const __m256i from = _mm256_setr_epi8(
        -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,
        -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    return _mm256_castsi256_ps(
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bits_as<__m128i>(half)), from));
  }
#endif
  return widen<dtype, Vector<float>>(__builtin_convertvector(half, WideVector));
}

template <DType dtype>
R2KD_INLINE HalfVector narrow_register(Vector<float> value) {
#if R2KD_VECTOR_BYTES == 64
  if constexpr (dtype == DType::float16) {
    return bits_as<HalfVector>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  if constexpr (dtype == DType::bfloat16) {
    // As bfloat16_from_float, in fewer operations; every NaN becomes 0x7fc0.
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i upper = _mm512_setr_epi32(
        0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015, 0x001b0019, 0x001f001d, 0, 0,
        0, 0, 0, 0, 0, 0);
    const __m256i half = _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, rounded));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return bits_as<HalfVector>(_mm256_mask_mov_epi16(half, is_nan, _mm256_set1_epi16(0x7fc0)));
  }
#elif R2KD_VECTOR_BYTES == 32
  if constexpr (dtype == DType::float16) {
    return bits_as<HalfVector>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  if constexpr (dtype == DType::bfloat16) {
    // The same; within each half of the register a permutation brings four numbers together.
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                                         _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)),
                                         _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i upper = _mm256_setr_epi8(
        2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1,
        2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i half = _mm256_shuffle_epi8(_mm256_castps_si256(kept), upper);
    return bits_as<HalfVector>(
        _mm_unpacklo_epi64(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
#endif
  return __builtin_convertvector(narrow<dtype, WideVector>(value), HalfVector);
}

// The same for gradients, whose magnitude stays below 2^111: a larger one becomes an infinity, an infinity
// a NaN. The sum of a number and 1.5 * 2^16 times its own power of two has the 16-bit numbers for
// neighbours, and an even multiple of their spacing taken off again leaves the nearest even one: 3
// operations in place of 6.
template <DType dtype>
R2KD_INLINE HalfVector narrow_gradient(Vector<float> value) {
#if R2KD_VECTOR_BYTES == 32
  if constexpr (dtype == DType::bfloat16) {
    const __m256 power = _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(-0x00800000)));
    const __m256 up = _mm256_set1_ps(98304.0f);
    const __m256 rounded = _mm256_fnmadd_ps(power, up, _mm256_fmadd_ps(power, up, value));
    const __m256i upper = _mm256_setr_epi8(
        2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1,
        2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i half = _mm256_shuffle_epi8(_mm256_castps_si256(rounded), upper);
    return bits_as<HalfVector>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(half, 0x08)));
  }
#endif
  return narrow_register<dtype>(value);
}

// The first `count` numbers from memory, 0 in the other lanes; touches nothing past `count`.
R2KD_INLINE HalfVector load_halves_part(const std::uint16_t* source, std::int64_t count) {
#if R2KD_VECTOR_BYTES == 64
  return bits_as<HalfVector>(
      _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), source));
#elif R2KD_VECTOR_BYTES == 32
  // Two overlapping words of 4 numbers, of 2, or one number: a copy of unknown length is a call.
  std::uint64_t low = 0, high = 0;
  if (count >= 4) {
    std::memcpy(&low, source, 8);
    std::memcpy(&high, source + count - 4, 8);
    high = count == 4 ? 0 : high >> (16 * (8 - count));
  } else if (count >= 2) {
    std::uint32_t first, last;
    std::memcpy(&first, source, 4);
    std::memcpy(&last, source + count - 2, 4);
    low = first | std::uint64_t{last} << (16 * (count - 2));
  } else if (count == 1) {
    low = *source;
  }
  return bits_as<HalfVector>(_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low)));
#else
  HalfVector half = {};
  std::memcpy(&half, source, static_cast<std::size_t>(count) * sizeof(std::uint16_t));
  return half;
#endif
}

R2KD_INLINE void store_halves_part(std::uint16_t* target, HalfVector value, std::int64_t count) {
#if R2KD_VECTOR_BYTES == 64
  _mm256_mask_storeu_epi16(target, static_cast<__mmask16>((1u << count) - 1), bits_as<__m256i>(value));
#elif R2KD_VECTOR_BYTES == 32
  const __m128i numbers = bits_as<__m128i>(value);
  auto low = static_cast<std::uint64_t>(_mm_cvtsi128_si64(numbers));
  if (count >= 4) {
    const auto high = static_cast<std::uint64_t>(_mm_extract_epi64(numbers, 1));
    std::memcpy(target, &low, 8);
    if (count == 4) return;
    low = low >> (16 * (count - 4)) | high << (16 * (8 - count));
    std::memcpy(target + count - 4, &low, 8);
  } else if (count >= 2) {
    const auto first = static_cast<std::uint32_t>(low), last = static_cast<std::uint32_t>(low >> (16 * (count - 2)));
    std::memcpy(target, &first, 4);
    std::memcpy(target + count - 2, &last, 4);
  } else if (count == 1) {
    *target = static_cast<std::uint16_t>(low);
  }
#else
  std::memcpy(target, &value, static_cast<std::size_t>(count) * sizeof(std::uint16_t));
#endif
}

}  // namespace R2KD_ISA
}  // namespace r2kd
