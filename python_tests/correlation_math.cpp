// A library for test_correlation_math.py: the mathematics that the CUDA kernels take from headers
// without CUDA, put together as the kernels do, and their plans.
#include <algorithm>
#include <vector>

#include "cuda/plan.h"
#include "r2kd/correlation_moments.h"

namespace {

using namespace r2kd;

template <typename T>
struct Call {
  const T* student;  // [B, C]
  const T* teacher;  // [B, C]
  int rows, cols, threads, parts;
  double temperature, inter_weight, intra_weight, eps;
  bool centered;
  T* stats;  // [6 B + 5 C]
  T* grad;   // [B, C]

  ExpScale<T> scale() const { return exp_scale<T>(temperature, kLargestPower<T>); }
  T p(int i, int j) const {
    const T* row = stats + i * kRowStats;
    return scaled_exp(student[i * cols + j] - row[kStudentOrigin], scale()) * row[kStudentInvSum];
  }
  T q(int i, int j) const {
    const T* row = stats + i * kRowStats;
    return scaled_exp(teacher[i * cols + j] - row[kTeacherOrigin], scale()) * row[kTeacherInvSum];
  }
};

// As rows.cu: threads take chunks in turn, then their moments are merged in a tree. Returns r.
template <typename T>
double forward_row(const Call<T>& call, int i) {
  constexpr int V = 4;
  std::vector<RowMoments<T>> moments(call.threads, RowMoments<T>::none());
  for (int base = 0; base < call.cols; base += call.threads * V) {
    for (int thread = 0; thread < call.threads; ++thread) {
      T z[V] = {}, y[V] = {};
      int count = 0;
      for (int j = base + thread; count < V && j < call.cols; j += call.threads) {
        z[count] = call.student[i * call.cols + j];
        y[count++] = call.teacher[i * call.cols + j];
      }
      if (count > 0) moments[thread].add(z, y, count, call.centered, call.scale());
    }
  }
  for (int distance = call.threads / 2; distance > 0; distance /= 2) {
    for (int thread = 0; thread < distance; ++thread) {
      moments[thread].merge(moments[thread + distance], call.centered, call.scale());
    }
  }
  const RowMoments<T>& row = moments[0];
  const T p_scale = T(1) / row.sum_e(call.centered), q_scale = T(1) / row.sum_h(call.centered);
  return store_row_statistics(row.z_max, p_scale, row.y_max, q_scale, row.ee * p_scale * p_scale,
                              row.hh * q_scale * q_scale, row.eh * p_scale * q_scale,
                              static_cast<T>(call.inter_weight / call.rows),
                              static_cast<T>(call.eps), call.stats + i * kRowStats);
}

// As columns.cu and finish.cu: parts of the rows, and blocks within a part. Returns r.
template <typename T>
double forward_column(const Call<T>& call, int j) {
  ColumnSums sums{};
  const int part_rows = (call.rows + call.parts - 1) / call.parts;
  for (int begin = 0; begin < call.rows; begin += part_rows) {
    const int end = std::min(begin + part_rows, call.rows);
    ColumnTotal<T> total{};
    T rows = 0;
    for (int first = begin; first < end; first += cuda::kColumnBlockRows) {
      ColumnBlock<T> block{};
      T block_rows = 0;
      for (int i = first; i < std::min(first + cuda::kColumnBlockRows, end); ++i) {
        if (call.centered) {
          const T inverse = inverse_of_count(block_rows + T(1));
          block.add_centered(call.p(i, j), T(1), call.q(i, j), T(1), inverse, block_rows * inverse);
        } else {
          block.add(call.p(i, j), call.q(i, j));
        }
        block_rows += T(1);
      }
      total.merge(block, rows, block_rows, call.centered);
      rows += block_rows;
    }
    const ColumnBlock<T> part = total.rounded();
    const auto wide = [](T x) { return static_cast<double>(x); };
    sums.merge({wide(rows), wide(part.pp), wide(part.qq), wide(part.pq),
                wide(part.mean_p) + wide(part.rest_p), wide(part.mean_q) + wide(part.rest_q)},
               call.centered);
  }
  return store_column_statistics(sums, call.intra_weight / call.cols, call.eps, call.centered,
                                 call.cols, call.stats + kRowStats * call.rows + j);
}

// As backward.cu.
template <typename T>
void backward_row(const Call<T>& call, int i) {
  const T* row = call.stats + i * kRowStats;
  const T* cols = call.stats + kRowStats * call.rows;
  const bool intra = call.intra_weight != 0;
  std::vector<T> g(call.cols);
  T sum = 0, rest = 0;
  for (int j = 0; j < call.cols; ++j) {
    ColumnSlope<T> col{};
    if (intra) col = {cols[j], cols[call.cols + j], 0, 0, 0};
    if (intra && call.centered) {
      col.mean_p = cols[kColStudentMean * call.cols + j];
      col.mean_q = cols[kColTeacherMean * call.cols + j];
      col.rest = cols[kColMeanRest * call.cols + j];
    }
    g[j] = slope(call.p(i, j), call.q(i, j), row[kRowTeacherCoef], row[kRowStudentCoef],
                 static_cast<T>(1.0 / call.cols), call.centered, intra, col);
    add_to_split(sum, rest, call.p(i, j) * g[j]);
  }
  const T inverse_temperature = static_cast<T>(1 / call.temperature);
  for (int j = 0; j < call.cols; ++j) {
    call.grad[i * call.cols + j] = call.p(i, j) * (g[j] - (sum + rest)) * inverse_temperature;
  }
}

template <typename T>
double correlation(const Call<T>& call) {
  long double rows = 0, cols = 0;  // the kernels add these up in a tree
  for (int i = 0; i < call.rows; ++i) rows += 1 - forward_row(call, i);
  for (int j = 0; j < call.cols && call.intra_weight != 0; ++j) cols += 1 - forward_column(call, j);
  for (int i = 0; i < call.rows; ++i) backward_row(call, i);
  const long double row_term = call.inter_weight != 0 ? call.inter_weight * rows / call.rows : 0;
  return static_cast<double>(row_term + call.intra_weight * cols / call.cols);
}

}  // namespace

extern "C" {

void scaled_exp_float(const float* d, float* out, int count, double temperature) {
  const auto scale = exp_scale<float>(temperature, kLargestPower<float>);
  for (int i = 0; i < count; ++i) out[i] = scaled_exp(d[i], scale);
}

void scaled_exp_double(const double* d, double* out, int count, double temperature) {
  const auto scale = exp_scale<double>(temperature, kLargestPower<double>);
  for (int i = 0; i < count; ++i) out[i] = scaled_exp(d[i], scale);
}

double correlation_float(const float* student, const float* teacher, int rows, int cols,
                         int threads, int parts, double temperature, double inter_weight,
                         double intra_weight, double eps, int centered, float* stats, float* grad) {
  return correlation<float>({student, teacher, rows, cols, threads, parts, temperature, inter_weight,
                             intra_weight, eps, centered != 0, stats, grad});
}

double correlation_double(const double* student, const double* teacher, int rows, int cols,
                          int threads, int parts, double temperature, double inter_weight,
                          double intra_weight, double eps, int centered, double* stats,
                          double* grad) {
  return correlation<double>({student, teacher, rows, cols, threads, parts, temperature,
                              inter_weight, intra_weight, eps, centered != 0, stats, grad});
}

// out: [17], in the order of `ForwardPlan` in the test.
void plan_forward(std::int64_t rows, std::int64_t cols, int in_double, int chunk, int centered,
                  int intra, int weighed, int shared_bytes, int most_blocks, std::int64_t* out) {
  const CorrelationParams params{rows, cols, 1, 1, intra ? 1.0 : 0.0, 0, centered != 0};
  const auto plan = cuda::plan_forward(params, in_double != 0, chunk, weighed != 0,
                                       {shared_bytes, most_blocks});
  const std::int64_t numbers[] = {
      plan.tiles,         plan.tile_rows,   plan.slices,    plan.parts,       plan.part_rows,
      plan.row_sums,      plan.row_threads, plan.cluster,   plan.finish_slices, plan.col_sums,
      plan.shared_bytes,  plan.launches,    plan.at_row_sums, plan.at_counts, plan.at_col_sums,
      plan.at_partials,   plan.scratch_bytes};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

// out: [7], in the order of `BackwardPlan` in the test.
void plan_backward(std::int64_t rows, std::int64_t cols, int in_double, int chunk, int shared_bytes,
                   int most_blocks, std::int64_t* out) {
  const CorrelationParams params{rows, cols, 1, 1, 1, 0, false};
  const auto plan =
      cuda::plan_backward(params, in_double != 0, chunk, {shared_bytes, most_blocks});
  const std::int64_t numbers[] = {plan.threads, plan.row_threads, plan.cluster, plan.resident,
                                  plan.span,    plan.blocks,      plan.shared_bytes};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

}  // extern "C"
