// Numbers of any dtype and stride into lines of floats, and lines across lanes: what the sparse
// kernels do to their inputs before, and to their outputs after, the sums.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "halves.h"
#include "r2kd/types.h"
#include "rows.h"
#include "simd.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {

template <DType stored>
inline void widen_halves(const std::uint16_t* source, std::int64_t count, float* line) {
  constexpr int lanes = kLanes<float>;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(line + i,
          widen_register<stored>(*reinterpret_cast<const HalfVectorUnaligned*>(source + i)));
  }
  if (i < count) {
    store_part(line + i, widen_register<stored>(load_halves_part(source + i, count - i)), count - i);
  }
}

// line[i] = source[offset + i * stride], i < count. `offset` counts elements.
inline void load_line(const void* source, DType dtype, std::int64_t offset, std::int64_t stride,
                      std::int64_t count, float* line) {
  const std::int64_t bytes = dtype_bytes(dtype);
  const char* first = static_cast<const char*>(source) + offset * bytes;
  if (stride != 1) {
    for (std::int64_t i = 0; i < count; ++i) line[i] = element<float>(first + i * stride * bytes, dtype);
  } else if (dtype == DType::float32) {
    std::memcpy(line, first, static_cast<std::size_t>(count) * sizeof(float));
  } else if (dtype == DType::bfloat16) {
    widen_halves<DType::bfloat16>(reinterpret_cast<const std::uint16_t*>(first), count, line);
  } else {
    widen_halves<DType::float16>(reinterpret_cast<const std::uint16_t*>(first), count, line);
  }
}

template <DType stored>
inline void narrow_line(const float* line, std::int64_t count, std::uint16_t* target) {
  constexpr int lanes = kLanes<float>;
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    *reinterpret_cast<HalfVectorUnaligned*>(target + i) = narrow_register<stored>(load(line + i));
  }
  if (i < count) {
    const Vector<float> last = load_part(line + i, count - i, 0.0f);
    store_halves_part(target + i, narrow_register<stored>(last), count - i);
  }
}

// target[offset + i] = line[i], i < count, rounded to dtype.
inline void store_line(const float* line, std::int64_t count, void* target, DType dtype,
                       std::int64_t offset) {
  char* first = static_cast<char*>(target) + offset * dtype_bytes(dtype);
  if (dtype == DType::float32) {
    std::memcpy(first, line, static_cast<std::size_t>(count) * sizeof(float));
  } else if (dtype == DType::bfloat16) {
    narrow_line<DType::bfloat16>(line, count, reinterpret_cast<std::uint16_t*>(first));
  } else {
    narrow_line<DType::float16>(line, count, reinterpret_cast<std::uint16_t*>(first));
  }
}

// target[j * target_stride + i] = source[i * source_stride + j] for i, j < 8.
R2KD_INLINE void transpose_8x8(const float* source, std::int64_t source_stride, float* target,
                               std::int64_t target_stride) {
#if R2KD_VECTOR_BYTES >= 32
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(source + i * source_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(target + i * target_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(target + (i + 4) * target_stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
#else
  for (int j = 0; j < 8; ++j) {
    for (int i = 0; i < 8; ++i) target[j * target_stride + i] = source[i * source_stride + j];
  }
#endif
}

// target[j * target_stride + i] = source[i * source_stride + j] for i < rows, j < cols.
inline void transpose(const float* source, std::int64_t source_stride, std::int64_t rows,
                      std::int64_t cols, float* target, std::int64_t target_stride) {
  const std::int64_t whole_rows = rows / 8 * 8, whole_cols = cols / 8 * 8;
  for (std::int64_t j = 0; j < whole_cols; j += 8) {
    for (std::int64_t i = 0; i < whole_rows; i += 8) {
      transpose_8x8(source + i * source_stride + j, source_stride, target + j * target_stride + i,
                    target_stride);
    }
    for (std::int64_t i = whole_rows; i < rows; ++i) {
      for (int k = 0; k < 8; ++k) target[(j + k) * target_stride + i] = source[i * source_stride + j + k];
    }
  }
  for (std::int64_t j = whole_cols; j < cols; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) target[j * target_stride + i] = source[i * source_stride + j];
  }
}

// Values and bias of a sparse layer in float: where they lie, or converted.
class WideNumbers {
 public:
  WideNumbers(const void* values, std::int64_t entries, const void* bias, std::int64_t rows, DType dtype)
      : values_(static_cast<const float*>(values)), bias_(static_cast<const float*>(bias)) {
    if (dtype == DType::float32) return;
    Carver sizes(nullptr);
    take(sizes, entries, rows);
    ok_ = workspace_.allocate(1, sizes.used());
    if (!ok_) return;
    Carver carver(workspace_.part(0));
    const Arrays arrays = take(carver, entries, rows);
    load_line(values, dtype, 0, 1, entries, arrays.values);
    values_ = arrays.values;
    if (bias == nullptr) return;
    load_line(bias, dtype, 0, 1, rows, arrays.bias);
    bias_ = arrays.bias;
  }
  bool ok() const { return ok_; }
  const float* values() const { return values_; }  // [nnz]
  const float* bias() const { return bias_; }      // [R] or null

 private:
  struct Arrays {
    float *values, *bias;
  };
  static Arrays take(Carver& carver, std::int64_t entries, std::int64_t rows) {
    float* const values = carver.take<float>(entries);
    return {values, carver.take<float>(rows)};
  }

  const float* values_;
  const float* bias_;
  Workspace workspace_;
  bool ok_ = true;
};

// Calls body(std::integral_constant<int, size>) for a size in [1, most].
template <int most, typename Body>
R2KD_INLINE void with_size(int size, Body body) {
  if constexpr (most > 1) {
    if (size < most) return with_size<most - 1>(size, body);
  }
  body(std::integral_constant<int, most>{});
}

}  // namespace R2KD_ISA
}  // namespace r2kd
