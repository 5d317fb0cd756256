// The correlation distance on the CPU, forward and backward. Compiled once per instruction set;
// dispatch.cpp picks one.
//
// Forward, per row: maximum; exponentials into a scratch that stays in cache, with the sums that
// the row term needs; then p and q from the scratch into the column moments. Columns accumulate in
// blocks of kBlockRows rows in the working type and are merged in double, so that the rounding of
// a tall batch does not grow with its height. The rows are split into parts of fixed bounds, whose
// column moments are merged in the order of the parts: the same bits in every run.
// Backward, per row: p and q again, g_ij and sum_j p_ij g_ij into scratch, then the gradient.

#include <type_traits>

#include "correlation_columns.h"
#include "correlation_entries.h"
#include "exp.h"
#include "pages.h"
#include "parallel.h"
#include "r2kd/correlation_math.h"
#include "rows.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

// The matrices and scalars of one call.
struct Call {
  const CorrelationParams& params;
  const ConstMatrix& student;  // [B, C]
  const ConstMatrix& teacher;  // [B, C]
  const std::uint8_t* mask;    // [B] or null
  std::int64_t mask_stride;
  const double* sample_weight;  // [B] or null; forward only

  bool keeps(std::int64_t row) const { return mask == nullptr || mask[row * mask_stride] != 0; }
  std::int64_t kept_rows() const {
    if (mask == nullptr) return params.rows;
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < params.rows; ++row) count += keeps(row);
    return count;
  }
  // Sum of the kept rows' sample weights.
  double kept_weight() const {
    double sum = 0;
    for (std::int64_t row = 0; row < params.rows; ++row) sum += keeps(row) ? sample_weight[row] : 0;
    return sum;
  }
};

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

// z, y -> e = exp((z - max) / T), h likewise; the padding up to a whole register becomes 0.
template <typename T, DType stored, bool products>
R2KD_INLINE void exponentials(const ScaledExp<T>& scaled_exp, Row<T, stored> z, Row<T, stored> y,
                              T z_max, T y_max, std::int64_t cols, T* e, T* h, GroupSums& sums, int row) {
  constexpr int lanes = kLanes<T>;
  constexpr T fill = static_cast<T>(kMinusInfinity);
  double total_e = 0, total_h = 0, total_ee = 0, total_hh = 0, total_eh = 0;
  for (std::int64_t block = 0; block < cols; block += kBlockCols<T>) {
    const std::int64_t end = block + kBlockCols<T> < cols ? block + kBlockCols<T> : cols;
    Vector<T> sum_e{}, sum_h{}, sum_ee{}, sum_hh{}, sum_eh{};
    const auto step = [&](std::int64_t j, Vector<T> zj, Vector<T> yj) __attribute__((always_inline)) {
      prefetch_after(z, j);
      prefetch_after(y, j);
      const Vector<T> ej = scaled_exp(zj - z_max);
      const Vector<T> hj = scaled_exp(yj - y_max);
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
  T* e = scratch;                  // [limit, C padded]
  T* h = scratch + limit * width;  // [limit, C padded]
  const ScaledExp<T> scaled_exp(params.temperature);
  std::int64_t kept[kMaxGroup];
  GroupSums sums;
  T z_max[kMaxGroup], y_max[kMaxGroup], p_scale[kMaxGroup], q_scale[kMaxGroup];
  double r[kMaxGroup], alpha[kMaxGroup] = {}, beta[kMaxGroup] = {};
  double sum_r = 0;

  for (std::int64_t next = rows.begin; next < rows.end;) {
    const int count = next_group(call, next, rows.end, limit, kept);
    for (int i = 0; i < count; ++i) {
      T* e_row = e + i * width;
      T* h_row = h + i * width;
      const auto z = row_of<T, stored>(call.student, kept[i], cols, e_row);
      const auto y = row_of<T, stored>(call.teacher, kept[i], cols, h_row);
      z_max[i] = row_maximum(z, cols);
      y_max[i] = row_maximum(y, cols);
      exponentials<T, stored, products>(scaled_exp, z, y, z_max[i], y_max[i], cols, e_row, h_row, sums, i);
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
      for (int i = 0; i < count; ++i) {
        const auto c = correlation_from_moments(sums.pp[i], sums.qq[i], sums.pq[i], params.eps);
        r[i] = c.r;
        alpha[i] = -row_weight * c.alpha;
        beta[i] = -row_weight * c.beta;
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
      row[kStudentMax] = z_max[i];
      row[kStudentInvSum] = p_scale[i];
      row[kTeacherMax] = y_max[i];
      row[kTeacherInvSum] = q_scale[i];
      row[kRowTeacherCoef] = static_cast<T>(alpha[i]);
      row[kRowStudentCoef] = static_cast<T>(beta[i]);
    }
  }
  if constexpr (wants_columns) columns->flush();
  return sum_r;
}

template <typename T, DType stored, bool centered>
Status forward(const Call& call, T* loss, T* stats, int threads) {
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  const std::int64_t kept = call.kept_rows();
  if (kept == 0) {
    *loss = T(0);
    return Status::ok;
  }
  const bool wants_columns = params.intra_weight != 0;
  const int parts = part_count(params.rows, cols, threads);
  const std::int64_t rows_per_part = (params.rows + parts - 1) / parts;
  const bool tall = rows_per_part > ColumnMoments<T, centered>::kBlockRows;

  using Columns = ColumnMoments<T, centered>;
  Workspace workspace;
  const std::int64_t rows_bytes = scratch_bytes<T>(cols);
  const std::int64_t columns_bytes = wants_columns ? Columns::bytes(cols, tall) : 0;
  if (!workspace.allocate(parts, rows_bytes + columns_bytes)) return Status::out_of_memory;

  PerPart<double> sum_r;
  PerPart<Columns> columns;
  const double kept_weight =
      call.sample_weight == nullptr ? static_cast<double>(kept) : call.kept_weight();
  const bool wants_rows = params.inter_weight != 0 && kept_weight != 0;
  const double row_weight = wants_rows ? params.inter_weight / kept_weight : 0;
  auto rows_body = [&](int part) {
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
  run_parts(parts, rows_body);

  double total = 0;
  for (int part = 0; part < parts; ++part) total += sum_r[part];
  double value = 0;
  if (wants_rows) value = params.inter_weight * (1 - total / kept_weight);
  if (wants_columns) {
    const int col_parts = part_count(cols, kFinishColsCost, threads);
    PerPart<double> col_sum_r;
    auto cols_body = [&](int part) {
      const FlushDenormals flush;
      const Range range = part_range(cols, col_parts, part);
      col_sum_r[part] = finish_columns<T, centered>(&columns[0], parts, range, cols, params.intra_weight,
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

// g times grad_loss / T and then dz for the kept rows of one part, zeros for the others.
template <typename T, DType stored, bool centered>
void backward_rows(const Call& call, Range rows, T grad_loss, const T* stats, T* scratch,
                   void* grad_student) {
  constexpr int lanes = kLanes<T>;
  constexpr T fill = static_cast<T>(kMinusInfinity);
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  const std::int64_t width = padded<T>(cols);
  const bool wants_columns = params.intra_weight != 0;
  T* p_row = scratch;               // [C], padded; also the converted row
  T* g_row = scratch + width;       // [C], padded; also the converted row
  T* col_a = scratch + 2 * width;   // [C], like the next two times `scale`
  T* col_b = scratch + 3 * width;   // [C]
  T* rest = scratch + 4 * width;    // [C]
  const T mean = static_cast<T>(1.0 / static_cast<double>(cols));
  const T scale = static_cast<T>(static_cast<double>(grad_loss) / params.temperature);
  const T* col = stats + params.rows * kRowStats;
  const T* col_mean_p = col + cols * kColStudentMean;  // [C]
  const T* col_mean_q = col + cols * kColTeacherMean;  // [C]
  if (wants_columns) {
    for (std::int64_t j = 0; j < cols; ++j) {
      col_a[j] = col[cols * kColTeacherCoef + j] * scale;
      col_b[j] = col[cols * kColStudentCoef + j] * scale;
      if (centered) rest[j] = col[cols * kColMeanRest + j] * scale;
    }
  }
  const ScaledExp<T> scaled_exp(params.temperature);
  const bool bypass = bypasses_caches(params.rows * cols * dtype_bytes(call.student.dtype));

  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t offset = i * cols;
    if (!call.keeps(i)) {
      const std::int64_t bytes = dtype_bytes(call.student.dtype);
      std::memset(static_cast<char*>(grad_student) + offset * bytes, 0,
                  static_cast<std::size_t>(cols * bytes));
      continue;
    }
    const T* row = stats + i * kRowStats;
    const T z_max = row[kStudentMax], p_scale = row[kStudentInvSum];
    const T y_max = row[kTeacherMax], q_scale = row[kTeacherInvSum];
    const T row_a = row[kRowTeacherCoef] * scale, row_b = row[kRowStudentCoef] * scale;
    const auto z = row_of<T, stored>(call.student, i, cols, p_row);
    const auto y = row_of<T, stored>(call.teacher, i, cols, g_row);

    double dot = 0;  // sum_j p_ij g_ij
    for (std::int64_t block = 0; block < cols; block += kBlockCols<T>) {
      const std::int64_t end = block + kBlockCols<T> < cols ? block + kBlockCols<T> : cols;
      Vector<T> sum{};
      const auto step = [&](std::int64_t j, Vector<T> zj, Vector<T> yj,
                            auto read_col) __attribute__((always_inline)) {
        prefetch_after(z, j);
        prefetch_after(y, j);
        const Vector<T> p = scaled_exp(zj - z_max) * p_scale;
        const Vector<T> q = scaled_exp(yj - y_max) * q_scale;
        Vector<T> g;
        if (centered) {
          g = (q - mean) * row_a - (p - mean) * row_b;
          if (wants_columns) {
            g += (q - read_col(col_mean_q + j)) * read_col(col_a + j) -
                 (p - read_col(col_mean_p + j)) * read_col(col_b + j) + read_col(rest + j);
          }
        } else if (wants_columns) {
          g = q * (read_col(col_a + j) + row_a) - p * (read_col(col_b + j) + row_b);
        } else {
          g = q * row_a - p * row_b;
        }
        store(p_row + j, p);
        store(g_row + j, g);
        sum += p * g;
      };
      const auto whole = [](const T* source) __attribute__((always_inline)) { return load(source); };
      std::int64_t j = block;
      for (; j + lanes <= end; j += lanes) step(j, z.load(j), y.load(j), whole);
      if (j < end) {
        // p = 0 in the padding, and so is its share of the sum.
        step(j, z.load_part(j, end - j, fill), y.load_part(j, end - j, fill),
             [=](const T* source) { return load_part(source, end - j, T(0)); });
      }
      dot += static_cast<double>(horizontal_sum<T>(sum));
    }
    const T mean_g = static_cast<T>(dot);
    GradientRow<T> target(grad_student, call.student.dtype, offset, bypass);
    const auto gradient = [=](Vector<T> p, Vector<T> g) __attribute__((always_inline)) {
      return p * (g - mean_g);
    };
    const auto part = [&](std::int64_t j, std::int64_t count) {
      target.store_part(j, gradient(load_part(p_row + j, count, T(0)), load_part(g_row + j, count, T(0))),
                        count);
    };
    const std::int64_t head = target.head() < cols ? target.head() : cols;
    if (head > 0) part(0, head);
    std::int64_t j = head;
    for (; j + lanes <= cols; j += lanes) target.store(j, gradient(load(p_row + j), load(g_row + j)));
    if (j < cols) part(j, cols - j);
  }
  if (bypass) end_stream();
}

template <typename T, DType stored, bool centered>
Status backward(const Call& call, T grad_loss, const T* stats, void* grad_student, int threads) {
  const CorrelationParams& params = call.params;
  advise_large_pages(grad_student, params.rows * params.cols * dtype_bytes(call.student.dtype));
  const int parts = part_count(params.rows, params.cols, threads);
  Workspace workspace;
  if (!workspace.allocate(parts, 5 * padded<T>(params.cols) * std::int64_t{sizeof(T)})) {
    return Status::out_of_memory;
  }
  auto body = [&](int part) {
    const FlushDenormals flush;
    backward_rows<T, stored, centered>(call, part_range(params.rows, parts, part), grad_loss, stats,
                               reinterpret_cast<T*>(workspace.part(part)), grad_student);
  };
  run_parts(parts, body);
  return Status::ok;
}

template <DType dtype>
using StoredAs = std::integral_constant<DType, dtype>;

// run(type, stored, centered): the working type, how rows are read, the correlation of this call.
// Rows of 16-bit numbers are read directly where both matrices have them; all that is rarer is
// converted row by row.
template <typename Run>
Status with_types(const Call& call, const Run& run) {
  const auto with_centered = [&](auto type, auto stored) {
    return call.params.centered ? run(type, stored, std::true_type{})
                                : run(type, stored, std::false_type{});
  };
  const DType dtype = call.student.dtype;
  if (dtype == DType::float64 || call.teacher.dtype == DType::float64) {
    return with_centered(double{}, StoredAs<DType::float64>{});
  }
  if (dtype == call.teacher.dtype && call.student.col_stride == 1 && call.teacher.col_stride == 1) {
    if (dtype == DType::bfloat16) return with_centered(float{}, StoredAs<DType::bfloat16>{});
    if (dtype == DType::float16) return with_centered(float{}, StoredAs<DType::float16>{});
  }
  return with_centered(float{}, StoredAs<DType::float32>{});
}

}  // namespace

Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, void* loss,
                           void* stats, int threads) {
  const Call call{params, student, teacher, mask, mask_stride, sample_weight};
  const auto run = [&](auto type, auto stored, auto centered) {
    using T = decltype(type);
    return forward<T, decltype(stored)::value, decltype(centered)::value>(
        call, static_cast<T*>(loss), static_cast<T*>(stats), threads);
  };
  return with_types(call, run);
}

Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads) {
  const Call call{params, student, teacher, mask, mask_stride, nullptr};
  const auto run = [&](auto type, auto stored, auto centered) {
    using T = decltype(type);
    return backward<T, decltype(stored)::value, decltype(centered)::value>(
        call, *static_cast<const T*>(grad_loss), static_cast<const T*>(stats), grad_student, threads);
  };
  return with_types(call, run);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
