// Rows of logits of any dtype and stride in, rows of gradients out.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "halves.h"
#include "r2kd/types.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <typename T>
constexpr DType kOwnDType = sizeof(T) == 4 ? DType::float32 : DType::float64;

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

// One contiguous row of `stored` numbers, read as registers of T. A 16-bit row is widened on the way.
template <typename T, DType stored>
struct Row {
  const void* data;  // [C]

  R2KD_INLINE Vector<T> load(std::int64_t j) const {
    if constexpr (stored == kOwnDType<T>) {
      return R2KD_ISA::load(static_cast<const T*>(data) + j);
    } else {
      const auto* half = static_cast<const std::uint16_t*>(data) + j;
      return widen_register<stored>(*reinterpret_cast<const HalfVectorUnaligned*>(half));
    }
  }

  // The first `count` numbers from j on, `fill` in the other lanes; touches nothing past them.
  R2KD_INLINE Vector<T> load_part(std::int64_t j, std::int64_t count, T fill) const {
    if constexpr (stored == kOwnDType<T>) {
      return R2KD_ISA::load_part(static_cast<const T*>(data) + j, count, fill);
    } else {
      const HalfVector half = load_halves_part(static_cast<const std::uint16_t*>(data) + j, count);
      return first_lanes<T>(widen_register<stored>(half), count, fill);
    }
  }
};

// Fetches what comes kPrefetchBytes after column j, for short rows that of the rows to come.
template <typename T, DType stored>
R2KD_INLINE void prefetch_after(Row<T, stored> row, std::int64_t j) {
  constexpr std::int64_t kPrefetchBytes = 2048;
  constexpr std::int64_t bytes = stored == DType::float64 ? 8 : stored == DType::float32 ? 4 : 2;
  __builtin_prefetch(static_cast<const char*>(row.data) + j * bytes + kPrefetchBytes);
}

// Whether rows are read where they lie: contiguous and of the dtype that is read.
template <typename T, DType stored>
inline bool in_place(const ConstMatrix& matrix) {
  return stored != kOwnDType<T> || (matrix.col_stride == 1 && matrix.dtype == stored);
}

// Row `row` of a matrix: where it lies, or converted into `scratch`.               // [C], padded
template <typename T, DType stored>
inline Row<T, stored> row_of(const ConstMatrix& matrix, std::int64_t row, std::int64_t cols,
                             T* scratch) {
  const std::int64_t bytes = dtype_bytes(matrix.dtype);
  const char* source = static_cast<const char*>(matrix.data) + row * matrix.row_stride * bytes;
  if (in_place<T, stored>(matrix)) return {source};
  for (std::int64_t j = 0; j < cols; ++j) {
    scratch[j] = element<T>(source + j * matrix.col_stride * bytes, matrix.dtype);
  }
  return {scratch};
}

// A number of the student's row and one of the teacher's.
template <typename T>
struct LogitPair {
  T z, y;
};

// The largest of each of two rows. Eight chains of maxima, since one takes 4 cycles a step.
template <typename T, DType stored>
R2KD_INLINE LogitPair<T> row_maxima(Row<T, stored> z, Row<T, stored> y, std::int64_t cols) {
  constexpr int lanes = kLanes<T>;
  constexpr int kChains = 4;
  constexpr T lowest = static_cast<T>(kMinusInfinity);
  Vector<T> zs[kChains], ys[kChains];
  for (int chain = 0; chain < kChains; ++chain) zs[chain] = ys[chain] = broadcast<T>(lowest);
  std::int64_t j = 0;
  for (; j + kChains * lanes <= cols; j += kChains * lanes) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      zs[chain] = maximum<T>(zs[chain], z.load(j + chain * lanes));
      ys[chain] = maximum<T>(ys[chain], y.load(j + chain * lanes));
    }
  }
  for (; j + lanes <= cols; j += lanes) {
    zs[0] = maximum<T>(zs[0], z.load(j));
    ys[0] = maximum<T>(ys[0], y.load(j));
  }
  if (j < cols) {
    zs[1] = maximum<T>(zs[1], z.load_part(j, cols - j, lowest));
    ys[1] = maximum<T>(ys[1], y.load_part(j, cols - j, lowest));
  }
  return {horizontal_maximum<T>(maximum<T>(maximum<T>(zs[0], zs[1]), maximum<T>(zs[2], zs[3]))),
          horizontal_maximum<T>(maximum<T>(maximum<T>(ys[0], ys[1]), maximum<T>(ys[2], ys[3])))};
}

// Whether gradients bypass the caches: those that would not stay there until they are read, which
// then saves the read of each line before it is overwritten.
inline bool bypasses_caches(std::int64_t bytes) {
  constexpr std::int64_t kBypassFrom = std::int64_t{8} << 20;
  return R2KD_VECTOR_BYTES >= 32 && bytes >= kBypassFrom;
}

// A contiguous row of gradients in the student's dtype.
template <typename T>
class GradientRow {
 public:
  GradientRow(void* target, DType dtype, std::int64_t offset, bool bypass)
      : target_(static_cast<char*>(target) + offset * dtype_bytes(dtype)),
        dtype_(dtype),
        bypass_(bypass && sizeof(T) == 4) {}

  // Elements before the first that a whole register may be streamed to.
  std::int64_t head() const {
    if (!bypass_) return 0;
    const auto bytes = static_cast<std::uintptr_t>(kLanes<T> * dtype_bytes(dtype_));
    const auto past = reinterpret_cast<std::uintptr_t>(target_) % bytes;
    return past == 0 ? 0 : static_cast<std::int64_t>(bytes - past) / dtype_bytes(dtype_);
  }

  // One register at column j; with bypass, j counts from the head in whole registers.
  R2KD_INLINE void store(std::int64_t j, Vector<T> value) {
    if (dtype_ == kOwnDType<T>) {
      T* place = reinterpret_cast<T*>(target_) + j;
      if constexpr (sizeof(T) == 4) {
        if (bypass_) return stream(place, value);
      }
      R2KD_ISA::store(place, value);
    } else if constexpr (sizeof(T) == 4) {
      const HalfVector half = dtype_ == DType::bfloat16 ? narrow_gradient<DType::bfloat16>(value)
                                                        : narrow_gradient<DType::float16>(value);
      auto* place = reinterpret_cast<std::uint16_t*>(target_) + j;
      if (bypass_) {
        stream(place, half);
      } else {
        *reinterpret_cast<HalfVectorUnaligned*>(place) = half;
      }
    } else {
      store_part(j, value, kLanes<T>);
    }
  }

  R2KD_INLINE void store_part(std::int64_t j, Vector<T> value, std::int64_t count) {
    if (dtype_ == kOwnDType<T>) {
      R2KD_ISA::store_part(reinterpret_cast<T*>(target_) + j, value, count);
    } else if constexpr (sizeof(T) == 4) {
      const HalfVector half = dtype_ == DType::bfloat16 ? narrow_gradient<DType::bfloat16>(value)
                                                        : narrow_gradient<DType::float16>(value);
      store_halves_part(reinterpret_cast<std::uint16_t*>(target_) + j, half, count);
    } else {
      // The teacher alone is double: the gradient keeps the student's narrower dtype.
      for (std::int64_t lane = 0; lane < count; ++lane) {
        const float single = static_cast<float>(value[lane]);
        if (dtype_ == DType::float32) {
          reinterpret_cast<float*>(target_)[j + lane] = single;
        } else {
          const auto bits = dtype_ == DType::bfloat16
                                ? bfloat16_from_float<std::uint32_t>(single)
                                : float16_from_float<std::uint32_t>(single);
          reinterpret_cast<std::uint16_t*>(target_)[j + lane] = static_cast<std::uint16_t>(bits);
        }
      }
    }
  }

 private:
  char* target_;
  DType dtype_;
  bool bypass_;
};

}  // namespace R2KD_ISA
}  // namespace r2kd
