// Forward: per row the exponentials, into a scratch that stays in cache, with the sums that the row
// term needs; then p and q from the scratch into the column moments. Columns accumulate in blocks of
// kBlockRows rows in the working type and are merged in double, so that the rounding of a tall batch
// does not grow with its height. The rows are split into parts of fixed bounds, whose column moments
// are merged in the order of the parts: the same bits in every run.
#pragma once

#include <cstdint>

#include "correlation_call.h"
#include "correlation_columns.h"
#include "exp.h"
#include "parallel.h"
#include "rows.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {

// Rows are taken in groups: the exponentials of all rows of a group, then their sums' divisions and
// square roots as vectors, then the columns, whose moments stay in registers for the whole group.
constexpr int kMaxGroup = 16;

// As many rows as keep the scratch of a group, two arrays, near the core (the second-level cache has
// at least 256 KiB), in whole tiles of the columns' pass; at least two, so that a wide row's column
// moments are read and written half as often.
template <typename T>
int group_rows(std::int64_t cols) {
  constexpr std::int64_t kScratchBytes = 96 * 1024;
  const std::int64_t rows = kScratchBytes / (2 * padded<T>(cols) * std::int64_t{sizeof(T)});
  return rows < 4 ? 2 : rows > kMaxGroup ? kMaxGroup : static_cast<int>(rows / 4 * 4);
}

template <typename T>
std::int64_t scratch_bytes(std::int64_t cols) {
  return 2 * group_rows<T>(cols) * padded<T>(cols) * std::int64_t{sizeof(T)};
}

// Sums over the columns of each row of a group: of the exponentials e (student) and h (teacher),
// and of the products of p and q (of e and h, where `exponentials` takes them).
struct GroupSums {
  double e[kMaxGroup], h[kMaxGroup];
  double pp[kMaxGroup], qq[kMaxGroup], pq[kMaxGroup];
};

// Work per column when the columns' coefficients are computed, in elements of the matrix.
constexpr std::int64_t kFinishColsCost = 4;

// z, y -> e and h, their exponentials; the padding up to a whole register becomes 0. Returns the
// largest z and y.
template <bool products, bool subtracts, typename T, DType stored>
LogitPair<T> exponentials(const ScaledExp<T>& scaled_exp, LogitPair<T> origin, Row<T, stored> z,
                          Row<T, stored> y, std::int64_t cols, T* e, T* h, GroupSums& sums, int row) {
  const auto z_exp = scaled_exp.template of_row<subtracts>(origin.z);
  const auto y_exp = scaled_exp.template of_row<subtracts>(origin.y);
  constexpr int lanes = kLanes<T>;
  constexpr T fill = static_cast<T>(kMinusInfinity);
  double total_e = 0, total_h = 0, total_ee = 0, total_hh = 0, total_eh = 0;
  Vector<T> z_max = broadcast<T>(fill), y_max = z_max;
  for (std::int64_t block = 0; block < cols; block += kBlockCols<T>) {
    const std::int64_t end = block + kBlockCols<T> < cols ? block + kBlockCols<T> : cols;
    Vector<T> sum_e{}, sum_h{}, sum_ee{}, sum_hh{}, sum_eh{};
    const auto step = [&](std::int64_t j, Vector<T> zj, Vector<T> yj) __attribute__((always_inline)) {
      prefetch_after(z, j);
      prefetch_after(y, j);
      z_max = maximum<T>(z_max, zj);
      y_max = maximum<T>(y_max, yj);
      const Vector<T> ej = z_exp(zj);
      const Vector<T> hj = y_exp(yj);
      store(e + j, ej);
      store(h + j, hj);
      sum_e += ej;
      sum_h += hj;
      if (products) {
        sum_ee += ej * ej;
        sum_hh += hj * hj;
        sum_eh += ej * hj;
      }
    };
    std::int64_t j = block;
    for (; j + lanes <= end; j += lanes) step(j, z.load(j), y.load(j));
    if (j < end) step(j, z.load_part(j, end - j, fill), y.load_part(j, end - j, fill));
    total_e += static_cast<double>(horizontal_sum<T>(sum_e));
    total_h += static_cast<double>(horizontal_sum<T>(sum_h));
    if (products) {
      total_ee += static_cast<double>(horizontal_sum<T>(sum_ee));
      total_hh += static_cast<double>(horizontal_sum<T>(sum_hh));
      total_eh += static_cast<double>(horizontal_sum<T>(sum_eh));
    }
  }
  sums.e[row] = total_e;
  sums.h[row] = total_h;
  if (products) {
    sums.pp[row] = total_ee;
    sums.qq[row] = total_hh;
    sums.pq[row] = total_eh;
  }
  return {horizontal_maximum<T>(z_max), horizontal_maximum<T>(y_max)};
}

// Exponentials and sums of a row, z and y, into row `row` of the group. Returns the logits of student
// and teacher that the exponentials are relative to.
//
// Softmax needs the largest logit only to keep exponentials within range, so a guess serves, one that
// is none too large, and the row is read once; the pass finds the largest by the way. Where the guess
// was too small, or a logit is not finite, the row, number `from` of the matrices, is read again.
template <typename T, DType stored, bool centered, bool products>
R2KD_INLINE LogitPair<T> row_exponentials(const Call& call, const ScaledExp<T>& scaled_exp,
                                          std::int64_t from, Row<T, stored> z, Row<T, stored> y,
                                          LogitPair<T> guess, T* e, T* h, GroupSums& sums, int row) {
  constexpr bool subtracts = kSubtracts<centered>;
  const std::int64_t cols = call.params.cols;
  if (subtracts || (scaled_exp.takes(guess.z) && scaled_exp.takes(guess.y))) {
    const LogitPair<T> max =
        exponentials<products, subtracts>(scaled_exp, guess, z, y, cols, e, h, sums, row);
    if (scaled_exp.spans(guess.z, max.z) && scaled_exp.spans(guess.y, max.y)) return guess;
  }
  z = row_of<T, stored>(call.student, from, cols, e);  // e and h took the place of converted rows
  y = row_of<T, stored>(call.teacher, from, cols, h);
  const LogitPair<T> max = row_maxima(z, y, cols);
  if (!subtracts && scaled_exp.takes(max.z) && scaled_exp.takes(max.y)) {
    exponentials<products, false>(scaled_exp, max, z, y, cols, e, h, sums, row);
  } else {
    exponentials<products, true>(scaled_exp, max, z, y, cols, e, h, sums, row);
  }
  return max;
}

// Moments of p - 1/C and q - 1/C (the mean of a softmax over C classes is 1/C).
template <typename T>
void centered_moments(const T* e, const T* h, T p_scale, T q_scale, std::int64_t cols,
                      GroupSums& sums, int row) {
  constexpr int lanes = kLanes<T>;
  const T mean = static_cast<T>(1.0 / static_cast<double>(cols));
  double total_pp = 0, total_qq = 0, total_pq = 0;
  for (std::int64_t block = 0; block < cols; block += kBlockCols<T>) {
    const std::int64_t end = block + kBlockCols<T> < cols ? block + kBlockCols<T> : cols;
    Vector<T> pp{}, qq{}, pq{};
    for (std::int64_t j = block; j < end; j += lanes) {
      Vector<T> p = load(e + j) * p_scale - mean;
      Vector<T> q = load(h + j) * q_scale - mean;
      if (end - j < lanes) {  // the padding counts as the mean, not as 0
        p = first_lanes<T>(p, end - j, T(0));
        q = first_lanes<T>(q, end - j, T(0));
      }
      pp += p * p;
      qq += q * q;
      pq += p * q;
    }
    total_pp += static_cast<double>(horizontal_sum<T>(pp));
    total_qq += static_cast<double>(horizontal_sum<T>(qq));
    total_pq += static_cast<double>(horizontal_sum<T>(pq));
  }
  sums.pp[row] = total_pp;
  sums.qq[row] = total_qq;
  sums.pq[row] = total_pq;
}

// The next rows from `row` on that the mask keeps, at most `limit`; returns their number.
inline int next_group(const Call& call, std::int64_t& row, std::int64_t end, int limit,
                      std::int64_t* kept) {
  int count = 0;
  for (; row < end && count < limit; ++row) {
    if (call.keeps(row)) kept[count++] = row;
  }
  return count;
}

// One part's share of forward: writes the rows' statistics, returns the weighted sum of their r.
template <typename T, DType stored, bool centered, bool wants_columns>
double forward_rows(const Call& call, Range rows, double row_weight,
                    ColumnMoments<T, centered>* columns, T* scratch, T* stats) {
  constexpr bool products = !centered && !wants_columns;  // else the columns' pass takes them
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols, width = padded<T>(cols);
  const int limit = group_rows<T>(cols);
  const std::int64_t first = cols < kLanes<T> ? cols : kLanes<T>;  // columns that make the guess
  // Guesses of short rows are made together, so that these rows do not wait for each other; the first
  // columns of longer ones would be read before they have been fetched.
  const int ahead = cols <= 256 ? kMaxGroup : 1;
  T* e = scratch;                  // [limit, C padded]
  T* h = scratch + limit * width;  // [limit, C padded]
  const ScaledExp<T> scaled_exp(params.temperature);
  std::int64_t kept[kMaxGroup];
  GroupSums sums{};  // lanes past the last row of a group are computed, too
  Row<T, stored> z[kMaxGroup], y[kMaxGroup];
  LogitPair<T> origin[kMaxGroup];
  T p_scale[kMaxGroup], q_scale[kMaxGroup];
  double r[kMaxGroup], alpha[kMaxGroup] = {}, beta[kMaxGroup] = {};
  double sum_r = 0;

  for (std::int64_t next = rows.begin; next < rows.end;) {
    const int count = next_group(call, next, rows.end, limit, kept);
    for (int i = 0; i < count; ++i) {
      if (i % ahead == 0) {
        for (int k = i; k < count && k < i + ahead; ++k) {
          z[k] = row_of<T, stored>(call.student, kept[k], cols, e + k * width);
          y[k] = row_of<T, stored>(call.teacher, kept[k], cols, h + k * width);
          origin[k] = row_maxima(z[k], y[k], first);
        }
      }
      origin[i] = row_exponentials<T, stored, centered, products>(
          call, scaled_exp, kept[i], z[i], y[i], origin[i], e + i * width, h + i * width, sums, i);
    }
    for (int i = 0; i < count; ++i) {
      const double p = 1 / sums.e[i], q = 1 / sums.h[i];
      p_scale[i] = static_cast<T>(p);
      q_scale[i] = static_cast<T>(q);
      if constexpr (products) {
        sums.pp[i] *= p * p;
        sums.qq[i] *= q * q;
        sums.pq[i] *= p * q;
      }
    }
    if constexpr (wants_columns) columns->add_rows(e, h, p_scale, q_scale, count, sums);
    if (params.inter_weight != 0) {
      if constexpr (centered) {
        for (int i = 0; i < count; ++i) {
          centered_moments(e + i * width, h + i * width, p_scale[i], q_scale[i], cols, sums, i);
        }
      }
      for (int i = 0; i < count; i += kLanes<double>) {
        const auto c = correlations(sums.pp + i, sums.qq + i, sums.pq + i, params.eps);
        store(r + i, c.r);
        store(alpha + i, -row_weight * c.alpha);
        store(beta + i, -row_weight * c.beta);
      }
      if (call.sample_weight != nullptr) {
        for (int i = 0; i < count; ++i) {
          const double weight = call.sample_weight[kept[i]];
          r[i] *= weight;
          alpha[i] *= weight;
          beta[i] *= weight;
        }
      }
      for (int i = 0; i < count; ++i) sum_r += r[i];
    }
    for (int i = 0; i < count; ++i) {
      T* row = stats + kept[i] * kRowStats;
      row[kStudentOrigin] = origin[i].z;
      row[kStudentInvSum] = p_scale[i];
      row[kTeacherOrigin] = origin[i].y;
      row[kTeacherInvSum] = q_scale[i];
      row[kRowTeacherCoef] = static_cast<T>(alpha[i]);
      row[kRowStudentCoef] = static_cast<T>(beta[i]);
    }
  }
  if constexpr (wants_columns) columns->flush();
  return sum_r;
}

// The pass over all rows: what the parts leave behind, and the memory that it lies in.
template <typename T, bool centered>
struct RowsPass {
  using Columns = ColumnMoments<T, centered>;
  Workspace workspace;
  int parts = 1;
  PerPart<double> sum_r;
  PerPart<Columns> columns;  // only where there is a column term

  // row_weight: of each row's r in the loss, before its sample weight.
  template <DType stored>
  Status run(const Call& call, double row_weight, T* stats, int threads) {
    const CorrelationParams& params = call.params;
    const std::int64_t cols = params.cols;
    const bool wants_columns = params.intra_weight != 0;
    parts = part_count(params.rows, cols, threads);
    const std::int64_t rows_per_part = (params.rows + parts - 1) / parts;
    const bool tall = rows_per_part > Columns::kBlockRows;
    const std::int64_t rows_bytes = scratch_bytes<T>(cols);
    const std::int64_t columns_bytes = wants_columns ? Columns::bytes(cols, tall) : 0;
    if (!workspace.allocate(parts, rows_bytes + columns_bytes)) return Status::out_of_memory;
    auto body = [&](int part) {
      const FlushDenormals flush;
      char* memory = workspace.part(part);
      const Range rows = part_range(params.rows, parts, part);
      if (wants_columns) columns[part] = Columns(memory + rows_bytes, cols, tall);
      T* scratch = reinterpret_cast<T*>(memory);
      sum_r[part] =
          wants_columns
              ? forward_rows<T, stored, centered, true>(call, rows, row_weight, &columns[part], scratch,
                                                        stats)
              : forward_rows<T, stored, centered, false>(call, rows, row_weight, nullptr, scratch,
                                                         stats);
    };
    run_parts(parts, body);
    return Status::ok;
  }

  double total_r() {
    double total = 0;
    for (int part = 0; part < parts; ++part) total += sum_r[part];
    return total;
  }
};

template <typename T, DType stored, bool centered>
Status forward(const Call& call, T* loss, T* stats, int threads) {
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  const std::int64_t kept = call.kept_rows();
  if (kept == 0) {
    *loss = T(0);
    return Status::ok;
  }
  const double kept_weight =
      call.sample_weight == nullptr ? static_cast<double>(kept) : call.kept_weight();
  const bool wants_rows = params.inter_weight != 0 && kept_weight != 0;
  RowsPass<T, centered> pass;
  const Status status = pass.template run<stored>(
      call, wants_rows ? params.inter_weight / kept_weight : 0, stats, threads);
  if (status != Status::ok) return status;

  double value = 0;
  if (wants_rows) value = params.inter_weight * (1 - pass.total_r() / kept_weight);
  if (params.intra_weight != 0) {
    const int col_parts = part_count(cols, kFinishColsCost, threads);
    PerPart<double> col_sum_r;
    auto cols_body = [&](int part) {
      const FlushDenormals flush;
      const Range range = part_range(cols, col_parts, part);
      col_sum_r[part] =
          finish_columns<T, centered>(&pass.columns[0], pass.parts, range, cols, params.intra_weight,
                                      params.eps, stats + params.rows * kRowStats);
    };
    run_parts(col_parts, cols_body);
    double col_total = 0;
    for (int part = 0; part < col_parts; ++part) col_total += col_sum_r[part];
    value += params.intra_weight * (1 - col_total / static_cast<double>(cols));
  }
  *loss = static_cast<T>(value);
  return Status::ok;
}

// The same up to where rows of other processes come in; see correlation_moments.
template <typename T, DType stored, bool centered>
Status moments(const Call& call, double* sums, double* columns, T* stats, int threads) {
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  const std::int64_t kept = call.kept_rows();
  sums[kSumRows] = static_cast<double>(kept);
  sums[kSumWeights] = call.sample_weight == nullptr ? static_cast<double>(kept) : call.kept_weight();
  sums[kSumR] = 0;
  if (kept == 0) return Status::ok;
  RowsPass<T, centered> pass;
  const Status status = pass.template run<stored>(call, params.inter_weight, stats, threads);
  if (status != Status::ok) return status;
  sums[kSumR] = pass.total_r();
  if (params.intra_weight != 0) {
    const int col_parts = part_count(cols, kFinishColsCost, threads);
    auto cols_body = [&](int part) {
      const Range range = part_range(cols, col_parts, part);
      std::int64_t rows = 0;
      for (int from = 0; from < pass.parts; ++from) {
        pass.columns[from].merge_into(range.begin, range.end - range.begin, columns + range.begin, cols,
                                      rows);
        rows += pass.columns[from].rows();
      }
    };
    run_parts(col_parts, cols_body);
  }
  return Status::ok;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
