// Merges the columns' partial moments and writes the columns' statistics; where one block has all
// columns, the loss as well.
#include "finish.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct FinishTask {
  const T* partials;     // [P, M, C]
  const double* counts;  // [P]: kept rows of each part
  int parts;
  int slices;            // threads that share the parts of a column
  int cols;
  bool centered;
  double col_weight;  // of one column
  double eps;
  T* stats;           // [5, C]: the columns' part of the statistics
  double* col_sums;   // [number of blocks]: sum of 1 - r over the columns of each
  LossTask loss_task;
  T* loss;            // []; written where there is one block
};

template <typename T>
__device__ __forceinline__ ColumnSums load_partial(const FinishTask<T>& task, int part, int j) {
  const std::int64_t cols = task.cols;
  const T* source = task.partials + part * moment_count(task.centered) * cols + j;
  ColumnSums sums{task.counts[part], static_cast<double>(source[0]),
                  static_cast<double>(source[cols]), static_cast<double>(source[2 * cols]), 0, 0};
  if (task.centered) {
    sums.mean_p = static_cast<double>(source[3 * cols]) + static_cast<double>(source[4 * cols]);
    sums.mean_q = static_cast<double>(source[5 * cols]) + static_cast<double>(source[6 * cols]);
  }
  return sums;
}

// The threads of a block are `slices` times as many columns; each slice has every so-many-th part.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const FinishTask<T> task) {
  __shared__ ColumnSums found[kFinishThreads];
  __shared__ double room[32];
  const int width = kFinishThreads / task.slices;
  const int thread = static_cast<int>(threadIdx.x), slice = thread / width;
  double loss = 0;  // only in the first slice
  for (int first = static_cast<int>(blockIdx.x) * width; first < task.cols;
       first += static_cast<int>(gridDim.x) * width) {
    const int j = first + thread % width;
    ColumnSums sums{};
    if (j < task.cols) {
#pragma unroll 2
      for (int part = slice; part < task.parts; part += task.slices) {
        sums.merge(load_partial(task, part, j), task.centered);
      }
    }
    found[thread] = sums;
    __syncthreads();
    if (slice == 0 && j < task.cols) {
      for (int other = 1; other < task.slices; ++other) {
        sums.merge(found[other * width + thread], task.centered);
      }
      loss += 1.0 - store_column_statistics(sums, task.col_weight, task.eps, task.centered,
                                            task.cols, task.stats + j);
    }
    __syncthreads();
  }
  const double col_sum = block_sum(loss, room);
  if (gridDim.x == 1) {
    store_loss(task.loss_task, col_sum, task.loss, room);
  } else if (threadIdx.x == 0) {
    task.col_sums[blockIdx.x] = col_sum;
  }
}

}  // namespace

cudaError_t launch_finish(const Call& call, const ForwardPlan& plan, void* stats, void* loss,
                          char* scratch) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    const FinishTask<T> task{reinterpret_cast<const T*>(scratch + plan.at_partials),
                             reinterpret_cast<const double*>(scratch + plan.at_counts),
                             plan.parts,
                             plan.finish_slices,
                             static_cast<int>(call.params.cols),
                             call.params.centered,
                             call.params.intra_weight / static_cast<double>(call.params.cols),
                             call.params.eps,
                             static_cast<T*>(stats) + kRowStats * call.params.rows,
                             reinterpret_cast<double*>(scratch + plan.at_col_sums),
                             loss_task(call, plan, scratch),
                             static_cast<T*>(loss)};
    finish_kernel<<<static_cast<unsigned>(plan.col_sums), kFinishThreads, 0, call.stream>>>(task);
    return cudaGetLastError();
  };
  return call.in_double() ? launch(double{}) : launch(float{});
}

}  // namespace cuda
}  // namespace r2kd
