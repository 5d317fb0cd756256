// The mathematics of ranks that the CUDA kernels are made of: keys whose order is that of the
// elements, merging, the pools of the isotonic regression, and ranks from them. Nothing here knows
// of threads, so that a machine without a GPU can test it. docs/rank.md has the formulas.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "r2kd/rank.h"
#include "r2kd/shared.h"

namespace r2kd {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

// --- what is sorted ----------------------------------------------------------------------------

// The bits of x as an unsigned integer of the same order; -0 and 0 are one number. Not for NaN.
R2KD_SHARED std::uint32_t ordered_bits(float x) {
  x += 0.0f;
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
R2KD_SHARED std::uint64_t ordered_bits(double x) {
  x += 0.0;
  std::uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits >> 63 ? ~bits : bits | (std::uint64_t{1} << 63);
}
R2KD_SHARED float value_of_bits(std::uint32_t bits) {
  bits = bits >> 31 ? bits & 0x7fffffffu : ~bits;
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
R2KD_SHARED double value_of_bits(std::uint64_t bits) {
  bits = bits >> 63 ? bits & ~(std::uint64_t{1} << 63) : ~bits;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// An element and its index. No two of a row are equal, so that every sort of them is stable.
template <typename T>
struct SortEntry;

template <>
struct SortEntry<float> {
  std::uint64_t key;

  R2KD_SHARED static SortEntry of(float x, std::uint32_t index) {
    return {(std::uint64_t{ordered_bits(x)} << 32) | index};
  }
  // Comes after every element.
  R2KD_SHARED static SortEntry last() { return {~std::uint64_t{0}}; }
  R2KD_SHARED bool before(const SortEntry& other) const { return key < other.key; }
  R2KD_SHARED float value() const { return value_of_bits(static_cast<std::uint32_t>(key >> 32)); }
  R2KD_SHARED std::uint32_t index() const { return static_cast<std::uint32_t>(key); }
};

template <>
struct SortEntry<double> {
  std::uint64_t key;
  std::uint64_t place;

  R2KD_SHARED static SortEntry of(double x, std::uint32_t index) {
    return {ordered_bits(x), index};
  }
  R2KD_SHARED static SortEntry last() { return {~std::uint64_t{0}, ~std::uint64_t{0}}; }
  R2KD_SHARED bool before(const SortEntry& other) const {
    return key < other.key || (key == other.key && place < other.place);
  }
  R2KD_SHARED double value() const { return value_of_bits(key); }
  R2KD_SHARED std::uint32_t index() const { return static_cast<std::uint32_t>(place); }
};

// How many of the first `count` entries of a and b, merged, come from a. // a: [a_count], b: [b_count]
template <typename Entry>
R2KD_SHARED std::int64_t merge_split(const Entry* a, std::int64_t a_count, const Entry* b,
                                     std::int64_t b_count, std::int64_t count) {
  std::int64_t low = count > b_count ? count - b_count : 0;
  std::int64_t high = count < a_count ? count : a_count;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (a[middle].before(b[count - 1 - middle])) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Writes places begin, ..., end - 1 of what merging pairs of runs gives: `from` holds sorted runs of
// `run` entries, the last one possibly shorter, and no pair ends between begin and end - 1.
template <typename Entry>
R2KD_SHARED void merge_runs(const Entry* from, std::int64_t cols, std::int64_t run,
                            std::int64_t begin, std::int64_t end, Entry* to) {  // [C] both
  const std::int64_t pair = begin / (2 * run) * (2 * run);
  const std::int64_t left = cols - pair;
  const std::int64_t a_count = left < run ? left : run;
  const std::int64_t b_count = left - a_count < run ? left - a_count : run;
  const Entry* a = from + pair;
  const Entry* b = a + a_count;
  std::int64_t i = merge_split(a, a_count, b, b_count, begin - pair);
  std::int64_t j = begin - pair - i;
  for (std::int64_t k = begin; k < end; ++k) {
    const bool from_a = j >= b_count || (i < a_count && a[i].before(b[j]));
    to[k] = from_a ? a[i++] : b[j++];
  }
}

// --- hard ranks --------------------------------------------------------------------------------

// eps where ranks are not divided by C (C + 1) / 2.
R2KD_SHARED double eps_of_ranks(double eps, double cols) {
  const double divisor = cols * (cols + 1) / 2;
  return eps * divisor * divisor;
}

// rho of two permutations of 1, ..., C from the sum of their squared differences.
R2KD_SHARED double rho_of_distance(double distance, double cols, double eps) {
  const double square = cols * (cols * cols - 1) / 12;
  return (square - distance / 2) / (square + eps_of_ranks(eps, cols));
}

// --- soft ranks --------------------------------------------------------------------------------

// A sorted row without NaN, and which of its places hold finite numbers.
template <typename T>
struct SortedRow {
  const SortEntry<T>* entries;  // [C]
  int cols;
  int first, last;  // finite: first, ..., last - 1
  double base;      // an element of the row, from which all are counted: a common offset then takes
                    // no digits

  R2KD_SHARED SortedRow(const SortEntry<T>* sorted, int count)
      : entries(sorted), cols(count), first(0), last(count), base(0) {
    first = places_below(-kInfinity<T>, true);
    last = places_below(kInfinity<T>, false);
    if (first < last) base = static_cast<double>(entries[first + (last - first) / 2].value());
  }

  R2KD_SHARED double value(int k) const {
    return static_cast<double>(entries[k].value()) - base;
  }

 private:
  // Number of elements below x, or with `equal` up to x.
  R2KD_SHARED int places_below(T x, bool equal) const {
    int low = 0, high = cols;
    while (low < high) {
      const int middle = low + (high - low) / 2;
      const T value = entries[middle].value();
      if (value < x || (equal && value == x)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
};

// Pool-adjacent-violators over the finite places: neighbouring pools whose means are no further
// apart than half of strength times their joint length become one. Writes the sum of `row.value`
// over each pool and the place where it begins; returns their number. At most 2 C steps.
template <typename T>
R2KD_SHARED int find_pools(const SortedRow<T>& row, double half_strength, double* sums,
                           int* begins) {  // [C] both
  int count = 0;
  double top_sum = 0, top_mean = 0;  // of the last pool that is written
  int top_begin = 0;
  for (int k = row.first; k < row.last; ++k) {
    double sum = row.value(k), mean = sum;
    int begin = k;
    while (count > 0) {
      const double length = static_cast<double>(k + 1 - top_begin);
      if (mean - top_mean > half_strength * length) break;
      sum += top_sum;
      begin = top_begin;
      mean = sum / length;
      --count;
      if (count > 0) {
        top_sum = sums[count - 1];
        top_begin = begins[count - 1];
        top_mean = top_sum / static_cast<double>(begin - top_begin);
      }
    }
    sums[count] = top_sum = sum;
    begins[count] = top_begin = begin;
    top_mean = mean;
    ++count;
  }
  return count;
}

// The pool that place k is in, of `count` pools that begin in ascending order.   // begins: [count]
R2KD_SHARED int pool_of(const int* begins, int count, int k) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (begins[middle] <= k) low = middle;
    else high = middle - 1;
  }
  return low;
}

// The soft ranks of a row, from its pools.
template <typename T>
struct PooledRow {
  SortedRow<T> row;
  const double* sums;  // [count], of find_pools
  const int* begins;   // [count]
  int count;
  double strength;

  R2KD_SHARED bool finite(int k) const { return k >= row.first && k < row.last; }
  R2KD_SHARED int end_of(int pool) const { return pool + 1 < count ? begins[pool + 1] : row.last; }

  // Rank of place k less (C + 1) / 2. Equal infinite elements share the mean of their places.
  R2KD_SHARED double rank(int k) const {
    int begin = k < row.first ? 0 : row.last, end = k < row.first ? row.first : row.cols;
    double deviation = 0;
    if (finite(k)) {
      const int pool = pool_of(begins, count, k);
      begin = begins[pool];
      end = end_of(pool);
      const double length = static_cast<double>(end - begin);
      if (end - begin > 1) deviation = (row.value(k) - sums[pool] / length) / strength;
    }
    const double middle = static_cast<double>(std::int64_t{begin} + end - row.cols) / 2;
    return middle + deviation;
  }

  // Index and flags of place k (r2kd/rank.h).
  R2KD_SHARED std::uint32_t packed(int k) const {
    const std::uint32_t index = row.entries[k].index();
    if (!finite(k)) return index | kBlockStart | kInfinite;
    return begins[pool_of(begins, count, k)] == k ? index | kBlockStart : index;
  }
};

}  // namespace r2kd
