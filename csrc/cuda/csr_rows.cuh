// The sums over a weight's nonzero entries, which both sparse kernels are built of.
//
// Lanes of a warp hold independent outputs of the same rows of the weight (samples, or images), and
// each lane holds several more of them, so that an entry is one broadcast for all. What it is
// multiplied by lies in shared memory, in a block of columns that the whole thread block has staged;
// no two rows have their entries in the same places, so it cannot be kept in registers. A load from
// shared memory for each multiply-add is the limit: 32 a cycle and multiprocessor, a quarter of what
// its float32 units do.
#pragma once

#include "common.cuh"
#include "csr_plan.h"
#include "status.h"

namespace r2kd {
namespace cuda {

constexpr int kNoColumn = 0x7fffffff;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Where a warp is in its rows: lane r has what is left of row r, the lanes past the last row nothing.
struct RowCursor {
  int at, end;
};

__device__ __forceinline__ RowCursor row_cursor(const CsrMatrix& weight, std::int64_t first_row,
                                                std::int64_t end_row) {
  const std::int64_t row = first_row + threadIdx.x % 32;
  if (row >= end_row) return {0, 0};
  return {weight.row_offsets[row], weight.row_offsets[row + 1]};
}

template <typename S>
struct Entry {
  int column;
  S value;
};

// The next 32 entries of a row, one for each lane; kNoColumn past its end.
template <typename S>
__device__ __forceinline__ Entry<S> load_entry(const CsrMatrix& weight, const RowCursor& cursor,
                                               int row) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int at = __shfl_sync(kWholeWarp, cursor.at, row);
  const int end = __shfl_sync(kWholeWarp, cursor.end, row);
  if (lane >= end - at) return {kNoColumn, S{}};
  const std::int64_t own = std::int64_t{at} + lane;
  return {weight.columns[own], static_cast<const S*>(weight.values)[own]};
}

// Adds the entries whose column is below `limit` to the sums of the rows of a warp. `ahead`: what
// load_entry gave of its first row. The entry of a column is multiplied by
// staged_x[place(column) + offset(i)] for sum i. entries: [32], the warp's own.
template <typename S, int rows, int count, typename Place, typename Offset>
__device__ __forceinline__ void add_entries(const CsrMatrix& weight, int limit, Entry<S> ahead,
                                            const Place& place, const float* staged_x,
                                            const Offset& offset, StagedEntry* entries,
                                            RowCursor& cursor, float (&sums)[rows][count]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int row = 0; row < rows; ++row) {
    bool more;
    do {
      // Columns ascend, so these lanes are the first ones.
      const int found = __popc(__ballot_sync(kWholeWarp, ahead.column < limit));
      if (lane < found) entries[lane] = {place(ahead.column), widened(ahead.value)};
      if (lane == row) cursor.at += found;
      __syncwarp();
      more = found == 32;
      // Fetched while the present ones are added: the next of this row, or the first of the next.
      ahead = load_entry<S>(weight, cursor, more ? row : row + 1);
#pragma unroll (count < 8 ? 4 : 2)
      for (int i = 0; i < found; ++i) {
        const StagedEntry entry = entries[i];
        const float* const x = staged_x + entry.place;
#pragma unroll
        for (int k = 0; k < count; ++k) sums[row][k] += entry.value * x[offset(k)];
      }
      __syncwarp();
    } while (more);
  }
}

template <typename S, int rows, int count>
__device__ __forceinline__ void start_sums(const void* bias, std::int64_t first_row,
                                           std::int64_t end_row, float (&sums)[rows][count]) {
#pragma unroll
  for (int row = 0; row < rows; ++row) {
    const bool biased = bias != nullptr && first_row + row < end_row;
    const float start =
        biased ? widened(static_cast<const S*>(bias)[first_row + row]) : 0.0f;
#pragma unroll
    for (int k = 0; k < count; ++k) sums[row][k] = start;
  }
}

// Writes `count` neighbours: in pieces of up to 16 bytes where there are all n and they are
// `aligned`, else one by one.
template <typename S, int n>
__device__ __forceinline__ void store_neighbours(S* target, const float (&x)[n], std::int64_t count,
                                                 bool aligned) {
  constexpr int whole = 16 / static_cast<int>(sizeof(S));
  constexpr int size = n < whole ? n : whole;
  struct alignas(size * sizeof(S)) Piece {
    S numbers[size];
  };
  if (aligned && count >= n) {
#pragma unroll
    for (int begin = 0; begin < n; begin += size) {
      Piece piece;
#pragma unroll
      for (int i = 0; i < size; ++i) piece.numbers[i] = narrowed<S>(x[begin + i]);
      *reinterpret_cast<Piece*>(target + begin) = piece;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (i < count) target[i] = narrowed<S>(x[i]);
  }
}

// Calls run(S{}) with the type of a dtype.
template <typename Run>
cudaError_t with_storage(DType dtype, const Run& run) {
  if (dtype == DType::bfloat16) return run(__nv_bfloat16{});
  if (dtype == DType::float16) return run(__half{});
  return run(float{});
}

inline cudaError_t count_multiprocessors(const Place& place, int* count) {
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, place.device);
}

template <typename Task>
cudaError_t launch_csr(void (*kernel)(Task), std::int64_t blocks, int shared_bytes,
                       cudaStream_t stream, const Task& task) {
  const cudaError_t error = allow_shared(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kCsrThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, task);
}

}  // namespace cuda
}  // namespace r2kd
