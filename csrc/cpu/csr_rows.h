// The sum over a row's nonzero entries, which both sparse kernels are built of.
//
// Lanes hold independent outputs of one row of the weight (samples, or pixels of several images), and a
// tile of registers holds more of them, so that each nonzero entry is one broadcast for a whole tile
// of fused multiply-adds whose other operand comes from a packed copy of the input.
#pragma once

#include <cstdint>

#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

constexpr int kTile = 8;  // registers of sums: twice the latency of an addition at two per cycle

// A row of entries, from `at` on.
struct Entries {
  const float* values;
  const std::int32_t* columns;
  std::int64_t at, end;
};

// Adds the entries whose column is below `limit` to ROWS x COLS registers of sums, and returns the
// first entry left. Entry (value, column) adds value * x[place(column) + r * row_step + c * col_step].
// Narrow tiles take several entries at once, each with sums of its own, to have enough additions in
// flight.
template <int ROWS, int COLS, typename Place>
R2KD_INLINE std::int64_t add_entries(const Entries& row, std::int32_t limit, const float* x,
                                     std::int64_t row_step, std::int64_t col_step, Place place,
                                     float* sums) {
  constexpr int lanes = kLanes<float>;
  constexpr int tile = ROWS * COLS;
  constexpr int chains = tile > 4 ? 1 : tile > 2 ? 2 : 4;
  Vector<float> sum[chains][tile];
#pragma GCC unroll 8
  for (int i = 0; i < tile; ++i) {
    sum[0][i] = load(sums + i * lanes);
#pragma GCC unroll 4
    for (int chain = 1; chain < chains; ++chain) sum[chain][i] = Vector<float>{};
  }
  const auto add = [&](std::int64_t at, Vector<float>* into) __attribute__((always_inline)) {
    const Vector<float> value = broadcast(row.values[at]);
    const float* first = x + place(row.columns[at]);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < COLS; ++c) {
        into[r * COLS + c] += value * load(first + r * row_step + c * col_step);
      }
    }
  };
  std::int64_t at = row.at;
  for (; at + chains <= row.end && row.columns[at + chains - 1] < limit; at += chains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < chains; ++chain) add(at + chain, sum[chain]);
  }
  if constexpr (chains > 1) {
    for (; at < row.end && row.columns[at] < limit; ++at) add(at, sum[0]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < tile; ++i) {
#pragma GCC unroll 4
    for (int chain = 1; chain < chains; ++chain) sum[0][i] += sum[chain][i];
    store(sums + i * lanes, sum[0][i]);
  }
  return at;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
