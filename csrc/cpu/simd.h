// One SIMD register of float or double, for the instruction set that this file is compiled for.
//
// Built on the vector extensions of GCC and Clang, so that any target works; the few operations
// that these lack a good form of (maximum, partial access, scaling by 2^n) use intrinsics where
// there are some. Everything lives in an inline namespace named after the instruction set:
// the kernels are compiled once for each, and no inline function may be shared between them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define R2KD_ISA avx512
#define R2KD_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define R2KD_ISA avx2
#define R2KD_VECTOR_BYTES 32
#else
#define R2KD_ISA baseline
#define R2KD_VECTOR_BYTES 16
#endif

// Whether a multiplication and an addition are one operation with one rounding.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define R2KD_FUSED true
#else
#define R2KD_FUSED false
#endif

#define R2KD_INLINE inline __attribute__((always_inline))

namespace r2kd {
namespace R2KD_ISA {

constexpr bool kFused = R2KD_FUSED;

template <typename T>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(R2KD_VECTOR_BYTES)));
  typedef float unaligned
      __attribute__((vector_size(R2KD_VECTOR_BYTES), aligned(4), may_alias));
  typedef std::int32_t integer __attribute__((vector_size(R2KD_VECTOR_BYTES)));
  typedef std::uint32_t bits __attribute__((vector_size(R2KD_VECTOR_BYTES)));
};

template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(R2KD_VECTOR_BYTES)));
  typedef double unaligned
      __attribute__((vector_size(R2KD_VECTOR_BYTES), aligned(8), may_alias));
  typedef std::int64_t integer __attribute__((vector_size(R2KD_VECTOR_BYTES)));
  typedef std::uint64_t bits __attribute__((vector_size(R2KD_VECTOR_BYTES)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = R2KD_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
R2KD_INLINE Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

template <typename T>
R2KD_INLINE Vector<T> load(const T* source) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(source);
}

template <typename T>
R2KD_INLINE void store(T* target, Vector<T> value) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(target) = value;
}

// The first `count` lanes from memory, `fill` in the others; touches nothing past `count`.
template <typename T>
R2KD_INLINE Vector<T> load_part(const T* source, std::int64_t count, T fill) {
  alignas(R2KD_VECTOR_BYTES) T lanes[kLanes<T>];
  for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = fill;
  std::memcpy(lanes, source, static_cast<std::size_t>(count) * sizeof(T));
  return load(lanes);
}

template <typename T>
R2KD_INLINE void store_part(T* target, Vector<T> value, std::int64_t count) {
  alignas(R2KD_VECTOR_BYTES) T lanes[kLanes<T>];
  store(lanes, value);
  std::memcpy(target, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

// The first `count` lanes of a register, `fill` in the others.
template <typename T>
R2KD_INLINE Vector<T> first_lanes(Vector<T> value, std::int64_t count, T fill) {
  alignas(R2KD_VECTOR_BYTES) T lanes[kLanes<T>];
  store(lanes, value);
  return load_part<T>(lanes, count, fill);
}

// Per lane b where a > b is false: a NaN in b is kept, one in a is dropped.
template <typename T>
R2KD_INLINE Vector<T> maximum(Vector<T> a, Vector<T> b) {
  return a > b ? a : b;
}

template <typename T>
R2KD_INLINE T horizontal_sum(Vector<T> value) {
  T sum = value[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) sum += value[lane];
  return sum;
}

template <typename T>
R2KD_INLINE T horizontal_maximum(Vector<T> value) {
  T largest = value[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) largest = largest > value[lane] ? largest : value[lane];
  return largest;
}

R2KD_INLINE Vector<double> square_root(Vector<double> value) {
#if R2KD_VECTOR_BYTES == 64
  return _mm512_sqrt_pd(value);
#elif R2KD_VECTOR_BYTES == 32
  return _mm256_sqrt_pd(value);
#else
  for (int lane = 0; lane < kLanes<double>; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}

#if R2KD_VECTOR_BYTES == 64
template <>
R2KD_INLINE Vector<float> load_part(const float* source, std::int64_t count, float fill) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), source);
}
template <>
R2KD_INLINE Vector<double> load_part(const double* source, std::int64_t count, double fill) {
  return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1), source);
}
template <>
R2KD_INLINE void store_part(float* target, Vector<float> value, std::int64_t count) {
  _mm512_mask_storeu_ps(target, static_cast<__mmask16>((1u << count) - 1), value);
}
template <>
R2KD_INLINE void store_part(double* target, Vector<double> value, std::int64_t count) {
  _mm512_mask_storeu_pd(target, static_cast<__mmask8>((1u << count) - 1), value);
}
template <>
R2KD_INLINE Vector<float> first_lanes(Vector<float> value, std::int64_t count, float fill) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), value);
}
template <>
R2KD_INLINE Vector<double> first_lanes(Vector<double> value, std::int64_t count, double fill) {
  return _mm512_mask_mov_pd(_mm512_set1_pd(fill), static_cast<__mmask8>((1u << count) - 1), value);
}
template <>
R2KD_INLINE Vector<float> maximum<float>(Vector<float> a, Vector<float> b) {
  return _mm512_max_ps(a, b);
}
template <>
R2KD_INLINE Vector<double> maximum<double>(Vector<double> a, Vector<double> b) {
  return _mm512_max_pd(a, b);
}
template <>
R2KD_INLINE float horizontal_sum<float>(Vector<float> value) {
  return _mm512_reduce_add_ps(value);
}
template <>
R2KD_INLINE float horizontal_maximum<float>(Vector<float> value) {
  return _mm512_reduce_max_ps(value);
}
#elif R2KD_VECTOR_BYTES == 32
// All bits set in the first `count` lanes of 4 bytes.
R2KD_INLINE __m256i first_lanes_mask(std::int64_t count) {
  alignas(64) static constexpr std::int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - count));
}
template <>
R2KD_INLINE Vector<float> first_lanes(Vector<float> value, std::int64_t count, float fill) {
  return _mm256_blendv_ps(_mm256_set1_ps(fill), value, _mm256_castsi256_ps(first_lanes_mask(count)));
}
template <>
R2KD_INLINE Vector<double> first_lanes(Vector<double> value, std::int64_t count, double fill) {
  return _mm256_blendv_pd(_mm256_set1_pd(fill), value, _mm256_castsi256_pd(first_lanes_mask(2 * count)));
}
template <>
R2KD_INLINE Vector<float> load_part(const float* source, std::int64_t count, float fill) {
  const __m256i mask = first_lanes_mask(count);
  return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(source, mask), _mm256_castsi256_ps(mask));
}
template <>
R2KD_INLINE Vector<double> load_part(const double* source, std::int64_t count, double fill) {
  const __m256i mask = first_lanes_mask(2 * count);
  return _mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(source, mask), _mm256_castsi256_pd(mask));
}
template <>
R2KD_INLINE void store_part(float* target, Vector<float> value, std::int64_t count) {
  _mm256_maskstore_ps(target, first_lanes_mask(count), value);
}
template <>
R2KD_INLINE void store_part(double* target, Vector<double> value, std::int64_t count) {
  _mm256_maskstore_pd(target, first_lanes_mask(2 * count), value);
}
template <>
R2KD_INLINE float horizontal_sum<float>(Vector<float> value) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
template <>
R2KD_INLINE float horizontal_maximum<float>(Vector<float> value) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}
template <>
R2KD_INLINE Vector<float> maximum<float>(Vector<float> a, Vector<float> b) {
  return _mm256_max_ps(a, b);
}
template <>
R2KD_INLINE Vector<double> maximum<double>(Vector<double> a, Vector<double> b) {
  return _mm256_max_pd(a, b);
}
#endif

// Stores of one aligned register, of float or of 16-bit numbers, that leave the caches alone.
// `end_stream` makes them visible to other threads.
#if R2KD_VECTOR_BYTES == 64
R2KD_INLINE void stream(float* target, Vector<float> value) { _mm512_stream_ps(target, value); }
template <typename Half>
R2KD_INLINE void stream(std::uint16_t* target, Half value) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(target), reinterpret_cast<__m256i>(value));
}
#elif R2KD_VECTOR_BYTES == 32
R2KD_INLINE void stream(float* target, Vector<float> value) { _mm256_stream_ps(target, value); }
template <typename Half>
R2KD_INLINE void stream(std::uint16_t* target, Half value) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(target), reinterpret_cast<__m128i>(value));
}
#else
template <typename Element, typename Register>
R2KD_INLINE void stream(Element* target, Register value) {
  std::memcpy(target, &value, sizeof(value));
}
#endif

R2KD_INLINE void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Denormal numbers cost over a hundred cycles each, and a softmax makes many (exp(-88 .. -103)).
// Inside a kernel they count as zero: an absolute change below 1.2e-38 (double: 2.3e-308).
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace R2KD_ISA
}  // namespace r2kd
