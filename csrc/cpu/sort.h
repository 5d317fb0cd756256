// The stable ascending order of one row without NaN; -0 and 0 are equal.
//
// Short rows: the place of an element is the number of elements before it, counted a register at a
// time. Long rows: a pass into buckets of linearly quantised values, or two radix passes over finer
// ones, leaves next to nothing to an insertion sort; where both leave much (far outliers), a radix
// sort over all bits takes over.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "rows.h"
#include "simd.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {

// --- a row into scratch --------------------------------------------------------------------------

// Writes row `row` as T into `values`, with +inf in the padding. Returns whether it holds a NaN.
template <typename T>
bool load_row(const ConstMatrix& matrix, std::int64_t row, std::int64_t cols, T* values) {
  const std::int64_t bytes = dtype_bytes(matrix.dtype);
  const char* source = static_cast<const char*>(matrix.data) + row * matrix.row_stride * bytes;
  const auto copy = [&](auto stored) {
    const Row<T, decltype(stored)::value> from{source};
    std::int64_t j = 0;
    for (; j + kLanes<T> <= cols; j += kLanes<T>) store(values + j, from.load(j));
    if (j < cols) store(values + j, from.load_part(j, cols - j, -static_cast<T>(kMinusInfinity)));
  };
  if (matrix.col_stride == 1 && matrix.dtype == kOwnDType<T>) {
    copy(std::integral_constant<DType, kOwnDType<T>>{});
  } else if (sizeof(T) == 4 && matrix.col_stride == 1 && matrix.dtype == DType::bfloat16) {
    if constexpr (sizeof(T) == 4) copy(std::integral_constant<DType, DType::bfloat16>{});
  } else if (sizeof(T) == 4 && matrix.col_stride == 1 && matrix.dtype == DType::float16) {
    if constexpr (sizeof(T) == 4) copy(std::integral_constant<DType, DType::float16>{});
  } else {
    for (std::int64_t j = 0; j < cols; ++j) {
      values[j] = element<T>(source + j * matrix.col_stride * bytes, matrix.dtype);
    }
    for (std::int64_t j = cols; j < padded<T>(cols); ++j) values[j] = -static_cast<T>(kMinusInfinity);
  }
  typename VectorOf<T>::integer found{};
  for (std::int64_t j = 0; j < cols; j += kLanes<T>) {
    const Vector<T> value = load(values + j);
    found |= value != value;
  }
  bool any = false;
  for (int lane = 0; lane < kLanes<T>; ++lane) any |= found[lane] != 0;
  return any;
}

// --- by counting -------------------------------------------------------------------------------

template <typename T>
using Count = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// Up to here C^2 comparisons, a register at a time, are faster than a radix sort's passes.
template <typename T>
constexpr std::int64_t kCountCols = 12 * kLanes<T>;

template <typename T, int registers>
R2KD_INLINE void count_smaller(const T* values, std::int64_t cols, std::int64_t begin, Count<T>* counts) {
  using Integer = typename VectorOf<T>::integer;
  Vector<T> own[registers];
  Integer smaller[registers] = {};
  for (int r = 0; r < registers; ++r) own[r] = load(values + begin + r * kLanes<T>);
  for (std::int64_t j = 0; j < cols; ++j) {
    const Vector<T> other = broadcast(values[j]);
#pragma GCC unroll 4
    for (int r = 0; r < registers; ++r) smaller[r] -= other < own[r];
  }
  for (int r = 0; r < registers; ++r) {
    std::memcpy(counts + begin + r * kLanes<T>, &smaller[r], sizeof(Integer));
  }
}

// counts[j] = the place of values[j] in the stable ascending order, from 0.  // both [C], padded
template <typename T>
void count_places(const T* values, std::int64_t cols, Count<T>* counts) {
  constexpr int lanes = kLanes<T>;
  std::int64_t begin = 0;
  for (; begin + 4 * lanes <= padded<T>(cols); begin += 4 * lanes) {
    count_smaller<T, 4>(values, cols, begin, counts);
  }
  for (; begin < padded<T>(cols); begin += lanes) count_smaller<T, 1>(values, cols, begin, counts);
  // Without equal elements the places are 0, ..., C - 1; every equal pair is missing one.
  std::int64_t total = 0;
  for (std::int64_t j = 0; j < cols; ++j) total += counts[j];
  if (total == cols * (cols - 1) / 2) return;
  using Integer = typename VectorOf<T>::integer;
  Integer index;
  for (int lane = 0; lane < lanes; ++lane) index[lane] = lane;
  for (begin = 0; begin < cols; begin += lanes, index += lanes) {
    const Vector<T> own = load(values + begin);
    Integer before;
    std::memcpy(&before, counts + begin, sizeof(Integer));
    const std::int64_t end = begin + lanes < cols ? begin + lanes : cols;
    for (std::int64_t j = 0; j < end; ++j) {
      const Integer equal_before = (broadcast(values[j]) == own) & (index > static_cast<Count<T>>(j));
      before -= equal_before;
    }
    std::memcpy(counts + begin, &before, sizeof(Integer));
  }
}

// --- by radix sort -----------------------------------------------------------------------------

// An order-preserving unsigned key and the index of its element.
struct Pair32 {
  using Key = std::uint32_t;
  Key key;
  std::uint32_t index;
};
struct Pair64 {
  using Key = std::uint64_t;
  Key key;
  std::uint32_t index;
};
template <typename T>
using Pair = std::conditional_t<sizeof(T) == 4, Pair32, Pair64>;
template <typename T>
using Key = typename Pair<T>::Key;

template <typename T>
R2KD_INLINE Key<T> key_of(T value) {
  constexpr Key<T> sign = Key<T>(1) << (8 * sizeof(T) - 1);
  Key<T> bits = bits_as<Key<T>>(value);
  bits = bits == sign ? 0 : bits;  // -0
  const Key<T> flip = (Key<T>(0) - (bits >> (8 * sizeof(T) - 1))) | sign;  // no branch on the sign
  return bits ^ flip;
}

// counts -> where the elements of each digit begin.
inline void starts_from_counts(std::uint32_t* counts, std::uint32_t digits) {
  std::uint32_t before = 0;
  for (std::uint32_t digit = 0; digit < digits; ++digit) {
    const std::uint32_t here = counts[digit];
    counts[digit] = before;
    before += here;
  }
}

// Least significant digit first. a, b: [C]; counts: [passes, 2^bits]. Returns the sorted one of them.
template <typename T, int bits = 8>
Pair<T>* radix_sort(const T* values, std::int64_t cols, Pair<T>* a, Pair<T>* b, std::uint32_t* counts) {
  constexpr int key_bits = 8 * sizeof(T);
  constexpr int passes = (key_bits + bits - 1) / bits;
  constexpr std::uint32_t digits = 1u << bits;
  const auto digit_of = [](Key<T> key, int pass) __attribute__((always_inline)) {
    return static_cast<std::uint32_t>(key >> (pass * bits)) & (digits - 1);
  };
  std::memset(counts, 0, sizeof(std::uint32_t) * passes * digits);
  for (std::int64_t j = 0; j < cols; ++j) {
    const Key<T> key = key_of(values[j]);
    a[j] = {key, static_cast<std::uint32_t>(j)};
    for (int pass = 0; pass < passes; ++pass) ++counts[pass * digits + digit_of(key, pass)];
  }
  for (int pass = 0; pass < passes; ++pass) {
    std::uint32_t* count = counts + pass * digits;
    if (count[digit_of(a[0].key, pass)] == cols) continue;  // one digit in all keys
    starts_from_counts(count, digits);
    for (std::int64_t j = 0; j < cols; ++j) b[count[digit_of(a[j].key, pass)]++] = a[j];
    Pair<T>* const sorted = b;
    b = a;
    a = sorted;
  }
  return a;
}

// --- by quantisation -----------------------------------------------------------------------------

// From here on the buckets of one pass are too many for the first-level cache.
constexpr std::int64_t kLongRow = 4096;
constexpr std::uint32_t kFewestBuckets = 512;
constexpr std::uint32_t kMostBuckets = 16384;
constexpr std::int64_t kMaxCounts = 8 * 256 > 2 * 2048 ? 8 * 256 : 2 * 2048;

// Range of the finite elements; lowest > highest where there are none.
template <typename T>
void finite_range(const T* values, std::int64_t cols, T& lowest, T& highest) {
  constexpr T infinity = -static_cast<T>(kMinusInfinity);
  Vector<T> low = broadcast(infinity), high = broadcast(-infinity);
  for (std::int64_t j = 0; j < cols; j += kLanes<T>) {  // the padding is infinite
    const Vector<T> x = load(values + j);
    low = (x < low) & (x > -infinity) ? x : low;
    high = (x > high) & (x < infinity) ? x : high;
  }
  lowest = infinity;
  highest = -infinity;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    lowest = low[lane] < lowest ? low[lane] : lowest;
    highest = high[lane] > highest ? high[lane] : highest;
  }
}

// Insertion sort of sorted and order by sorted. Gives up after 2 moves per element: false.
template <typename T>
bool finish_by_insertion(std::int64_t cols, T* sorted, std::uint32_t* order) {
  std::int64_t moves_left = 2 * cols;
  for (std::int64_t k = 1; k < cols; ++k) {
    const T value = sorted[k];
    if (!(value < sorted[k - 1])) continue;
    const std::uint32_t index = order[k];
    std::int64_t place = k;
    for (; place > 0 && value < sorted[place - 1] && moves_left > 0; --place, --moves_left) {
      sorted[place] = sorted[place - 1];
      order[place] = order[place - 1];
    }
    sorted[place] = value;
    order[place] = index;
    if (moves_left == 0) return false;
  }
  return true;
}

// counts -> where the elements of each bucket begin.            // `buckets` is a multiple of 8
inline void starts_of_buckets(std::uint16_t* counts, std::uint32_t buckets) {
#if defined(__SSE2__)
  __m128i before = _mm_setzero_si128();
  for (std::uint32_t bucket = 0; bucket < buckets; bucket += 8) {
    auto* const here = reinterpret_cast<__m128i*>(counts + bucket);
    const __m128i own = _mm_loadu_si128(here);
    __m128i sum = _mm_add_epi16(own, _mm_slli_si128(own, 2));
    sum = _mm_add_epi16(sum, _mm_slli_si128(sum, 4));
    sum = _mm_add_epi16(sum, _mm_slli_si128(sum, 8));
    sum = _mm_add_epi16(sum, before);
    _mm_storeu_si128(here, _mm_sub_epi16(sum, own));
    before = _mm_shufflehi_epi16(sum, 0xff);
    before = _mm_unpackhi_epi64(before, before);
  }
#else
  std::uint16_t before = 0;
  for (std::uint32_t bucket = 0; bucket < buckets; ++bucket) {
    const std::uint16_t here = counts[bucket];
    counts[bucket] = before;
    before = static_cast<std::uint16_t>(before + here);
  }
#endif
}

// One pass into buckets, so many for each element that the insertion sort finds next to nothing to
// do, unless the row has far outliers. The first and the last bucket are for the infinite ones.
template <typename T>
bool bucket_sort(const T* values, std::int64_t cols, std::uint32_t* quanta, std::uint16_t* starts,
                 T* sorted, std::uint32_t* order) {
  std::uint32_t buckets = kFewestBuckets;
  while (buckets < 4 * cols && buckets < kMostBuckets) buckets *= 2;
  T lowest, highest;
  finite_range(values, cols, lowest, highest);
  const T range = highest - lowest;
  if (!(range > 0 && range < -static_cast<T>(kMinusInfinity))) return false;
  const T last = static_cast<T>(buckets - 1);
  const T scale = static_cast<T>(buckets - 3) / range;
  for (std::int64_t j = 0; j < cols; ++j) {
    T quantum = (values[j] - lowest) * scale + 1;
    quantum = quantum > 0 ? quantum : T(0);
    quantum = quantum < last ? quantum : last;
    quanta[j] = static_cast<std::uint32_t>(static_cast<std::int32_t>(quantum));
  }
  std::memset(starts, 0, sizeof(std::uint16_t) * buckets);
  for (std::int64_t j = 0; j < cols; ++j) ++starts[quanta[j]];
  starts_of_buckets(starts, buckets);
  for (std::int64_t j = 0; j < cols; ++j) {
    const std::uint32_t place = starts[quanta[j]]++;
    sorted[place] = values[j];
    order[place] = static_cast<std::uint32_t>(j);
  }
  return finish_by_insertion(cols, sorted, order);
}

// (x - lowest) * scale rounded down to 2 * bits bits never puts a larger element before a smaller
// one, so that what the two passes leave unsorted are elements of one quantum.
template <typename T, int bits>
bool quantised_sort(const T* values, std::int64_t cols, std::uint32_t* quanta, std::uint64_t* pairs,
                    std::uint32_t* counts, T* sorted, std::uint32_t* order) {
  constexpr std::uint32_t digits = 1u << bits;
  constexpr T last = static_cast<T>(digits) * static_cast<T>(digits) - 1;
  T lowest, highest;
  finite_range(values, cols, lowest, highest);
  const T range = highest - lowest;
  if (!(range > 0 && range < -static_cast<T>(kMinusInfinity))) return false;
  const T scale = last / range;
  for (std::int64_t j = 0; j < cols; ++j) {
    T quantum = (values[j] - lowest) * scale;
    quantum = quantum > 0 ? quantum : T(0);
    quantum = quantum < last ? quantum : last;
    quanta[j] = static_cast<std::uint32_t>(static_cast<std::int32_t>(quantum));
  }
  std::uint32_t* low_counts = counts;
  std::uint32_t* high_counts = counts + digits;
  std::memset(counts, 0, sizeof(std::uint32_t) * 2 * digits);
  for (std::int64_t j = 0; j < cols; ++j) {
    ++low_counts[quanta[j] & (digits - 1)];
    ++high_counts[quanta[j] >> bits];
  }
  starts_from_counts(low_counts, digits);
  starts_from_counts(high_counts, digits);
  for (std::int64_t j = 0; j < cols; ++j) {
    const std::uint32_t high = quanta[j] >> bits;
    pairs[low_counts[quanta[j] & (digits - 1)]++] = (std::uint64_t{high} << 32) | static_cast<std::uint64_t>(j);
  }
  for (std::int64_t k = 0; k < cols; ++k) {
    order[high_counts[pairs[k] >> 32]++] = static_cast<std::uint32_t>(pairs[k]);
  }
  for (std::int64_t k = 0; k < cols; ++k) sorted[k] = values[order[k]];
  return finish_by_insertion(cols, sorted, order);
}

// --- scratch -----------------------------------------------------------------------------------

// What sorting one row of C numbers needs.
template <typename T>
struct SortScratch {
  SortScratch(Carver& carver, std::int64_t cols) {
    if (cols <= kCountCols<T>) {
      places = carver.take<Count<T>>(padded<T>(cols));
    } else {
      counts = carver.take<std::uint32_t>(kMaxCounts);
      starts = carver.take<std::uint16_t>(kMostBuckets);
      quanta = carver.take<std::uint32_t>(cols);
      pairs = carver.take<std::uint64_t>(cols);
      a = carver.take<Pair<T>>(cols);
      b = carver.take<Pair<T>>(cols);
    }
  }
  Count<T>* places = nullptr;
  std::uint32_t* counts = nullptr;
  std::uint16_t* starts = nullptr;
  std::uint32_t* quanta = nullptr;
  std::uint64_t* pairs = nullptr;
  Pair<T>* a = nullptr;
  Pair<T>* b = nullptr;
};

// sorted[k] = the k-th smallest of values, order[k] = its index.                      // all [C]
template <typename T>
void sort_row(const T* values, std::int64_t cols, const SortScratch<T>& scratch, T* sorted,
              std::uint32_t* order) {
  if (cols <= kCountCols<T>) {
    count_places(values, cols, scratch.places);
    for (std::int64_t j = 0; j < cols; ++j) {
      const Count<T> place = scratch.places[j];
      sorted[place] = values[j];
      order[place] = static_cast<std::uint32_t>(j);
    }
    return;
  }
  if (cols <= kLongRow && bucket_sort(values, cols, scratch.quanta, scratch.starts, sorted, order)) {
    return;
  }
  const bool done = cols < kLongRow
                        ? quantised_sort<T, 8>(values, cols, scratch.quanta, scratch.pairs,
                                               scratch.counts, sorted, order)
                        : quantised_sort<T, 11>(values, cols, scratch.quanta, scratch.pairs,
                                                scratch.counts, sorted, order);
  if (done) return;
  const Pair<T>* pairs = radix_sort<T>(values, cols, scratch.a, scratch.b, scratch.counts);
  for (std::int64_t k = 0; k < cols; ++k) {
    order[k] = pairs[k].index;
    sorted[k] = values[order[k]];
  }
}

// Work of a sort per element, in elements of a pass over the matrix, when a call is cut into parts.
constexpr std::int64_t kSortCost = 8;

}  // namespace R2KD_ISA
}  // namespace r2kd
