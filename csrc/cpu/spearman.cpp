// Spearman's correlation of rows on the CPU, of hard ranks (value only) and of soft ranks (with
// its gradient). Compiled once per instruction set; dispatch.cpp picks one. Rows are independent,
// so the bits do not depend on the number of threads. Backward sorts again: nothing is kept.

#include <limits>

#include "pages.h"
#include "parallel.h"
#include "r2kd/correlation_math.h"
#include "rank_entries.h"
#include "soft_ranks.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

// The matrices and scalars of one call.
struct Call {
  const SpearmanParams& params;
  const ConstMatrix& x;      // [B, C]
  const ConstMatrix& y;      // [B, C]
  const std::uint8_t* mask;  // [B] or null
  std::int64_t mask_stride;

  bool keeps(std::int64_t row) const { return mask == nullptr || mask[row * mask_stride] != 0; }
  std::int64_t kept() const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < params.rows; ++i) count += keeps(i);
    return count;
  }
  // eps where ranks are not divided by C (C + 1) / 2.
  double eps() const {
    const double cols = static_cast<double>(params.cols);
    const double divisor = cols * (cols + 1) / 2;
    return params.eps * divisor * divisor;
  }
};

template <typename T>
struct HardScratch {
  HardScratch(Carver& carver, std::int64_t cols)
      : x(carver.take<T>(padded<T>(cols))), y(carver.take<T>(padded<T>(cols))), sort(carver, cols) {
    if (cols <= kCountCols<T>) {
      places = carver.take<Count<T>>(padded<T>(cols));
    } else {
      sorted = carver.take<T>(cols);
      order = carver.take<std::uint32_t>(cols);
      ranks = carver.take<std::uint32_t>(cols);
    }
  }
  T* x;  // [C], padded
  T* y;  // [C], padded
  SortScratch<T> sort;
  Count<T>* places = nullptr;      // [C], padded, of y
  T* sorted = nullptr;             // [C]
  std::uint32_t* order = nullptr;  // [C]
  std::uint32_t* ranks = nullptr;  // [C], of y
};

// Sum over the row of (rank of x - rank of y)^2, without a rounding below 2^53.
template <typename T>
double squared_distance(const HardScratch<T>& scratch, std::int64_t cols) {
  if (cols <= kCountCols<T>) {
    const Count<T>* of_x = scratch.sort.places;
    const Count<T>* of_y = scratch.places;
    count_places(scratch.x, cols, scratch.sort.places);
    count_places(scratch.y, cols, scratch.places);
    Count<T> sum = 0;  // at most 512^3 / 3
    for (std::int64_t j = 0; j < cols; ++j) sum += (of_x[j] - of_y[j]) * (of_x[j] - of_y[j]);
    return static_cast<double>(sum);
  }
  sort_row(scratch.y, cols, scratch.sort, scratch.sorted, scratch.order);
  for (std::int64_t k = 0; k < cols; ++k) scratch.ranks[scratch.order[k]] = static_cast<std::uint32_t>(k);
  sort_row(scratch.x, cols, scratch.sort, scratch.sorted, scratch.order);
  constexpr std::int64_t kBlock = 4;  // of at most 2^60 each
  double total = 0;
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    const std::int64_t end = begin + kBlock < cols ? begin + kBlock : cols;
    std::int64_t sum = 0;
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t d = k - static_cast<std::int64_t>(scratch.ranks[scratch.order[k]]);
      sum += d * d;
    }
    total += static_cast<double>(sum);
  }
  return total;
}

template <typename T>
struct SoftScratch {
  SoftScratch(Carver& carver, std::int64_t cols)
      : values(carver.take<T>(padded<T>(cols))),
        x_ranks(carver.take<double>(cols)),
        y_ranks(carver.take<double>(cols)),
        y_by_index(carver.take<double>(cols)),
        order(carver.take<std::uint32_t>(cols)),
        gradient(carver.take<T>(padded<T>(cols))),
        soft(carver, cols) {}
  T* values;             // [C], padded: the row being ranked, then a row of gradients
  double* x_ranks;       // [C], in the order of x
  double* y_ranks;       // [C], in the order of y, then free
  double* y_by_index;    // [C], as the row lies
  std::uint32_t* order;  // [C], the pooled order: of y, then of x
  T* gradient;           // [C], padded
  SoftRankScratch<T> soft;
};

// Of two vectors [C] whose means are 0.
inline Correlation<double> in_place_correlation(const double* a, const double* b, std::int64_t cols,
                                                double eps) {
  constexpr int lanes = kLanes<double>;
  Vector<double> xx{}, yy{}, xy{};
  std::int64_t j = 0;
  for (; j + lanes <= cols; j += lanes) {
    const Vector<double> x = load(a + j), y = load(b + j);
    xx += x * x;
    yy += y * y;
    xy += x * y;
  }
  double sums[3] = {horizontal_sum<double>(xx), horizontal_sum<double>(yy), horizontal_sum<double>(xy)};
  for (; j < cols; ++j) {
    sums[0] += a[j] * a[j];
    sums[1] += b[j] * b[j];
    sums[2] += a[j] * b[j];
  }
  return correlation_from_moments(sums[0], sums[1], sums[2], eps);
}

// Ranks both rows (less (C + 1) / 2) and returns rho with its coefficients; NaN with a NaN in them.
template <typename T>
Correlation<double> soft_row(const Call& call, std::int64_t row, const SoftScratch<T>& scratch) {
  const std::int64_t cols = call.params.cols;
  const double strength = call.params.strength;
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  if (load_row(call.y, row, cols, scratch.values)) return {nan, nan, nan};
  const bool y_in_place =
      soft_ranks(scratch.values, cols, strength, scratch.soft, scratch.y_ranks, scratch.order);
  for (std::int64_t k = 0; k < cols; ++k) {
    const std::int64_t index = y_in_place ? k : scratch.order[k] & kIndexMask;
    scratch.y_by_index[index] = scratch.y_ranks[k];
  }
  if (load_row(call.x, row, cols, scratch.values)) return {nan, nan, nan};
  if (soft_ranks(scratch.values, cols, strength, scratch.soft, scratch.x_ranks, scratch.order)) {
    return in_place_correlation(scratch.x_ranks, scratch.y_by_index, cols, call.eps());
  }
  constexpr std::int64_t kBlock = 1024;
  double xx = 0, yy = 0, xy = 0;
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    const std::int64_t end = begin + kBlock < cols ? begin + kBlock : cols;
    double block_xx = 0, block_yy = 0, block_xy = 0;
    for (std::int64_t k = begin; k < end; ++k) {
      const double a = scratch.x_ranks[k], b = scratch.y_by_index[scratch.order[k] & kIndexMask];
      block_xx += a * a;
      block_yy += b * b;
      block_xy += a * b;
    }
    xx += block_xx;
    yy += block_yy;
    xy += block_xy;
  }
  return correlation_from_moments(xx, yy, xy, call.eps());
}

// body(rows of a part, scratch of that part) on every part.
template <typename Scratch, typename Body>
Status over_rows(const Call& call, int threads, const Body& rows_body) {
  const int parts = part_count(call.params.rows, call.params.cols * kSortCost, threads);
  Carver sizes(nullptr);
  Scratch(sizes, call.params.cols);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const Scratch scratch(carver, call.params.cols);
    rows_body(part_range(call.params.rows, parts, part), scratch);
  };
  run_parts(parts, body);
  return Status::ok;
}

// Ranks in T, rho in R.
template <typename T, typename R>
Status soft_forward(const Call& call, R* rho, int threads) {
  return over_rows<SoftScratch<T>>(call, threads, [&](Range rows, const SoftScratch<T>& scratch) {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      rho[i] = call.keeps(i) ? static_cast<R>(soft_row(call, i, scratch).r) : R(0);
    }
  });
}

template <typename T, typename R>
Status hard_forward(const Call& call, R* rho, int threads) {
  // Both rank vectors are permutations of 1, ..., C: |a|^2 = |b|^2 = C (C^2 - 1) / 12, and
  // sum(a b) = |a|^2 - |a - b|^2 / 2.
  const std::int64_t cols = call.params.cols;
  const double n = static_cast<double>(cols);
  const double square = n * (n * n - 1) / 12;
  const double norms = square + call.eps();
  return over_rows<HardScratch<T>>(call, threads, [&](Range rows, const HardScratch<T>& scratch) {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      if (!call.keeps(i)) {
        rho[i] = R(0);
        continue;
      }
      const bool x_nan = load_row(call.x, i, cols, scratch.x);
      const bool y_nan = load_row(call.y, i, cols, scratch.y);
      rho[i] = x_nan || y_nan
                   ? std::numeric_limits<R>::quiet_NaN()
                   : static_cast<R>((square - squared_distance(scratch, cols) / 2) / norms);
    }
  });
}

template <typename T, typename R>
Status forward(const Call& call, R* rho, int threads) {
  return call.params.soft ? soft_forward<T>(call, rho, threads) : hard_forward<T>(call, rho, threads);
}

// *loss += weight (1 - mean of rho over the kept rows).
template <typename T>
Status add_loss(const Call& call, double weight, T* loss, int threads) {
  const std::int64_t rows = call.params.rows;
  Workspace workspace;
  if (!workspace.allocate(1, rows * std::int64_t{sizeof(double)})) return Status::out_of_memory;
  double* rho = reinterpret_cast<double*>(workspace.part(0));  // [B]
  const Status status = forward<T>(call, rho, threads);
  if (status != Status::ok) return status;
  double sum = 0;
  for (std::int64_t i = 0; i < rows; ++i) sum += rho[i];
  const std::int64_t kept = call.kept();
  if (kept > 0) *loss = static_cast<T>(static_cast<double>(*loss) + weight * (1 - sum / static_cast<double>(kept)));
  return Status::ok;
}

// The gradient of grad * rho of a kept row.                                           // out: [C]
template <typename T>
void row_gradient(const Call& call, std::int64_t row, double grad, const SoftScratch<T>& scratch, T* out) {
  const std::int64_t cols = call.params.cols;
  const Correlation<double> c = soft_row(call, row, scratch);
  if (c.r != c.r) {
    // As everywhere, infinite elements of a row of numbers have no gradient.
    const bool x_nan = load_row(call.x, row, cols, scratch.values);
    for (std::int64_t j = 0; j < cols; ++j) {
      const bool infinite = scratch.values[j] - scratch.values[j] != T(0);
      out[j] = infinite && !x_nan ? T(0) : std::numeric_limits<T>::quiet_NaN();
    }
    return;
  }
  const double alpha = grad * c.alpha, beta = grad * c.beta;
  const double *of_x = scratch.x_ranks, *of_y = scratch.y_by_index;
  const auto g = [&](std::int64_t k, std::int64_t index) { return alpha * of_y[index] - beta * of_x[k]; };
  pool_gradient(scratch.order, cols, call.params.strength, g, scratch.y_ranks, out);
}

template <typename T>
Status backward(const Call& call, const T* grad_rho, std::int64_t grad_stride, void* grad_x, int threads) {
  const std::int64_t cols = call.params.cols;
  const DType dtype = call.x.dtype;
  advise_large_pages(grad_x, call.params.rows * cols * dtype_bytes(dtype));
  return over_rows<SoftScratch<T>>(call, threads, [&](Range rows, const SoftScratch<T>& scratch) {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      T* out = gradient_target(grad_x, dtype, i * cols, scratch.values);
      if (call.keeps(i)) {
        row_gradient(call, i, static_cast<double>(grad_rho[i * grad_stride]), scratch, out);
      } else {
        for (std::int64_t j = 0; j < cols; ++j) out[j] = T(0);
      }
      store_gradient(grad_x, dtype, i * cols, cols, out);
    }
  });
}

template <typename T>
Status add_loss_gradient(const Call& call, double weight, const T* grad_loss, void* grad_x, int threads) {
  const std::int64_t cols = call.params.cols;
  const double grad_rho = -weight * static_cast<double>(*grad_loss) / static_cast<double>(call.kept());
  const ConstMatrix before{grad_x, cols, 1, call.x.dtype};  // [B, C]
  return over_rows<SoftScratch<T>>(call, threads, [&](Range rows, const SoftScratch<T>& scratch) {
    for (std::int64_t i = rows.begin; i < rows.end; ++i) {
      if (!call.keeps(i)) continue;
      row_gradient(call, i, grad_rho, scratch, scratch.gradient);
      load_row(before, i, cols, scratch.values);
      GradientRow<T> target(grad_x, call.x.dtype, i * cols, false);
      std::int64_t j = 0;
      for (; j + kLanes<T> <= cols; j += kLanes<T>) {
        target.store(j, load(scratch.values + j) + load(scratch.gradient + j));
      }
      if (j < cols) target.store_part(j, load(scratch.values + j) + load(scratch.gradient + j), cols - j);
    }
  });
}

bool in_double(const Call& call) {
  return call.x.dtype == DType::float64 || call.y.dtype == DType::float64;
}

}  // namespace

Status spearman_forward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                        const std::uint8_t* mask, std::int64_t mask_stride, void* rho, int threads) {
  const Call call{params, x, y, mask, mask_stride};
  if (in_double(call)) return forward<double>(call, static_cast<double*>(rho), threads);
  return forward<float>(call, static_cast<float*>(rho), threads);
}

Status rank_loss(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                 const std::uint8_t* mask, std::int64_t mask_stride, double weight, void* loss,
                 int threads) {
  if (params.rows == 0) return Status::ok;
  const Call call{params, x, y, mask, mask_stride};
  if (in_double(call)) return add_loss(call, weight, static_cast<double*>(loss), threads);
  return add_loss(call, weight, static_cast<float*>(loss), threads);
}

Status rank_loss_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                          const std::uint8_t* mask, std::int64_t mask_stride, double weight,
                          const void* grad_loss, void* grad_x, int threads) {
  if (params.rows == 0) return Status::ok;
  const Call call{params, x, y, mask, mask_stride};
  if (in_double(call)) {
    return add_loss_gradient(call, weight, static_cast<const double*>(grad_loss), grad_x, threads);
  }
  return add_loss_gradient(call, weight, static_cast<const float*>(grad_loss), grad_x, threads);
}

Status spearman_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                         const std::uint8_t* mask, std::int64_t mask_stride, const void* grad_rho,
                         std::int64_t grad_stride, void* grad_x, int threads) {
  const Call call{params, x, y, mask, mask_stride};
  if (in_double(call)) {
    return backward(call, static_cast<const double*>(grad_rho), grad_stride, grad_x, threads);
  }
  return backward(call, static_cast<const float*>(grad_rho), grad_stride, grad_x, threads);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
