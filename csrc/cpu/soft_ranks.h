// The soft ranks of one row and their gradient, by isotonic regression of the sorted row.
//
// With s the sorted row and places k = 1, ..., C, the projection of s / strength onto the
// permutahedron is s_k / strength - v_k, where v is the isotonic regression of s_k / strength - k.
// Pool-adjacent-violators cuts the places into pools; in the pool of places b, ..., e
//
//   rank_k = (b + e) / 2 + (s_k - mean of s over the pool) / strength
//
// and d rank_k / d s_l = (1[k = l] - 1 / (e - b + 1)) / strength.
#pragma once

#include "r2kd/rank.h"
#include "sort.h"

namespace r2kd {
namespace R2KD_ISA {

struct Pool {
  double sum, mean;    // of s over the pool
  std::int64_t begin;  // first place, from 0; the pool ends where the next begins
};

template <typename T>
struct SoftRankScratch {
  SoftRankScratch(Carver& carver, std::int64_t cols)
      : sort(carver, cols), sorted(carver.take<T>(cols)), pools(carver.take<Pool>(cols)) {}
  SortScratch<T> sort;
  T* sorted;    // [C]
  Pool* pools;  // [C]
};

// Soft ranks - (C + 1) / 2 in the order of places, and the pooled order (r2kd/rank.h), of a row
// without NaN.                                         // values: [C], padded; ranks, order: [C]
template <typename T>
void soft_ranks(const T* values, std::int64_t cols, double strength, const SoftRankScratch<T>& scratch,
                double* ranks, std::uint32_t* order) {
  const T* sorted = scratch.sorted;
  Pool* pools = scratch.pools;
  sort_row(values, cols, scratch.sort, scratch.sorted, order);
  // The infinite elements at both ends: one rank for all that are equal, each a pool of its own.
  std::int64_t first = 0, last = cols;
  constexpr T lowest = static_cast<T>(kMinusInfinity);
  while (first < cols && sorted[first] == lowest) ++first;
  while (last > first && sorted[last - 1] == -lowest) --last;
  const auto infinite = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      ranks[k] = static_cast<double>(begin + end - cols) / 2;
      order[k] |= kBlockStart | kInfinite;
    }
  };
  infinite(0, first);
  infinite(last, cols);
  if (first == last) return;

  // Differences from an element of the row, so that a common offset takes no digits.
  const double base = static_cast<double>(sorted[first + (last - first) / 2]);
  const double half_strength = strength / 2;
  std::int64_t count = 0;
  for (std::int64_t k = first; k < last; ++k) {
    const double s = static_cast<double>(sorted[k]) - base;
    Pool pool{s, s, k};
    // The middles of two neighbours lie half of their joint length apart.
    while (count > 0) {
      const Pool& previous = pools[count - 1];
      const auto length = static_cast<double>(k + 1 - previous.begin);
      if (pool.mean - previous.mean > half_strength * length) break;
      pool.sum += previous.sum;
      pool.begin = previous.begin;
      pool.mean = pool.sum / length;
      --count;
    }
    pools[count++] = pool;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t begin = pools[i].begin, end = i + 1 < count ? pools[i + 1].begin : last;
    const double middle = static_cast<double>(begin + end - cols) / 2;
    const double mean = pools[i].mean;
    order[begin] |= kBlockStart;
    if (end - begin == 1) {
      ranks[begin] = middle;
      continue;
    }
    for (std::int64_t k = begin; k < end; ++k) {
      ranks[k] = middle + (static_cast<double>(sorted[k]) - base - mean) / strength;
    }
  }
}

// out[order[k]] = (g_k - mean of g over the pool) / strength, where g(k, index) is the gradient
// with respect to the rank in place k.                                         // order, out: [C]
template <typename T, typename Gradient>
R2KD_INLINE void pool_gradient(const std::uint32_t* order, std::int64_t cols, double strength,
                               const Gradient& g, T* out) {
  for (std::int64_t begin = 0; begin < cols;) {
    double sum = g(begin, order[begin] & kIndexMask);
    std::int64_t end = begin + 1;
    for (; end < cols && (order[end] & kBlockStart) == 0; ++end) sum += g(end, order[end] & kIndexMask);
    const double mean = sum / static_cast<double>(end - begin);
    const bool finite = (order[begin] & kInfinite) == 0;
    for (std::int64_t k = begin; k < end; ++k) {
      const std::uint32_t index = order[k] & kIndexMask;
      out[index] = finite ? static_cast<T>((g(k, index) - mean) / strength) : T(0);
    }
    begin = end;
  }
}

// Where a row of gradients is computed: in place, or in `scratch` if the dtype is another one.
template <typename T>
T* gradient_target(void* grad, DType dtype, std::int64_t offset, T* scratch) {
  return dtype == kOwnDType<T> ? static_cast<T*>(grad) + offset : scratch;
}

// Writes a row from `gradient_target` on, where it is not in place.        // row: [C], padded
template <typename T>
void store_gradient(void* grad, DType dtype, std::int64_t offset, std::int64_t cols, const T* row) {
  if (dtype == kOwnDType<T>) return;
  GradientRow<T> target(grad, dtype, offset, false);
  std::int64_t j = 0;
  for (; j + kLanes<T> <= cols; j += kLanes<T>) target.store(j, load(row + j));
  if (j < cols) target.store_part(j, load_part(row + j, cols - j, T(0)), cols - j);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
