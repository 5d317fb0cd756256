// Backward, per row: p and q again, g_ij and sum_j p_ij g_ij into scratch, then the gradient.
#pragma once

#include <cstdint>
#include <cstring>

#include "correlation_call.h"
#include "exp.h"
#include "pages.h"
#include "parallel.h"
#include "rows.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {

// The gradient p (g - sum p g) of one row, written while p and g of the next row are computed into
// the same scratch: the arithmetic of one hides the memory traffic of the other. `advance` is ahead
// of the next row's stores, since it starts at the first column that a whole register may be
// streamed to.
template <typename T>
class DelayedGradient {
 public:
  DelayedGradient(const T* p, const T* g, std::int64_t cols) : p_(p), g_(g), cols_(cols) {}

  // p and g of a new row are complete.
  void take(GradientRow<T> target, T mean_g) {
    target_ = target;
    mean_g_ = mean_g;
    next_ = target.head() < cols_ ? target.head() : cols_;
    end_ = next_ + (cols_ - next_) / kLanes<T> * kLanes<T>;
    part(0, next_);
    part(end_, cols_ - end_);
  }

  // Writes one register, if there is one left.
  R2KD_INLINE void advance() {
    if (next_ >= end_) return;
    target_.store(next_, load(p_ + next_) * (load(g_ + next_) - mean_g_));
    next_ += kLanes<T>;
  }

  void finish() {
    while (next_ < end_) advance();
  }

 private:
  void part(std::int64_t j, std::int64_t count) {
    if (count == 0) return;
    const Vector<T> p = load_part(p_ + j, count, T(0)), g = load_part(g_ + j, count, T(0));
    target_.store_part(j, p * (g - mean_g_), count);
  }

  const T* p_;  // [C]
  const T* g_;  // [C]
  std::int64_t cols_, next_ = 0, end_ = 0;
  GradientRow<T> target_{nullptr, kOwnDType<T>, 0, false};
  T mean_g_ = 0;
};

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

  const bool converts = !in_place<T, stored>(call.student) || !in_place<T, stored>(call.teacher);
  DelayedGradient<T> delayed(p_row, g_row, cols);

  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    const std::int64_t offset = i * cols;
    if (!call.keeps(i)) {
      const std::int64_t bytes = dtype_bytes(call.student.dtype);
      std::memset(static_cast<char*>(grad_student) + offset * bytes, 0,
                  static_cast<std::size_t>(cols * bytes));
      continue;
    }
    const T* row = stats + i * kRowStats;
    const T z_origin = row[kStudentOrigin], p_scale = row[kStudentInvSum];
    const T y_origin = row[kTeacherOrigin], q_scale = row[kTeacherInvSum];
    const T row_a = row[kRowTeacherCoef] * scale, row_b = row[kRowStudentCoef] * scale;
    if (converts) delayed.finish();
    const auto z = row_of<T, stored>(call.student, i, cols, p_row);
    const auto y = row_of<T, stored>(call.teacher, i, cols, g_row);

    const auto entries = [&](const auto z_exp, const auto y_exp) __attribute__((always_inline)) {
      const auto step = [&](std::int64_t j, Vector<T> zj, Vector<T> yj, Vector<T>& sum,
                            auto read_col) __attribute__((always_inline)) {
        prefetch_after(z, j);
        prefetch_after(y, j);
        const Vector<T> p = z_exp(zj);
        const Vector<T> q = y_exp(yj);
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
        delayed.advance();
        store(p_row + j, p);
        store(g_row + j, g);
        sum += p * g;
      };
      const auto whole = [](const T* source) __attribute__((always_inline)) { return load(source); };
      double dot = 0;  // sum_j p_ij g_ij
      for (std::int64_t block = 0; block < cols; block += kBlockCols<T>) {
        const std::int64_t end = block + kBlockCols<T> < cols ? block + kBlockCols<T> : cols;
        Vector<T> sum{};
        std::int64_t j = block;
        for (; j + lanes <= end; j += lanes) step(j, z.load(j), y.load(j), sum, whole);
        if (j < end) {
          // p = 0 in the padding, and so is its share of the sum.
          step(j, z.load_part(j, end - j, fill), y.load_part(j, end - j, fill), sum,
               [=](const T* source) { return load_part(source, end - j, T(0)); });
        }
        dot += static_cast<double>(horizontal_sum<T>(sum));
      }
      return dot;
    };
    const bool on_grid = !kSubtracts<centered> && scaled_exp.takes(z_origin) && scaled_exp.takes(y_origin);
    const double dot = on_grid ? entries(scaled_exp.template of_row<false>(z_origin, p_scale),
                                         scaled_exp.template of_row<false>(y_origin, q_scale))
                               : entries(scaled_exp.template of_row<true>(z_origin, p_scale),
                                         scaled_exp.template of_row<true>(y_origin, q_scale));
    // Over one class p is 1 and sum p g is g; the p at hand may be off by a rounding.
    const T mean_g = cols == 1 ? g_row[0] : static_cast<T>(dot);
    delayed.take(GradientRow<T>(grad_student, call.student.dtype, offset, bypass), mean_g);
  }
  delayed.finish();
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

}  // namespace R2KD_ISA
}  // namespace r2kd
