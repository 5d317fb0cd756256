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

enum Moment : int { kPP = 0, kQQ = 1, kPQ = 2, kMeanP = 3, kMeanQ = 4, kRestP = 5, kRestQ = 6 };

// Adds the moments of `count` columns over from_rows rows to those over into_rows rows. The means
// of a block are in two parts (split).
template <bool centered, bool split, typename From>
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
      if constexpr (split) {
        mean_p += from[kRestP * from_stride + j];
        mean_q += from[kRestQ * from_stride + j];
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

// A register of correlations, from moments in double. One root of the product takes half as long as
// two; it leaves the range only where both norms are below 1e-77, far below any eps but 0.
R2KD_INLINE Correlation<Vector<double>> correlations(const double* pp, const double* qq, const double* pq,
                                                     double eps) {
  const Vector<double> saa = load(pp);
  return correlation_from_norm(square_root(saa * load(qq)), saa, load(pq), eps);
}

// Cosine: sums of p^2, q^2, p q. Pearson: means of p and q and sums of products of deviations,
// by Welford's update within a block and by Chan's merge between blocks: no difference of large
// sums is ever taken. A mean within a block is in two parts (see ColumnBlock; with one part the
// gradient of 128 x 1000 published logits is off by 4 roundings instead of 0.8).
// A block of rows is summed in T; a part with more than one block adds its blocks up in double.
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

  // Adds `count` rows, p = e p_scale and q = h q_scale.   // e, h: [count, C padded], scales: [count]
  // Where the correlation is a cosine, also gives the rows' own sums of p^2, q^2 and p q, for which
  // the same products serve: `rows.pp` and so on, [count]. Where centred, `rows` is left alone.
  template <typename RowSums>
  R2KD_INLINE void add_rows(const T* e, const T* h, const T* p_scale, const T* q_scale, int count,
                            RowSums& rows) {
    if (total_ != nullptr && block_rows_ + count > kBlockRows) flush();
    if constexpr (centered) {
      // From 4 rows on, two passes over a group and one update take fewer operations than an update
      // for each row.
      if (count >= 4) {
        for (std::int64_t j = 0; j < width_; j += kLanes<T>) {
          add_centered_group(e + j, h + j, p_scale, q_scale, count, block_ + j);
        }
      } else {
        for (std::int64_t j = 0; j < width_; j += kLanes<T>) {
          add_centered(e + j, h + j, p_scale, q_scale, count, block_ + j);
        }
      }
    } else {
      // 3 sums for each row, 3 for the columns: 15 registers of 32, 9 of 16.
      constexpr int kTile = R2KD_VECTOR_BYTES == 64 ? 4 : 2;
      int row = 0;
      for (; row + kTile <= count; row += kTile) {
        add_tile<kTile>(e + row * width_, h + row * width_, p_scale + row, q_scale + row, row, rows);
      }
      for (; row + 2 <= count; row += 2) {
        add_tile<2>(e + row * width_, h + row * width_, p_scale + row, q_scale + row, row, rows);
      }
      if (row < count) {
        add_tile<1>(e + row * width_, h + row * width_, p_scale + row, q_scale + row, row, rows);
      }
    }
    block_rows_ += count;
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
  // e, h: [tile, C padded]. The rows' sums run in T over at most kBlockCols columns, then in double.
  template <int tile, typename RowSums>
  R2KD_INLINE void add_tile(const T* e, const T* h, const T* p_scale, const T* q_scale, int first,
                            RowSums& rows) {
    double total_pp[tile] = {}, total_qq[tile] = {}, total_pq[tile] = {};
    T* column_pp = block_ + kPP * width_;
    T* column_qq = block_ + kQQ * width_;
    T* column_pq = block_ + kPQ * width_;
    for (std::int64_t begin = 0; begin < width_; begin += kBlockCols<T>) {
      const std::int64_t end = begin + kBlockCols<T> < width_ ? begin + kBlockCols<T> : width_;
      Vector<T> row_pp[tile] = {}, row_qq[tile] = {}, row_pq[tile] = {};
      for (std::int64_t j = begin; j < end; j += kLanes<T>) {
        Vector<T> pp = load(column_pp + j), qq = load(column_qq + j), pq = load(column_pq + j);
#pragma GCC unroll 4
        for (int row = 0; row < tile; ++row) {
          const Vector<T> p = load(e + row * width_ + j) * p_scale[row];
          const Vector<T> q = load(h + row * width_ + j) * q_scale[row];
          pp += p * p;
          qq += q * q;
          pq += p * q;
          row_pp[row] += p * p;
          row_qq[row] += q * q;
          row_pq[row] += p * q;
        }
        store(column_pp + j, pp);
        store(column_qq + j, qq);
        store(column_pq + j, pq);
      }
      for (int row = 0; row < tile; ++row) {
        total_pp[row] += static_cast<double>(horizontal_sum<T>(row_pp[row]));
        total_qq[row] += static_cast<double>(horizontal_sum<T>(row_qq[row]));
        total_pq[row] += static_cast<double>(horizontal_sum<T>(row_pq[row]));
      }
    }
    for (int row = 0; row < tile; ++row) {
      rows.pp[first + row] = total_pp[row];
      rows.qq[first + row] = total_qq[row];
      rows.pq[first + row] = total_pq[row];
    }
  }

  // One register of columns, row after row.                                // block: [kBlockMoments]
  R2KD_INLINE void add_centered(const T* e, const T* h, const T* p_scale, const T* q_scale,
                                int count, T* block) const {
    ColumnBlock<Vector<T>> c = load_block(block);
    for (int row = 0; row < count; ++row) {
      const T inverse = T(1) / static_cast<T>(block_rows_ + row + 1);
      const T factor = static_cast<T>(block_rows_ + row) * inverse;
      c.add_centered(load(e + row * width_), p_scale[row], load(h + row * width_), q_scale[row],
                     inverse, factor);
    }
    store_block(c, block);
  }

  // One register of columns, all rows of a group at once: deviations from the group's mean, which need
  // not be exact, since what the deviations sum up to is added to it afterwards.
  R2KD_INLINE void add_centered_group(const T* e, const T* h, const T* p_scale, const T* q_scale,
                                      int count, T* block) const {
    const T inverse = T(1) / static_cast<T>(count);
    ColumnBlock<Vector<T>> group{};
    for (int row = 0; row < count; ++row) {
      group.mean_p += load(e + row * width_) * p_scale[row];
      group.mean_q += load(h + row * width_) * q_scale[row];
    }
    group.mean_p *= inverse;
    group.mean_q *= inverse;
    for (int row = 0; row < count; ++row) {
      const Vector<T> dp = load(e + row * width_) * p_scale[row] - group.mean_p;
      const Vector<T> dq = load(h + row * width_) * q_scale[row] - group.mean_q;
      group.rest_p += dp;
      group.rest_q += dq;
      group.add(dp, dq);
    }
    ColumnBlock<Vector<T>> c = load_block(block);
    const T rows = static_cast<T>(block_rows_), share = static_cast<T>(count) / (rows + static_cast<T>(count));
    c.add_group(group, static_cast<T>(count), inverse, share, share * rows);
    store_block(c, block);
  }

  R2KD_INLINE ColumnBlock<Vector<T>> load_block(const T* block) const {
    return {load(block + kPP * width_),    load(block + kQQ * width_),    load(block + kPQ * width_),
            load(block + kMeanP * width_), load(block + kRestP * width_), load(block + kMeanQ * width_),
            load(block + kRestQ * width_)};
  }

  R2KD_INLINE void store_block(const ColumnBlock<Vector<T>>& c, T* block) const {
    store(block + kPP * width_, c.pp);
    store(block + kQQ * width_, c.qq);
    store(block + kPQ * width_, c.pq);
    store(block + kMeanP * width_, c.mean_p);
    store(block + kMeanQ * width_, c.mean_q);
    store(block + kRestP * width_, c.rest_p);
    store(block + kRestQ * width_, c.rest_q);
  }

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
    alignas(64) double alpha[kBlock], beta[kBlock];
    for (std::int64_t j = 0; j < count; j += kLanes<double>) {
      const auto c = correlations(moments + kPP * kBlock + j, moments + kQQ * kBlock + j,
                                  moments + kPQ * kBlock + j, eps);
      store(r + j, c.r);
      store(alpha + j, c.alpha);
      store(beta + j, c.beta);
    }
    T* out = stats + begin;
    for (std::int64_t j = 0; j < count; ++j) {
      out[cols * kColTeacherCoef + j] = static_cast<T>(col_weight * alpha[j]);
      out[cols * kColStudentCoef + j] = static_cast<T>(col_weight * beta[j]);
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
    // Summed apart: 32,000 additions in a row would show in a double. What stands past the last
    // column is no number where eps is 0.
    Vector<double> block_r{};
    std::int64_t j = 0;
    for (; j + kLanes<double> <= count; j += kLanes<double>) block_r += load(r + j);
    if (j < count) block_r += load_part(r + j, count - j, 0.0);
    sum_r += horizontal_sum<double>(block_r);
  }
  return sum_r;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
