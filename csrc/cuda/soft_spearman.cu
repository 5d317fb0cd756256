// Spearman's correlation of soft ranks and its gradient. Backward sorts again: nothing is kept.
#include "rank_rows.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct ForwardTask {
  SpearmanTask call;
  T* rho;  // [B]
};

template <typename T>
struct BackwardTask {
  SpearmanTask call;
  const T* grad_rho;  // [B]
  std::int64_t grad_stride;
  double inverse_strength;  // a division ends in a call, around which registers would be spilled
  GradientMatrix grad_x;    // [B, C]
};

// Both rows sorted and pooled, the ranks of y by index in `memory`; false where one holds a NaN.
// All threads must come here.
template <typename T, int tile>
__device__ __forceinline__ const SortEntry<T>* ranked_y(const SpearmanTask& call, std::int64_t row,
                                                        const RowMemory<T>& memory,
                                                        SortEntry<T> (&shared)[tile], int& room) {
  const int cols = static_cast<int>(call.params.cols);
  const SortEntry<T>* sorted = sorted_row<T, tile>(call.y, row, cols, memory, shared);
  if (sorted == nullptr) return nullptr;
  const PooledRow<T> y = pooled_row(sorted, cols, call.params.strength, memory, room);
  for (int k = static_cast<int>(threadIdx.x); k < cols; k += static_cast<int>(blockDim.x)) {
    memory.y_ranks[sorted[k].index()] = y.rank(k);
  }
  return sorted_row<T, tile>(call.x, row, cols, memory, shared);
}

// r, alpha and beta of two rows of ranks, x_rank(k) in the order of places. All threads must come
// here, and get the same.
template <typename T, typename Rank>
__device__ __forceinline__ Correlation<double> correlation_of(const SpearmanTask& call,
                                                              const SortEntry<T>* sorted,
                                                              const Rank& x_rank,
                                                              const double* y_ranks, double* room) {
  const int cols = static_cast<int>(call.params.cols);
  double aa = 0, bb = 0, ab = 0;
  for (int k = static_cast<int>(threadIdx.x); k < cols; k += static_cast<int>(blockDim.x)) {
    const double a = x_rank(k), b = y_ranks[sorted[k].index()];
    aa += a * a;
    bb += b * b;
    ab += a * b;
  }
  aa = block_sum(aa, room);
  bb = block_sum(bb, room);
  ab = block_sum(ab, room);
  const double eps = eps_of_ranks(call.params.eps, static_cast<double>(cols));
  return correlation_from_moments(aa, bb, ab, eps);
}

template <typename T, int tile>
__global__ void __launch_bounds__(kRankThreads)
    soft_spearman_kernel(const ForwardTask<T> task) {
  __shared__ SortEntry<T> shared[tile];
  __shared__ double room[32];
  __shared__ int pools;
  const SpearmanTask& call = task.call;
  const RowMemory<T> memory(call.plan, call.scratch);
  const int cols = static_cast<int>(call.params.cols);
  for (std::int64_t row = blockIdx.x; row < call.params.rows; row += gridDim.x) {
    double r = 0;
    if (call.keeps(row)) {
      const SortEntry<T>* sorted = ranked_y<T, tile>(call, row, memory, shared, pools);
      if (sorted == nullptr) {
        r = kNaN<double>;
      } else {
        const PooledRow<T> x = pooled_row(sorted, cols, call.params.strength, memory, pools);
        const auto rank = [&](int k) { return x.rank(k); };
        r = correlation_of(call, sorted, rank, memory.y_ranks, room).r;
      }
    }
    if (threadIdx.x == 0) task.rho[row] = static_cast<T>(r);
  }
}

template <typename T, int tile>
__global__ void __launch_bounds__(kRankThreads, 1)
    soft_spearman_backward_kernel(const BackwardTask<T> task) {
  __shared__ SortEntry<T> shared[tile];
  __shared__ double room[32];
  __shared__ int pools;
  const SpearmanTask& call = task.call;
  const RowMemory<T> memory(call.plan, call.scratch);
  const int cols = static_cast<int>(call.params.cols);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t row = blockIdx.x; row < call.params.rows; row += gridDim.x) {
    const std::int64_t place = row * cols;
    const bool keep = call.keeps(row);
    const SortEntry<T>* sorted =
        keep ? ranked_y<T, tile>(call, row, memory, shared, pools) : nullptr;
    if (sorted == nullptr) {
      const double all = keep ? kNaN<double> : 0.0;
      for (int j = thread; j < cols; j += threads) task.grad_x.store(place + j, all);
      continue;
    }
    const PooledRow<T> x = pooled_row(sorted, cols, call.params.strength, memory, pools);
    // In the order of places; a thread reads what it wrote itself.
    for (int k = thread; k < cols; k += threads) memory.slopes[k] = x.rank(k);
    const auto rank = [&](int k) { return memory.slopes[k]; };
    const Correlation<double> found = correlation_of(call, sorted, rank, memory.y_ranks, room);
    const double grad = static_cast<double>(task.grad_rho[row * task.grad_stride]);
    for (int k = thread; k < cols; k += threads) {
      const double b = memory.y_ranks[sorted[k].index()];
      memory.slopes[k] = grad * (found.alpha * b - found.beta * memory.slopes[k]);
    }
    __syncthreads();
    double* const means = memory.sums;  // nobody needs the sums any more
    pool_means(
        x.begins, x.count, [&](int pool) { return x.end_of(pool); },
        [&](int k) { return memory.slopes[k]; }, means);
    for (int k = thread; k < cols; k += threads) {
      double slope = 0;
      if (x.finite(k)) {
        slope = memory.slopes[k] - means[pool_of(x.begins, x.count, k)];
        slope *= task.inverse_strength;
      }
      task.grad_x.store(place + sorted[k].index(), slope);
    }
  }
}

}  // namespace

cudaError_t launch_soft_spearman(const SpearmanTask& task, bool in_double, void* rho,
                                 cudaStream_t stream) {
  return with_tile(in_double, task.plan, [&](auto type, auto tile) {
    using T = decltype(type);
    return launch_blocks(soft_spearman_kernel<T, decltype(tile)::value>, task.plan, stream,
                         ForwardTask<T>{task, static_cast<T*>(rho)});
  });
}

cudaError_t launch_soft_spearman_backward(const SpearmanTask& task, bool in_double,
                                          const void* grad_rho, std::int64_t grad_stride,
                                          const GradientMatrix& grad_x, cudaStream_t stream) {
  return with_tile(in_double, task.plan, [&](auto type, auto tile) {
    using T = decltype(type);
    return launch_blocks(
        soft_spearman_backward_kernel<T, decltype(tile)::value>, task.plan, stream,
        BackwardTask<T>{task, static_cast<const T*>(grad_rho), grad_stride,
                        1 / task.params.strength, grad_x});
  });
}

}  // namespace cuda
}  // namespace r2kd
