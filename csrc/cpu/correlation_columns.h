// Moments of the columns of p and q over the rows of one part, and the columns' coefficients.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "r2kd/correlation.h"
#include "r2kd/correlation_math.h"
#include "simd.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {

enum Moment : int { kPP = 0, kQQ = 1, kPQ = 2, kMeanP = 3, kMeanQ = 4, kPivotP = 5, kPivotQ = 6 };

// Adds the moments of `count` columns over from_rows rows to those over into_rows rows. The means
// of a block (pivoted) are relative to its pivots.
template <bool centered, bool pivoted, typename From>
inline void merge_moments(const From* from, std::int64_t from_stride, std::int64_t count,
                          std::int64_t from_rows, double* into, std::int64_t into_stride,
                          std::int64_t into_rows) {
  if (from_rows == 0) return;
  if constexpr (centered) {
    // Chan, Golub, LeVeque: the sums of products of deviations add up, plus the product of the
    // differences of the means times n_a n_b / (n_a + n_b).
    const double share = static_cast<double>(from_rows) / static_cast<double>(from_rows + into_rows);
    const double factor = share * static_cast<double>(into_rows);
    for (std::int64_t j = 0; j < count; ++j) {
      double mean_p = from[kMeanP * from_stride + j];
      double mean_q = from[kMeanQ * from_stride + j];
      if constexpr (pivoted) {
        mean_p += from[kPivotP * from_stride + j];
        mean_q += from[kPivotQ * from_stride + j];
      }
      const double dp = mean_p - into[kMeanP * into_stride + j];
      const double dq = mean_q - into[kMeanQ * into_stride + j];
      into[kPP * into_stride + j] += from[kPP * from_stride + j] + dp * dp * factor;
      into[kQQ * into_stride + j] += from[kQQ * from_stride + j] + dq * dq * factor;
      into[kPQ * into_stride + j] += from[kPQ * from_stride + j] + dp * dq * factor;
      into[kMeanP * into_stride + j] += dp * share;
      into[kMeanQ * into_stride + j] += dq * share;
    }
  } else {
    for (int moment = kPP; moment <= kPQ; ++moment) {
      for (std::int64_t j = 0; j < count; ++j) {
        into[moment * into_stride + j] += from[moment * from_stride + j];
      }
    }
  }
}

// Cosine: sums of p^2, q^2, p q. Pearson: means of p and q and sums of products of deviations,
// by Welford's update within a block and by Chan's merge between blocks: no difference of large
// sums is ever taken. Within a block the first row is the pivot that the others are taken relative
// to: the running mean is then as small as the deviations, and so is its rounding, which would
// otherwise add up over the rows (3 times the error of two passes, measured). A block of rows is summed in T; a part with more than one block adds its
// blocks up in double.
template <typename T, bool centered>
class ColumnMoments {
 public:
  static constexpr int kMoments = centered ? 5 : 3;
  static constexpr int kBlockMoments = centered ? 7 : 3;
  static constexpr std::int64_t kBlockRows = 128;

  static std::int64_t bytes(std::int64_t cols, bool tall) {
    const std::int64_t per_column = kBlockMoments * std::int64_t{sizeof(T)} +
                                    (tall ? kMoments * std::int64_t{sizeof(double)} : 0);
    return per_column * padded<T>(cols);
  }

  ColumnMoments() = default;
  ColumnMoments(char* memory, std::int64_t cols, bool tall)
      : width_(padded<T>(cols)),
        total_(tall ? reinterpret_cast<double*>(memory) : nullptr),
        block_(reinterpret_cast<T*>(memory + (tall ? kMoments * width_ * std::int64_t{8} : 0))) {
    std::memset(memory, 0, static_cast<std::size_t>(bytes(cols, tall)));
  }

  // Adds the row p = e p_scale, q = h q_scale.                              // e, h: [C], padded
  R2KD_INLINE void add_row(const T* e, const T* h, T p_scale, T q_scale) {
    if (total_ != nullptr && block_rows_ == kBlockRows) flush();
    ++block_rows_;
    // Welford: with n rows, the mean moves by d / n and the sum of squares by d^2 (n - 1) / n. The
    // form d (p - new mean) would take p twice, once rounded and once inside a fused operation.
    const T inverse = T(1) / static_cast<T>(block_rows_);
    const T factor = static_cast<T>(block_rows_ - 1) * inverse;
    T* pp = block_ + kPP * width_;
    T* qq = block_ + kQQ * width_;
    T* pq = block_ + kPQ * width_;
    for (std::int64_t j = 0; j < width_; j += kLanes<T>) {
      Vector<T> p = load(e + j) * p_scale;
      Vector<T> q = load(h + j) * q_scale;
      if constexpr (centered) {
        T* pivot_p = block_ + kPivotP * width_ + j;
        T* pivot_q = block_ + kPivotQ * width_ + j;
        if (block_rows_ == 1) {
          store(pivot_p, p);
          store(pivot_q, q);
        }
        T* mean_p = block_ + kMeanP * width_ + j;
        T* mean_q = block_ + kMeanQ * width_ + j;
        const Vector<T> dp = (p - load(pivot_p)) - load(mean_p);
        const Vector<T> dq = (q - load(pivot_q)) - load(mean_q);
        store(mean_p, load(mean_p) + dp * inverse);
        store(mean_q, load(mean_q) + dq * inverse);
        store(pp + j, load(pp + j) + dp * dp * factor);
        store(qq + j, load(qq + j) + dq * dq * factor);
        store(pq + j, load(pq + j) + dp * dq * factor);
      } else {
        store(pp + j, load(pp + j) + p * p);
        store(qq + j, load(qq + j) + q * q);
        store(pq + j, load(pq + j) + p * q);
      }
    }
  }

  // Ends the current block. To be called once after the last row.
  void flush() {
    if (total_ == nullptr) {
      rows_ = block_rows_;
      return;
    }
    if (block_rows_ == 0) return;
    merge_moments<centered, true>(block_, width_, width_, block_rows_, total_, width_, rows_);
    rows_ += block_rows_;
    block_rows_ = 0;
    std::memset(block_, 0, static_cast<std::size_t>(kBlockMoments * width_) * sizeof(T));
  }

  std::int64_t rows() const { return rows_; }

  // Adds columns [begin, begin + count) to `into`, [kMoments, stride], which holds `into_rows` rows.
  void merge_into(std::int64_t begin, std::int64_t count, double* into, std::int64_t stride,
                  std::int64_t into_rows) const {
    if (total_ != nullptr) {
      merge_moments<centered, false>(total_ + begin, width_, count, rows_, into, stride, into_rows);
    } else {
      merge_moments<centered, true>(block_ + begin, width_, count, rows_, into, stride, into_rows);
    }
  }

 private:
  std::int64_t width_;
  double* total_;  // [kMoments, C padded], or null where one block holds all rows
  T* block_;       // [kBlockMoments, C padded]
  std::int64_t block_rows_ = 0;
  std::int64_t rows_ = 0;
};

// Merges the parts' moments of the columns in `range`, in order, writes the columns' statistics
// (stats: [kColStats, C]) and returns the sum of their r.
template <typename T, bool centered>
double finish_columns(const ColumnMoments<T, centered>* parts, int part_total, Range range,
                      std::int64_t cols, double weight, double eps, T* stats) {
  constexpr std::int64_t kBlock = 256;
  constexpr int kMoments = ColumnMoments<T, centered>::kMoments;
  const double col_weight = -weight / static_cast<double>(cols);
  double sum_r = 0;
  for (std::int64_t begin = range.begin; begin < range.end; begin += kBlock) {
    const std::int64_t count = range.end - begin < kBlock ? range.end - begin : kBlock;
    alignas(64) double moments[kMoments * kBlock] = {};
    alignas(64) double r[kBlock];
    std::int64_t rows = 0;
    for (int part = 0; part < part_total; ++part) {
      parts[part].merge_into(begin, count, moments, kBlock, rows);
      rows += parts[part].rows();
    }
    T* out = stats + begin;
    for (std::int64_t j = 0; j < count; ++j) {
      const auto c = correlation_from_moments(moments[kPP * kBlock + j], moments[kQQ * kBlock + j],
                                              moments[kPQ * kBlock + j], eps);
      r[j] = c.r;
      out[cols * kColTeacherCoef + j] = static_cast<T>(col_weight * c.alpha);
      out[cols * kColStudentCoef + j] = static_cast<T>(col_weight * c.beta);
    }
    if constexpr (centered) {
      // What g loses by the rounding of the means is the same for every row of a column.
      for (std::int64_t j = 0; j < count; ++j) {
        const double mean_p = moments[kMeanP * kBlock + j], mean_q = moments[kMeanQ * kBlock + j];
        const T rounded_p = static_cast<T>(mean_p), rounded_q = static_cast<T>(mean_q);
        out[cols * kColStudentMean + j] = rounded_p;
        out[cols * kColTeacherMean + j] = rounded_q;
        out[cols * kColMeanRest + j] =
            static_cast<T>(static_cast<double>(out[cols * kColStudentCoef + j]) * (mean_p - rounded_p) -
                           static_cast<double>(out[cols * kColTeacherCoef + j]) * (mean_q - rounded_q));
      }
    }
    for (std::int64_t j = 0; j < count; ++j) sum_r += r[j];
  }
  return sum_r;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
