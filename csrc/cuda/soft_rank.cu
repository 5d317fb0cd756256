// Soft ranks of rows, and their gradient from the pooled order that they leave.
#include "rank_rows.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct ForwardTask {
  SoftRankParams params;
  ConstMatrix x;         // [B, C]
  T* ranks;              // [B, C]
  std::uint32_t* order;  // [B, C]
  RankPlan plan;
  char* scratch;
};

struct BackwardTask {
  SoftRankParams params;
  ConstMatrix grad_ranks;      // [B, C]
  const std::uint32_t* order;  // [B, C]
  GradientMatrix grad_x;       // [B, C]
  RankPlan plan;
  char* scratch;
};

template <typename T, int tile>
__global__ void __launch_bounds__(kRankThreads) soft_rank_kernel(const ForwardTask<T> task) {
  __shared__ SortEntry<T> shared[tile];
  __shared__ int pools;
  const RowMemory<T> memory(task.plan, task.scratch);
  const int cols = static_cast<int>(task.params.cols);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const double center = static_cast<double>(cols + 1) / 2;
  for (std::int64_t row = blockIdx.x; row < task.params.rows; row += gridDim.x) {
    T* const ranks = task.ranks + row * cols;
    std::uint32_t* const order = task.order + row * cols;
    const SortEntry<T>* sorted = sorted_row<T, tile>(task.x, row, cols, memory, shared);
    if (sorted == nullptr) {
      for (int j = thread; j < cols; j += threads) {
        ranks[j] = kNaN<T>;
        order[j] = kNaNRow;
      }
      continue;
    }
    const PooledRow<T> pooled = pooled_row(sorted, cols, task.params.strength, memory, pools);
    for (int k = thread; k < cols; k += threads) {
      order[k] = pooled.packed(k);
      ranks[sorted[k].index()] = static_cast<T>(pooled.rank(k) + center);
    }
  }
}

// How many threads of the block before this one have `flag`, and how many have it at all. All
// threads must come here.                                                       // room: [32]
__device__ __forceinline__ int flags_before(bool flag, int* room, int& total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned flags = __ballot_sync(0xffffffffu, flag);
  if (lane == 0) room[warp] = __popc(flags);
  __syncthreads();
  int before = __popc(flags & ((1u << lane) - 1));
  total = 0;
  for (unsigned other = 0; other < blockDim.x / 32; ++other) {
    if (other < warp) before += room[other];
    total += room[other];
  }
  __syncthreads();
  return before;
}

__global__ void __launch_bounds__(kRankThreads)
    soft_rank_backward_kernel(const BackwardTask task) {
  __shared__ int room[32];
  const RowMemory<double> memory(task.plan, task.scratch);
  const int cols = static_cast<int>(task.params.cols);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (std::int64_t row = blockIdx.x; row < task.params.rows; row += gridDim.x) {
    const std::uint32_t* const order = task.order + row * cols;
    const std::int64_t place = row * cols;
    if (order[0] == kNaNRow) {
      for (int j = thread; j < cols; j += threads) {
        task.grad_x.store(place + j, kNaN<double>);
      }
      continue;
    }
    int count = 0;
    for (int base = 0; base < cols; base += threads) {
      const int k = base + thread;
      const bool begins = k < cols && (order[k] & kBlockStart) != 0;
      int found;
      const int before = flags_before(begins, room, found);
      if (begins) memory.begins[count + before] = k;
      count += found;
    }
    __syncthreads();
    const Row<double, Any> grad(task.grad_ranks, row);
    const auto slope = [&](int k) { return grad.at(order[k] & kIndexMask); };
    double* const means = memory.sums;
    pool_means(
        memory.begins, count,
        [&](int pool) { return pool + 1 < count ? memory.begins[pool + 1] : cols; }, slope, means);
    for (int k = thread; k < cols; k += threads) {
      const double mean = means[pool_of(memory.begins, count, k)];
      const bool finite = (order[k] & kInfinite) == 0;
      task.grad_x.store(place + (order[k] & kIndexMask),
                        finite ? (slope(k) - mean) / task.params.strength : 0.0);
    }
    __syncthreads();  // the next row writes over the pools
  }
}

}  // namespace

cudaError_t launch_soft_rank(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                             std::uint32_t* order, const RankPlan& plan, char* scratch,
                             cudaStream_t stream) {
  return with_tile(x.dtype == DType::float64, plan, [&](auto type, auto tile) {
    using T = decltype(type);
    return launch_blocks(
        soft_rank_kernel<T, decltype(tile)::value>, plan, stream,
        ForwardTask<T>{params, x, static_cast<T*>(ranks), order, plan, scratch});
  });
}

cudaError_t launch_soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                                      const std::uint32_t* order, const GradientMatrix& grad_x,
                                      const RankPlan& plan, char* scratch, cudaStream_t stream) {
  return launch_blocks(soft_rank_backward_kernel, plan, stream,
                       BackwardTask{params, grad_ranks, order, grad_x, plan, scratch});
}

}  // namespace cuda
}  // namespace r2kd
