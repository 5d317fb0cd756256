// Soft ranks on the CPU, forward and backward. Compiled once per instruction set; dispatch.cpp
// picks one. Rows are independent, so the bits do not depend on the number of threads.

#include <limits>

#include "pages.h"
#include "parallel.h"
#include "rank_entries.h"
#include "soft_ranks.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

template <typename T>
struct ForwardScratch {
  ForwardScratch(Carver& carver, std::int64_t cols)
      : values(carver.take<T>(padded<T>(cols))),
        ranks(carver.take<double>(cols)),
        soft(carver, cols) {}
  T* values;      // [C], padded
  double* ranks;  // [C]
  SoftRankScratch<T> soft;
};

template <typename T>
struct BackwardScratch {
  BackwardScratch(Carver& carver, std::int64_t cols)
      : grad(carver.take<T>(padded<T>(cols))),
        own(carver.take<T>(padded<T>(cols))),
        terms(carver.take<double>(cols)) {}
  T* grad;        // [C], padded
  T* own;         // [C], padded
  double* terms;  // [C]
};

template <typename T>
Status forward(const SoftRankParams& params, const ConstMatrix& x, T* ranks, std::uint32_t* order,
               int threads) {
  const std::int64_t cols = params.cols;
  advise_large_pages(ranks, params.rows * cols * std::int64_t{sizeof(T)});
  advise_large_pages(order, params.rows * cols * std::int64_t{sizeof(std::uint32_t)});
  const int parts = part_count(params.rows, cols * kSortCost, threads);
  Carver sizes(nullptr);
  ForwardScratch<T>(sizes, cols);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const ForwardScratch<T> scratch(carver, cols);
    const Range range = part_range(params.rows, parts, part);
    const double center = static_cast<double>(cols + 1) / 2;
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      T* out = ranks + i * cols;
      std::uint32_t* places = order + i * cols;
      if (load_row(x, i, cols, scratch.values)) {
        for (std::int64_t j = 0; j < cols; ++j) {
          out[j] = std::numeric_limits<T>::quiet_NaN();
          places[j] = kNaNRow;
        }
        continue;
      }
      const double* found = scratch.ranks;
      if (soft_ranks(scratch.values, cols, params.strength, scratch.soft, scratch.ranks, places)) {
        for (std::int64_t j = 0; j < cols; ++j) out[j] = static_cast<T>(found[j] + center);
        continue;
      }
      for (std::int64_t k = 0; k < cols; ++k) {
        out[places[k] & kIndexMask] = static_cast<T>(found[k] + center);
      }
    }
  };
  run_parts(parts, body);
  return Status::ok;
}

template <typename T>
Status backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                const std::uint32_t* order, void* grad_x, DType dtype, int threads) {
  const std::int64_t cols = params.cols;
  advise_large_pages(grad_x, params.rows * cols * dtype_bytes(dtype));
  const int parts = part_count(params.rows, cols * kSortCost, threads);
  Carver sizes(nullptr);
  BackwardScratch<T>(sizes, cols);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const BackwardScratch<T> scratch(carver, cols);
    const T* grad = scratch.grad;
    const Range range = part_range(params.rows, parts, part);
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const std::uint32_t* places = order + i * cols;
      T* out = gradient_target(grad_x, dtype, i * cols, scratch.own);
      if (places[0] == kNaNRow) {
        for (std::int64_t j = 0; j < cols; ++j) out[j] = std::numeric_limits<T>::quiet_NaN();
      } else {
        load_row(grad_ranks, i, cols, scratch.grad);
        const auto g = [&](std::int64_t, std::int64_t index) { return static_cast<double>(grad[index]); };
        pool_gradient(places, cols, params.strength, g, scratch.terms, out);
      }
      store_gradient(grad_x, dtype, i * cols, cols, out);
    }
  };
  run_parts(parts, body);
  return Status::ok;
}

}  // namespace

Status soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                         std::uint32_t* order, int threads) {
  if (x.dtype == DType::float64) return forward(params, x, static_cast<double*>(ranks), order, threads);
  return forward(params, x, static_cast<float*>(ranks), order, threads);
}

Status soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                          const std::uint32_t* order, void* grad_x, DType dtype, int threads) {
  if (dtype == DType::float64 || grad_ranks.dtype == DType::float64) {
    return backward<double>(params, grad_ranks, order, grad_x, dtype, threads);
  }
  return backward<float>(params, grad_ranks, order, grad_x, dtype, threads);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
