// Spearman's correlation of hard ranks: both rows are sorted, the distance of their places summed.
#include "rank_rows.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct HardTask {
  SpearmanTask call;
  T* rho;  // [B]
};

template <typename T, int tile>
__global__ void __launch_bounds__(kRankThreads)
    hard_spearman_kernel(const HardTask<T> task) {
  __shared__ SortEntry<T> shared[tile];
  __shared__ double room[32];
  const SpearmanTask& call = task.call;
  const RowMemory<T> memory(call.plan, call.scratch);
  const int cols = static_cast<int>(call.params.cols);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t row = blockIdx.x; row < call.params.rows; row += gridDim.x) {
    if (!call.keeps(row)) {
      if (thread == 0) task.rho[row] = T(0);
      continue;
    }
    int* const y_places = memory.begins;  // [C]
    const SortEntry<T>* sorted = sorted_row<T, tile>(call.y, row, cols, memory, shared);
    bool nan = sorted == nullptr;
    for (int k = thread; k < cols && !nan; k += threads) {
      y_places[sorted[k].index()] = k;
    }
    sorted = sorted_row<T, tile>(call.x, row, cols, memory, shared);
    nan = nan || sorted == nullptr;
    // Whole numbers: exact below 2^53, in whatever order.
    double distance = 0;
    for (int k = thread; k < cols && !nan; k += threads) {
      const double apart = static_cast<double>(k - y_places[sorted[k].index()]);
      distance += apart * apart;
    }
    distance = block_sum(distance, room);
    if (thread == 0) {
      const double rho =
          rho_of_distance(distance, static_cast<double>(cols), call.params.eps);
      task.rho[row] = nan ? kNaN<T> : static_cast<T>(rho);
    }
  }
}

}  // namespace

cudaError_t launch_hard_spearman(const SpearmanTask& task, bool in_double, void* rho,
                                 cudaStream_t stream) {
  return with_tile(in_double, task.plan, [&](auto type, auto tile) {
    using T = decltype(type);
    return launch_blocks(hard_spearman_kernel<T, decltype(tile)::value>, task.plan, stream,
                         HardTask<T>{task, static_cast<T*>(rho)});
  });
}

}  // namespace cuda
}  // namespace r2kd
