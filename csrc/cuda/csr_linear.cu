// A linear layer with a sparse weight. A block has 128 (or 32) rows of the weight and up to 128
// samples, and goes along the columns: it stages x for 128 to 512 of them, then each warp adds the
// entries of its rows there.
#include "csr_rows.cuh"
#include "guard.cuh"
#include "sparse.h"

namespace r2kd {
namespace cuda {
namespace {

struct LinearTask {
  ConstMatrix x;  // [B, K]
  std::int64_t batch;
  CsrMatrix weight;  // [R, K]
  const void* bias;  // [R] or null
  void* y;           // [B, R]
  bool aligned;      // whether the outputs of a warp lie in whole pieces
  CsrLinearPlan plan;
};

// staged[k * (samples + 1) + s] = x[first_sample + s][first + k], 0 past the last sample. Lanes take
// neighbouring columns: whole lines are read of contiguous x, and the odd distance of the columns in
// shared memory keeps the lanes in different banks, here and where samples are the lanes.
template <typename S, int samples>
__device__ __forceinline__ void stage_columns(const LinearTask& task, std::int64_t first_sample,
                                              std::int64_t first, int count, float* staged) {
  constexpr int each = samples / kCsrWarps;  // of a warp
  constexpr int together = each < 8 ? each : 8;
  const int warp = static_cast<int>(threadIdx.x / 32);
  for (int k = static_cast<int>(threadIdx.x % 32); k < count; k += 32) {
    const S* const column = static_cast<const S*>(task.x.data) + (first + k) * task.x.col_stride;
#pragma unroll 1
    for (int begin = warp; begin < samples; begin += together * kCsrWarps) {
      float numbers[together];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const std::int64_t sample = first_sample + begin + i * kCsrWarps;
        numbers[i] = sample < task.batch ? widened(column[sample * task.x.row_stride]) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < together; ++i) {
        staged[k * (samples + 1) + begin + i * kCsrWarps] = numbers[i];
      }
    }
  }
}

template <typename S, int count, int rows>
__global__ void __launch_bounds__(kCsrThreads, 2) csr_linear_kernel(const LinearTask task) {
  extern __shared__ double shared[];
  constexpr int samples = 32 * count;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  StagedEntry* const entries = reinterpret_cast<StagedEntry*>(shared) + 32 * warp;  // [32]
  float* const staged = reinterpret_cast<float*>(shared) + kStagedBytes / sizeof(float);
  const CsrMatrix& weight = task.weight;
  const auto offset = [](int k) { return 32 * k; };

  for (std::int64_t tile = blockIdx.x; tile < task.plan.tiles; tile += gridDim.x) {
    // Tiles of the same samples follow each other: their x is in the second-level cache.
    const std::int64_t first_row = (tile % task.plan.row_tiles * kCsrWarps + warp) * rows;
    const std::int64_t first_sample = tile / task.plan.row_tiles * samples;
    RowCursor cursor = row_cursor(weight, first_row, min(first_row + rows, weight.rows));
    float sums[rows][count];
    start_sums<S>(task.bias, first_row, weight.rows, sums);
    for (std::int64_t first = 0; first < weight.cols; first += task.plan.columns) {
      // Nobody reads the columns before; and if nobody has entries left, all is done.
      if (!__syncthreads_or(cursor.at < cursor.end)) break;
      const Entry<S> ahead = load_entry<S>(weight, cursor, 0);
      const std::int64_t end = min(first + task.plan.columns, weight.cols);
      stage_columns<S, samples>(task, first_sample, first, static_cast<int>(end - first), staged);
      __syncthreads();
      const auto place = [=](int column) {
        return static_cast<int>(column - first) * (samples + 1);
      };
      add_entries(weight, static_cast<int>(min(end, std::int64_t{kNoColumn})), ahead, place,
                  staged + lane, offset, entries, cursor, sums);
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const std::int64_t sample = first_sample + 32 * k + lane;
      if (sample >= task.batch || first_row >= weight.rows) continue;
      float outputs[rows];
#pragma unroll
      for (int row = 0; row < rows; ++row) outputs[row] = sums[row][k];
      store_neighbours(static_cast<S*>(task.y) + sample * weight.rows + first_row, outputs,
                       weight.rows - first_row, task.aligned);
    }
  }
}

template <typename S>
cudaError_t launch_linear(const LinearTask& task, cudaStream_t stream) {
  const auto launch = [&](auto kernel) {
    return launch_csr(kernel, task.plan.blocks, task.plan.shared_bytes, stream, task);
  };
  if (task.plan.rows == 4) return launch(csr_linear_kernel<S, 1, 4>);
  if (task.plan.samples == 1) return launch(csr_linear_kernel<S, 1, 16>);
  if (task.plan.samples == 2) return launch(csr_linear_kernel<S, 2, 16>);
  return launch(csr_linear_kernel<S, 4, 16>);
}

}  // namespace

CudaStatus csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight,
                      const void* bias, void* y, const Place& place) {
  return launched(place, "csr_linear_kernel", [&](cudaStream_t stream) {
    int multiprocessors;
    const cudaError_t error = count_multiprocessors(place, &multiprocessors);
    if (error != cudaSuccess) return error;
    const CsrLinearPlan plan = plan_csr_linear(batch, weight.rows, weight.cols, multiprocessors);
    const bool in_pieces = weight.rows % plan.rows == 0 && aligned(y);
    const LinearTask task{x, batch, weight, bias, y, in_pieces, plan};
    return with_storage(x.dtype, [&](auto storage) {
      return launch_linear<decltype(storage)>(task, stream);
    });
  });
}

}  // namespace cuda
}  // namespace r2kd
