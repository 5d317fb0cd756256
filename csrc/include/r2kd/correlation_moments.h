// Running moments of a row and of a column, by one thread, and their merging: what the CUDA kernels
// compute, without a word of CUDA, so that a test on the CPU can run it.
//
// Deviations from a mean are taken before they are squared, and blocks are merged by the rule of
// Chan, Golub and LeVeque: no difference of large sums anywhere.
#pragma once

#include <limits>

#include "r2kd/correlation.h"
#include "r2kd/correlation_math.h"
#include "r2kd/exp_math.h"

namespace r2kd {

template <typename T>
constexpr T kMinusInfinityOf = -std::numeric_limits<T>::infinity();

template <typename T>
R2KD_SHARED T larger(T a, T b) {
  return b > a ? b : a;  // a where b is NaN: a NaN reaches the result through its exponential
}

// exp((before - now) / T) for maxima before <= now: what older exponentials shrink by.
template <typename T>
R2KD_SHARED T shrinkage(T before, T now, const ExpScale<T>& scale) {
  return before == now ? T(1) : scaled_exp(before - now, scale);
}

// What a row's exponentials are taken relative to. Where there was nothing but -inf so far they are
// 0, and not those of -inf minus -inf.
template <typename T>
R2KD_SHARED T origin_of(T maximum) {
  return maximum == kMinusInfinityOf<T> ? T(0) : maximum;
}

// Moments of a part of a row, in one pass: of e = exp((z - z_max) / T) and h = exp((y - y_max) / T)
// with the maxima so far, which is why they shrink when a maximum rises.
template <typename T>
struct RowMoments {
  T z_max, y_max;
  T count;       // classes so far; only where centred
  T e, e_rest;   // centred: the mean in two parts, else the sum in two parts
  T h, h_rest;
  T ee, hh, eh;  // sums of products, of the deviations where centred

  static R2KD_SHARED RowMoments none() {
    return {kMinusInfinityOf<T>, kMinusInfinityOf<T>, 0, 0, 0, 0, 0, 0, 0, 0};
  }

  R2KD_SHARED void raise(T z_now, T y_now, const ExpScale<T>& scale) {
    if (z_now != z_max) {
      const T shrink = shrinkage(z_max, z_now, scale);
      e *= shrink;
      e_rest *= shrink;
      ee *= shrink * shrink;
      eh *= shrink;
      z_max = z_now;
    }
    if (y_now != y_max) {
      const T shrink = shrinkage(y_max, y_now, scale);
      h *= shrink;
      h_rest *= shrink;
      hh *= shrink * shrink;
      eh *= shrink;
      y_max = y_now;
    }
  }

  // Adds the first `count_now` of V classes.                                       // z, y: [V]
  template <int V>
  R2KD_SHARED void add(const T (&z)[V], const T (&y)[V], int count_now, bool centered,
                       const ExpScale<T>& scale) {
    T z_now = z_max, y_now = y_max;
    for (int i = 0; i < V; ++i) {
      if (i < count_now) {
        z_now = larger(z_now, z[i]);
        y_now = larger(y_now, y[i]);
      }
    }
    raise(z_now, y_now, scale);
    T p[V], q[V];
    T sum_p = 0, sum_q = 0;
    const T z_origin = origin_of(z_now), y_origin = origin_of(y_now);
    for (int i = 0; i < V; ++i) {
      p[i] = i < count_now ? scaled_exp(z[i] - z_origin, scale) : T(0);
      q[i] = i < count_now ? scaled_exp(y[i] - y_origin, scale) : T(0);
      sum_p += p[i];
      sum_q += q[i];
    }
    if (!centered) {
      for (int i = 0; i < V; ++i) {
        ee += p[i] * p[i];
        hh += q[i] * q[i];
        eh += p[i] * q[i];
      }
      add_to_split(e, e_rest, sum_p);
      add_to_split(h, h_rest, sum_q);
      return;
    }
    const T n = static_cast<T>(count_now), inverse = inverse_of_count(n);
    const T mean_p = sum_p * inverse, mean_q = sum_q * inverse;
    T rest_p = 0, rest_q = 0, pp = 0, qq = 0, pq = 0;
    for (int i = 0; i < V; ++i) {
      const T dp = i < count_now ? p[i] - mean_p : T(0);
      const T dq = i < count_now ? q[i] - mean_q : T(0);
      rest_p += dp;
      rest_q += dq;
      pp += dp * dp;
      qq += dq * dq;
      pq += dp * dq;
    }
    merge_centered(n, mean_p, rest_p * inverse, mean_q, rest_q * inverse, pp, qq, pq);
  }

  // Adds the moments of another part of the row.
  R2KD_SHARED void merge(RowMoments other, bool centered, const ExpScale<T>& scale) {
    const T z_now = larger(z_max, other.z_max), y_now = larger(y_max, other.y_max);
    raise(z_now, y_now, scale);
    other.raise(z_now, y_now, scale);
    if (centered) {
      if (other.count > T(0)) {
        merge_centered(other.count, other.e, other.e_rest, other.h, other.h_rest, other.ee, other.hh,
                       other.eh);
      }
    } else {
      add_to_split(e, e_rest, other.e + other.e_rest);
      add_to_split(h, h_rest, other.h + other.h_rest);
      ee += other.ee;
      hh += other.hh;
      eh += other.eh;
    }
  }

  R2KD_SHARED T sum_e(bool centered) const { return centered ? (e + e_rest) * count : e + e_rest; }
  R2KD_SHARED T sum_h(bool centered) const { return centered ? (h + h_rest) * count : h + h_rest; }

  R2KD_SHARED void merge_centered(T n, T mean_p, T rest_p, T mean_q, T rest_q, T pp, T qq, T pq) {
    const T share = ratio_of_counts(n, count + n);
    const T factor = share * count;
    const T dp = (mean_p - e) + (rest_p - e_rest);
    const T dq = (mean_q - h) + (rest_q - h_rest);
    add_to_split(e, e_rest, dp * share);
    add_to_split(h, h_rest, dq * share);
    ee += pp + dp * dp * factor;
    hh += qq + dq * dq * factor;
    eh += pq + dp * dq * factor;
    count += n;
  }
};

// A row's statistics (RowStat) from its sums of e and h and the sums of products of p and q.
// weight: of r in the loss, with its sign turned. Returns r.
template <typename T>
R2KD_SHARED T store_row_statistics(T z_max, T p_scale, T y_max, T q_scale, T pp, T qq, T pq, T weight,
                                   T eps, T* stats) {
  const Correlation<T> c = correlation_from_moments(pp, qq, pq, eps);
  stats[kStudentOrigin] = z_max;
  stats[kStudentInvSum] = p_scale;
  stats[kTeacherOrigin] = y_max;
  stats[kTeacherInvSum] = q_scale;
  // Without a row term there is no poison in it either: 0, and not 0 times alpha.
  stats[kRowTeacherCoef] = weight == T(0) ? T(0) : -weight * c.alpha;
  stats[kRowStudentCoef] = weight == T(0) ? T(0) : -weight * c.beta;
  return c.r;
}

// Moments of one column over many rows: blocks of rows merged one by one. All sums are in two parts,
// so that a tall batch loses no digits to its height.
template <typename T>
struct ColumnTotal {
  static constexpr int kNumbers = 10;
  T pp, pp_rest, qq, qq_rest, pq, pq_rest, mean_p, rest_p, mean_q, rest_q;

  // rows: rows so far, block_rows: those of `block`
  R2KD_SHARED void merge(const ColumnBlock<T>& block, T rows, T block_rows, bool centered) {
    if (!(block_rows > T(0))) return;
    T more_pp = block.pp, more_qq = block.qq, more_pq = block.pq;
    if (centered) {
      const T share = ratio_of_counts(block_rows, rows + block_rows);
      const T factor = share * rows;
      const T dp = (block.mean_p - mean_p) + (block.rest_p - rest_p);
      const T dq = (block.mean_q - mean_q) + (block.rest_q - rest_q);
      add_to_split(mean_p, rest_p, dp * share);
      add_to_split(mean_q, rest_q, dq * share);
      more_pp += dp * dp * factor;
      more_qq += dq * dq * factor;
      more_pq += dp * dq * factor;
    }
    add_to_split(pp, pp_rest, more_pp);
    add_to_split(qq, qq_rest, more_qq);
    add_to_split(pq, pq_rest, more_pq);
  }

  R2KD_SHARED ColumnBlock<T> rounded() const {
    return {pp + pp_rest, qq + qq_rest, pq + pq_rest, mean_p, rest_p, mean_q, rest_q};
  }
};

// The moments of one column over all rows, merged from partial ones in double.
struct ColumnSums {
  double rows, pp, qq, pq, mean_p, mean_q;

  R2KD_SHARED void merge(const ColumnSums& part, bool centered) {
    if (!(part.rows > 0)) return;
    double factor = 0;
    const double dp = part.mean_p - mean_p, dq = part.mean_q - mean_q;
    if (centered) {
      const double share = part.rows / (rows + part.rows);
      factor = share * rows;
      mean_p += dp * share;
      mean_q += dq * share;
      pp += dp * dp * factor;
      qq += dq * dq * factor;
      pq += dp * dq * factor;
    }
    pp += part.pp;
    qq += part.qq;
    pq += part.pq;
    rows += part.rows;
  }
};

// A column's statistics (ColStat), the first of its array at stats[0], the next `cols` further on.
// weight: of the column's r in the loss, with its sign turned. Returns r.
template <typename T>
R2KD_SHARED double store_column_statistics(const ColumnSums& sums, double weight, double eps,
                                           bool centered, std::int64_t cols, T* stats) {
  const Correlation<double> c = correlation_from_moments(sums.pp, sums.qq, sums.pq, eps);
  const T a = static_cast<T>(-weight * c.alpha), b = static_cast<T>(-weight * c.beta);
  stats[cols * kColTeacherCoef] = a;
  stats[cols * kColStudentCoef] = b;
  if (centered) {
    const T mean_p = static_cast<T>(sums.mean_p), mean_q = static_cast<T>(sums.mean_q);
    stats[cols * kColStudentMean] = mean_p;
    stats[cols * kColTeacherMean] = mean_q;
    // What g loses by the rounding of the means is the same for every row of a column.
    stats[cols * kColMeanRest] =
        static_cast<T>(static_cast<double>(b) * (sums.mean_p - static_cast<double>(mean_p)) -
                       static_cast<double>(a) * (sums.mean_q - static_cast<double>(mean_q)));
  }
  return c.r;
}

// dloss/dp before grad_loss: the row's and the column's share (see correlation.h).
template <typename T>
struct ColumnSlope {
  T a, b, mean_p, mean_q, rest;
};
template <typename T>
R2KD_SHARED T slope(T p, T q, T row_a, T row_b, T class_mean, bool centered, bool intra,
                    const ColumnSlope<T>& col) {
  if (!centered) {
    return intra ? q * (col.a + row_a) - p * (col.b + row_b) : q * row_a - p * row_b;
  }
  T g = (q - class_mean) * row_a - (p - class_mean) * row_b;
  if (intra) g += (q - col.mean_q) * col.a - (p - col.mean_p) * col.b + col.rest;
  return g;
}

}  // namespace r2kd
