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

  bool keeps(std::int64_t row) const { return mask == nullptr || mask[row * mask_stride] != 0; }
  std::int64_t kept_rows() const {
    if (mask == nullptr) return params.rows;
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < params.rows; ++row) count += keeps(row);
    return count;
  }
};

struct RowMoments {
  double pp, qq, pq;
};

// Sums of one row that need no normalised probabilities: of the exponentials e (student) and
// h (teacher) and, where the correlation is a cosine, of their products.
struct ExpSums {
  double e = 0, h = 0, ee = 0, hh = 0, eh = 0;
};

// Sums in the working type run over at most this many columns, then go on in double.
constexpr std::int64_t kBlockCols = 1024;

// Work per column when the columns' coefficients are computed, in elements of the matrix.
constexpr std::int64_t kFinishColsCost = 4;

// z, y -> e = exp((z - max) / T), h likewise; the padding up to a whole register becomes 0.
template <typename T, bool centered>
ExpSums exponentials(const ScaledExp<T>& scaled_exp, const T* z, const T* y, T z_max, T y_max,
                     std::int64_t cols, T* e, T* h) {
  constexpr int lanes = kLanes<T>;
  constexpr T fill = static_cast<T>(kMinusInfinity);
  ExpSums total;
  for (std::int64_t block = 0; block < cols; block += kBlockCols) {
    const std::int64_t end = block + kBlockCols < cols ? block + kBlockCols : cols;
    Vector<T> sum_e{}, sum_h{}, sum_ee{}, sum_hh{}, sum_eh{};
    const auto step = [&](std::int64_t j, Vector<T> zj, Vector<T> yj) __attribute__((always_inline)) {
      const Vector<T> ej = scaled_exp(zj - z_max);
      const Vector<T> hj = scaled_exp(yj - y_max);
      store(e + j, ej);
      store(h + j, hj);
      sum_e += ej;
      sum_h += hj;
      if (!centered) {
        sum_ee += ej * ej;
        sum_hh += hj * hj;
        sum_eh += ej * hj;
      }
    };
    std::int64_t j = block;
    for (; j + lanes <= end; j += lanes) step(j, load(z + j), load(y + j));
    if (j < end) step(j, load_part(z + j, end - j, fill), load_part(y + j, end - j, fill));
    total.e += static_cast<double>(horizontal_sum<T>(sum_e));
    total.h += static_cast<double>(horizontal_sum<T>(sum_h));
    if (!centered) {
      total.ee += static_cast<double>(horizontal_sum<T>(sum_ee));
      total.hh += static_cast<double>(horizontal_sum<T>(sum_hh));
      total.eh += static_cast<double>(horizontal_sum<T>(sum_eh));
    }
  }
  return total;
}

// Moments of p - 1/C and q - 1/C (the mean of a softmax over C classes is 1/C).
template <typename T>
RowMoments centered_moments(const T* e, const T* h, T p_scale, T q_scale, std::int64_t cols) {
  constexpr int lanes = kLanes<T>;
  const T mean = static_cast<T>(1.0 / static_cast<double>(cols));
  RowMoments total{0, 0, 0};
  for (std::int64_t block = 0; block < cols; block += kBlockCols) {
    const std::int64_t end = block + kBlockCols < cols ? block + kBlockCols : cols;
    Vector<T> pp{}, qq{}, pq{};
    for (std::int64_t j = block; j < end; j += lanes) {
      Vector<T> p = load(e + j) * p_scale - mean;
      Vector<T> q = load(h + j) * q_scale - mean;
      if (end - j < lanes) {  // the padding counts as the mean, not as 0
        p = first_lanes<T>(p, end - j);
        q = first_lanes<T>(q, end - j);
      }
      pp += p * p;
      qq += q * q;
      pq += p * q;
    }
    total.pp += static_cast<double>(horizontal_sum<T>(pp));
    total.qq += static_cast<double>(horizontal_sum<T>(qq));
    total.pq += static_cast<double>(horizontal_sum<T>(pq));
  }
  return total;
}

// One part's share of forward: writes the rows' statistics, returns the sum of their r.
template <typename T, bool centered>
double forward_rows(const Call& call, Range rows, double row_weight, ColumnMoments<T, centered>* columns,
                    T* scratch, T* stats) {
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  T* e = scratch;                          // [C], padded
  T* h = scratch + padded<T>(cols);        // [C], padded
  const ScaledExp<T> scaled_exp(params.temperature);
  double sum_r = 0;
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    if (!call.keeps(i)) continue;
    const T* z = contiguous_row(call.student, i, cols, e);
    const T* y = contiguous_row(call.teacher, i, cols, h);
    const T z_max = row_maximum(z, cols);
    const T y_max = row_maximum(y, cols);
    const ExpSums sums = exponentials<T, centered>(scaled_exp, z, y, z_max, y_max, cols, e, h);
    const double p_scale = 1 / sums.e, q_scale = 1 / sums.h;
    T* row = stats + i * kRowStats;
    row[kStudentMax] = z_max;
    row[kStudentInvSum] = static_cast<T>(p_scale);
    row[kTeacherMax] = y_max;
    row[kTeacherInvSum] = static_cast<T>(q_scale);
    row[kRowTeacherCoef] = row[kRowStudentCoef] = T(0);
    if (params.inter_weight != 0) {
      RowMoments moments;
      if constexpr (centered) {
        moments = centered_moments(e, h, row[kStudentInvSum], row[kTeacherInvSum], cols);
      } else {
        moments = {sums.ee * p_scale * p_scale, sums.hh * q_scale * q_scale,
                   sums.eh * p_scale * q_scale};
      }
      const auto c = correlation_from_moments(moments.pp, moments.qq, moments.pq, params.eps);
      sum_r += c.r;
      row[kRowTeacherCoef] = static_cast<T>(-row_weight * c.alpha);
      row[kRowStudentCoef] = static_cast<T>(-row_weight * c.beta);
    }
    if (columns != nullptr) columns->add_row(e, h, row[kStudentInvSum], row[kTeacherInvSum]);
  }
  if (columns != nullptr) columns->flush();
  return sum_r;
}

template <typename T, bool centered>
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
  const std::int64_t scratch_bytes = 2 * padded<T>(cols) * std::int64_t{sizeof(T)};
  const std::int64_t columns_bytes = wants_columns ? Columns::bytes(cols, tall) : 0;
  if (!workspace.allocate(parts, scratch_bytes + columns_bytes)) return Status::out_of_memory;

  PerPart<double> sum_r;
  PerPart<Columns> columns;
  const double row_weight = params.inter_weight / static_cast<double>(kept);
  auto rows_body = [&](int part) {
    const FlushDenormals flush;
    char* memory = workspace.part(part);
    const Range rows = part_range(params.rows, parts, part);
    if (wants_columns) columns[part] = Columns(memory + scratch_bytes, cols, tall);
    sum_r[part] = forward_rows<T, centered>(call, rows, row_weight,
                                            wants_columns ? &columns[part] : nullptr,
                                            reinterpret_cast<T*>(memory), stats);
  };
  run_parts(parts, rows_body);

  double total = 0;
  for (int part = 0; part < parts; ++part) total += sum_r[part];
  double value = 0;
  if (params.inter_weight != 0) value = params.inter_weight * (1 - total / static_cast<double>(kept));
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

// g and then dz for the kept rows of one part, zeros for the others.
template <typename T, bool centered>
void backward_rows(const Call& call, Range rows, T grad_loss, const T* stats, T* scratch,
                   void* grad_student) {
  constexpr int lanes = kLanes<T>;
  constexpr T fill = static_cast<T>(kMinusInfinity);
  const CorrelationParams& params = call.params;
  const std::int64_t cols = params.cols;
  const std::int64_t width = padded<T>(cols);
  const bool wants_columns = params.intra_weight != 0;
  T* p_row = scratch;          // [C], padded; also the converted row
  T* g_row = scratch + width;  // [C], padded; also the converted row
  const T* col = stats + params.rows * kRowStats;
  const T* col_a = col + cols * kColTeacherCoef;       // [C]
  const T* col_b = col + cols * kColStudentCoef;       // [C]
  const T* col_mean_p = col + cols * kColStudentMean;  // [C]
  const T* col_mean_q = col + cols * kColTeacherMean;  // [C]
  const T* col_rest = col + cols * kColMeanRest;       // [C]
  const T mean = static_cast<T>(1.0 / static_cast<double>(cols));
  const T scale = static_cast<T>(static_cast<double>(grad_loss) / params.temperature);
  const ScaledExp<T> scaled_exp(params.temperature);

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
    const T row_a = row[kRowTeacherCoef], row_b = row[kRowStudentCoef];
    const T* z = contiguous_row(call.student, i, cols, p_row);
    const T* y = contiguous_row(call.teacher, i, cols, g_row);

    double dot = 0;  // sum_j p_ij g_ij
    for (std::int64_t block = 0; block < cols; block += kBlockCols) {
      const std::int64_t end = block + kBlockCols < cols ? block + kBlockCols : cols;
      Vector<T> sum{};
      const auto step = [&](std::int64_t j, auto read, auto read_col) __attribute__((always_inline)) {
        const Vector<T> p = scaled_exp(read(z + j) - z_max) * p_scale;
        const Vector<T> q = scaled_exp(read(y + j) - y_max) * q_scale;
        Vector<T> g;
        if (centered) {
          g = (q - mean) * row_a - (p - mean) * row_b;
          if (wants_columns) {
            g += (q - read_col(col_mean_q + j)) * read_col(col_a + j) -
                 (p - read_col(col_mean_p + j)) * read_col(col_b + j) + read_col(col_rest + j);
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
      for (; j + lanes <= end; j += lanes) step(j, whole, whole);
      if (j < end) {
        // p = 0 in the padding, and so is its share of the sum.
        step(j, [=](const T* s) { return load_part(s, end - j, fill); },
             [=](const T* s) { return load_part(s, end - j, T(0)); });
      }
      dot += static_cast<double>(horizontal_sum<T>(sum));
    }
    const T mean_g = static_cast<T>(dot);
    for (std::int64_t j = 0; j < cols; j += lanes) {
      const Vector<T> gradient = load(p_row + j) * (load(g_row + j) - mean_g) * scale;
      store_gradient<T>(grad_student, call.student.dtype, offset + j, gradient,
                        cols - j < lanes ? cols - j : lanes);
    }
  }
}

template <typename T, bool centered>
Status backward(const Call& call, T grad_loss, const T* stats, void* grad_student, int threads) {
  const CorrelationParams& params = call.params;
  const int parts = part_count(params.rows, params.cols, threads);
  Workspace workspace;
  if (!workspace.allocate(parts, 2 * padded<T>(params.cols) * std::int64_t{sizeof(T)})) {
    return Status::out_of_memory;
  }
  auto body = [&](int part) {
    const FlushDenormals flush;
    backward_rows<T, centered>(call, part_range(params.rows, parts, part), grad_loss, stats,
                               reinterpret_cast<T*>(workspace.part(part)), grad_student);
  };
  run_parts(parts, body);
  return Status::ok;
}

// run(type, centered) for the working type and the correlation of this call.
template <typename Run>
Status with_types(const Call& call, const Run& run) {
  const bool in_double =
      call.student.dtype == DType::float64 || call.teacher.dtype == DType::float64;
  if (in_double) {
    return call.params.centered ? run(double{}, std::true_type{}) : run(double{}, std::false_type{});
  }
  return call.params.centered ? run(float{}, std::true_type{}) : run(float{}, std::false_type{});
}

}  // namespace

Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, void* loss, void* stats, int threads) {
  const Call call{params, student, teacher, mask, mask_stride};
  const auto run = [&](auto type, auto centered) {
    using T = decltype(type);
    return forward<T, decltype(centered)::value>(call, static_cast<T*>(loss), static_cast<T*>(stats),
                                                 threads);
  };
  return with_types(call, run);
}

Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads) {
  const Call call{params, student, teacher, mask, mask_stride};
  const auto run = [&](auto type, auto centered) {
    using T = decltype(type);
    return backward<T, decltype(centered)::value>(call, *static_cast<const T*>(grad_loss),
                                                  static_cast<const T*>(stats), grad_student, threads);
  };
  return with_types(call, run);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
