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

struct Pools {
  Pools(Carver& carver, std::int64_t cols)
      : sums(carver.take<double>(cols)),
        means(carver.take<double>(cols)),
        begins(carver.take<std::int64_t>(cols + 1)) {}
  double* sums;          // [pools], of s over each
  double* means;         // [pools]
  std::int64_t* begins;  // [pools + 1], first places, from 0; a pool ends where the next begins
};

template <typename T>
struct SoftRankScratch {
  SoftRankScratch(Carver& carver, std::int64_t cols)
      : sort(carver, cols), sorted(carver.take<T>(cols)), pools(carver, cols) {}
  SortScratch<T> sort;
  T* sorted;  // [C]
  Pools pools;
};

inline double sum_of(const double* terms, std::int64_t count) {  // [count]
  constexpr int lanes = kLanes<double>;
  Vector<double> sums[2] = {};
  std::int64_t k = 0;
  for (; k + 2 * lanes <= count; k += 2 * lanes) {
    sums[0] += load(terms + k);
    sums[1] += load(terms + k + lanes);
  }
  double sum = horizontal_sum<double>(sums[0] + sums[1]);
  for (; k < count; ++k) sum += terms[k];
  return sum;
}

// Whether the row spans at most strength C / 2: its means cannot be further apart, so all of it is
// one pool and need not be sorted.                                          // values: [C], padded
template <typename T>
bool spans_one_pool(const T* values, std::int64_t cols, double strength) {
  Vector<T> low = broadcast(values[0]), high = low;
  const auto widen_range = [&](Vector<T> x) __attribute__((always_inline)) {
    low = x < low ? x : low;
    high = x > high ? x : high;
  };
  std::int64_t j = 0;
  for (; j + kLanes<T> <= cols; j += kLanes<T>) widen_range(load(values + j));
  if (j < cols) widen_range(load_part(values + j, cols - j, values[0]));
  const double span = static_cast<double>(horizontal_maximum<T>(high)) +
                      static_cast<double>(horizontal_maximum<T>(-low));
  return span <= strength / 2 * static_cast<double>(cols) && span < -static_cast<double>(kMinusInfinity);
}

// The pooled order of a row that is one pool: as the elements lie.                   // order: [C]
inline void one_pool(std::int64_t cols, std::uint32_t* order) {
  for (std::int64_t k = 0; k < cols; ++k) order[k] = static_cast<std::uint32_t>(k);
  order[0] |= kBlockStart;
}

// Whether the pooled order is that of `one_pool`.
inline bool is_one_pool(const std::uint32_t* order, std::int64_t cols) {
  if (order[0] != kBlockStart) return false;
  std::uint32_t differs = 0;
  for (std::int64_t k = 1; k < cols; ++k) differs |= order[k] ^ static_cast<std::uint32_t>(k);
  return differs == 0;
}

// The soft ranks - (C + 1) / 2 of a row that is one pool, as the elements lie.
template <typename T>                                  // values: [C]; ranks: [C]
void one_pool_ranks(const T* values, std::int64_t cols, double strength, double* ranks) {
  // Differences from an element of the row, so that a common offset takes no digits.
  const double base = static_cast<double>(values[0]);
  for (std::int64_t k = 0; k < cols; ++k) ranks[k] = static_cast<double>(values[k]) - base;
  const double mean = sum_of(ranks, cols) / static_cast<double>(cols);
  for (std::int64_t k = 0; k < cols; ++k) ranks[k] = (ranks[k] - mean) / strength;
}

// Soft ranks - (C + 1) / 2 in the order of places, and the pooled order (r2kd/rank.h), of a row
// without NaN. Returns whether the places are the indices.
template <typename T>                                   // values: [C], padded; ranks, order: [C]
bool soft_ranks(const T* values, std::int64_t cols, double strength, const SoftRankScratch<T>& scratch,
                double* ranks, std::uint32_t* order) {
  if (spans_one_pool(values, cols, strength)) {
    one_pool(cols, order);
    one_pool_ranks(values, cols, strength, ranks);
    return true;
  }
  const T* sorted = scratch.sorted;
  const Pools& pools = scratch.pools;
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
  if (first == last) return false;

  // Differences from an element of the row, so that a common offset takes no digits.
  const double base = static_cast<double>(sorted[first + (last - first) / 2]);
  const double half_strength = strength / 2;
  std::int64_t count = 0;  // of pools that are written; the last one is in `sum`, `mean` and `begin`
  double sum = static_cast<double>(sorted[first]) - base, mean = sum;
  std::int64_t begin = first;
  for (std::int64_t k = first + 1; k < last; ++k) {
    const double s = static_cast<double>(sorted[k]) - base;
    // The middles of two neighbours lie half of their joint length apart.
    double length = static_cast<double>(k + 1 - begin);
    if (s - mean > half_strength * length) {
      pools.sums[count] = sum;
      pools.means[count] = mean;
      pools.begins[count++] = begin;
      sum = mean = s;
      begin = k;
      continue;
    }
    sum += s;
    mean = sum / length;
    while (count > 0) {
      length = static_cast<double>(k + 1 - pools.begins[count - 1]);
      if (mean - pools.means[count - 1] > half_strength * length) break;
      --count;
      sum += pools.sums[count];
      begin = pools.begins[count];
      mean = sum / length;
    }
  }
  pools.means[count] = mean;
  pools.begins[count++] = begin;
  pools.begins[count] = last;
  double* const middles = pools.sums;
  for (std::int64_t i = 0; i < count; ++i) {
    begin = pools.begins[i];
    mean = pools.means[i];
    const std::int64_t end = pools.begins[i + 1];
    const double middle = static_cast<double>(begin + end - cols) / 2;
    order[begin] |= kBlockStart;
    for (std::int64_t k = begin; k < end; ++k) {
      middles[k] = middle;
      ranks[k] = static_cast<double>(sorted[k]) - base - mean;
    }
  }
  // The divisions by themselves, a register at a time.
  for (std::int64_t k = first; k < last; ++k) ranks[k] = middles[k] + ranks[k] / strength;
  return false;
}

// out[order[k]] = (g_k - mean of g over the pool) / strength, where g(k, index) is the gradient
// with respect to the rank in place k.                                // order, out, scratch: [C]
template <typename T, typename Gradient>
R2KD_INLINE void pool_gradient(const std::uint32_t* order, std::int64_t cols, double strength,
                               const Gradient& g, double* scratch, T* out) {
  if (is_one_pool(order, cols)) {
    for (std::int64_t k = 0; k < cols; ++k) scratch[k] = g(k, k);
    const double mean = sum_of(scratch, cols) / static_cast<double>(cols);
    for (std::int64_t k = 0; k < cols; ++k) out[k] = static_cast<T>((scratch[k] - mean) / strength);
    return;
  }
  for (std::int64_t begin = 0; begin < cols;) {
    double sum = g(begin, order[begin] & kIndexMask);
    std::int64_t end = begin + 1;
    for (; end < cols && (order[end] & kBlockStart) == 0; ++end) sum += g(end, order[end] & kIndexMask);
    const double mean = sum / static_cast<double>(end - begin);
    const bool finite = (order[begin] & kInfinite) == 0;
    for (std::int64_t k = begin; k < end; ++k) {
      const std::int64_t index = order[k] & kIndexMask;
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
