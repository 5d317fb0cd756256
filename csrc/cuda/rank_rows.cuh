// What the kernels of the ranks share. A block has a row: it sorts it, in shared memory or in runs
// that it merges in scratch memory, one of its threads finds the pools, and all the rest is
// parallel. Blocks take row after row, so that scratch memory is theirs and not the batch's.
#pragma once

#include "common.cuh"
#include "rank_plan.h"

namespace r2kd {
namespace cuda {

// The scratch memory of one block.
template <typename T>
struct RowMemory {
  SortEntry<T>* entries;  // [C]
  SortEntry<T>* merged;   // [C]
  double* sums;           // [C]
  int* begins;            // [C]
  double* y_ranks;        // [C]
  double* slopes;         // [C]

  __device__ __forceinline__ RowMemory(const RankPlan& plan, char* scratch) {
    char* own = scratch + blockIdx.x * plan.block_bytes;
    entries = reinterpret_cast<SortEntry<T>*>(own + plan.at_entries);
    merged = reinterpret_cast<SortEntry<T>*>(own + plan.at_merged);
    sums = reinterpret_cast<double*>(own + plan.at_sums);
    begins = reinterpret_cast<int*>(own + plan.at_begins);
    y_ranks = reinterpret_cast<double*>(own + plan.at_y_ranks);
    slopes = reinterpret_cast<double*>(own + plan.at_slopes);
  }
};

// Where a gradient goes, whose dtype is known when the kernel runs.
struct GradientMatrix {
  void* data;  // [B, C] contiguous
  DType dtype;

  __device__ __forceinline__ void store(std::int64_t place, double x) const {
    switch (dtype) {
      case DType::float64:
        static_cast<double*>(data)[place] = x;
        return;
      case DType::float32:
        static_cast<float*>(data)[place] = static_cast<float>(x);
        return;
      case DType::bfloat16:
        static_cast<__nv_bfloat16*>(data)[place] = narrowed<__nv_bfloat16>(static_cast<float>(x));
        return;
      default:
        static_cast<__half*>(data)[place] = narrowed<__half>(static_cast<float>(x));
    }
  }
};

// Sorts shared[0, width) by a bitonic network; width is a power of two. All threads must come here.
template <typename T>
__device__ __forceinline__ void sort_tile(SortEntry<T>* shared, int width) {
  for (int size = 2; size <= width; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < width / 2;
           pair += static_cast<int>(blockDim.x)) {
        const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        const SortEntry<T> a = shared[low], b = shared[high];
        if (b.before(a) == ((low & size) == 0)) {
          shared[low] = b;
          shared[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The row in order: in `shared` where it fits, else in scratch memory; null where it holds a NaN.
// All threads must come here, and get the same.
template <typename T, int tile>
__device__ __forceinline__ const SortEntry<T>* sorted_row(const ConstMatrix& matrix,
                                                          std::int64_t row, int cols,
                                                          const RowMemory<T>& memory,
                                                          SortEntry<T> (&shared)[tile]) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const Row<T, Any> source(matrix, row);
  bool nan = false;
  for (int begin = 0; begin < cols; begin += tile) {
    __syncthreads();  // nobody reads what was here before
    const int count = min(tile, cols - begin);
    int width = 1;
    while (width < count) width *= 2;
    for (int k = thread; k < width; k += threads) {
      if (k < count) {
        const T value = source.at(begin + k);
        nan |= value != value;
        shared[k] = SortEntry<T>::of(value, static_cast<std::uint32_t>(begin + k));
      } else {
        shared[k] = SortEntry<T>::last();
      }
    }
    __syncthreads();
    sort_tile<T>(shared, width);
    if (cols <= tile) return __syncthreads_or(nan) ? nullptr : shared;
    for (int k = thread; k < count; k += threads) memory.entries[begin + k] = shared[k];
  }
  if (__syncthreads_or(nan)) return nullptr;
  const SortEntry<T>* from = memory.entries;
  SortEntry<T>* to = memory.merged;
  for (std::int64_t run = tile; run < cols; run *= 2) {
    for (std::int64_t begin = std::int64_t{thread} * kMergedEntries; begin < cols;
         begin += std::int64_t{threads} * kMergedEntries) {
      const std::int64_t end = min(begin + kMergedEntries, std::int64_t{cols});
      merge_runs(from, cols, run, begin, end, to);
    }
    __syncthreads();
    SortEntry<T>* const merged = to;
    to = const_cast<SortEntry<T>*>(from);
    from = merged;
  }
  return from;
}

// The pools of a sorted row, in `memory`. All threads must come here, and get the same.
template <typename T>
__device__ __forceinline__ PooledRow<T> pooled_row(const SortEntry<T>* sorted, int cols,
                                                   double strength, const RowMemory<T>& memory,
                                                   int& room) {  // shared
  const SortedRow<T> row(sorted, cols);
  if (threadIdx.x == 0) room = find_pools(row, strength / 2, memory.sums, memory.begins);
  __syncthreads();
  return {row, memory.sums, memory.begins, room, strength};
}

// means[i] = mean of g(k) over the places of pool i; a warp takes a pool.    // means: [count]
template <typename Gradient, typename End>
__device__ __forceinline__ void pool_means(const int* begins, int count, const End& end_of,
                                           const Gradient& g, double* means) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int pool = static_cast<int>(threadIdx.x) / 32; pool < count;
       pool += static_cast<int>(blockDim.x) / 32) {
    const int begin = begins[pool], end = end_of(pool);
    double sum = 0;
    for (int k = begin + lane; k < end; k += 32) sum += g(k);
    sum = warp_sum(sum);
    if (lane == 0) means[pool] = sum / static_cast<double>(end - begin);
  }
  __syncthreads();
}

// Launches `kernel` on the blocks of a plan.
template <typename Task>
cudaError_t launch_blocks(void (*kernel)(Task), const RankPlan& plan, cudaStream_t stream,
                          const Task& task) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, task);
}

// What the entries of Spearman's correlation give to its kernels.
struct SpearmanTask {
  SpearmanParams params;
  ConstMatrix x, y;          // [B, C]
  const std::uint8_t* mask;  // [B] or null
  std::int64_t mask_stride;
  RankPlan plan;
  char* scratch;

  __device__ __forceinline__ bool keeps(std::int64_t row) const {
    return mask == nullptr || mask[row * mask_stride] != 0;
  }
};

// rho: [B]; grad_rho: [B] of the same type.
cudaError_t launch_hard_spearman(const SpearmanTask& task, bool in_double, void* rho,
                                 cudaStream_t stream);
cudaError_t launch_soft_spearman(const SpearmanTask& task, bool in_double, void* rho,
                                 cudaStream_t stream);
cudaError_t launch_soft_spearman_backward(const SpearmanTask& task, bool in_double,
                                          const void* grad_rho, std::int64_t grad_stride,
                                          const GradientMatrix& grad_x, cudaStream_t stream);
cudaError_t launch_soft_rank(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                             std::uint32_t* order, const RankPlan& plan, char* scratch,
                             cudaStream_t stream);
cudaError_t launch_soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                                      const std::uint32_t* order, const GradientMatrix& grad_x,
                                      const RankPlan& plan, char* scratch, cudaStream_t stream);

// Calls run(T{}, tile) with the type that is sorted and the size of the tile, as a constant.
template <typename Run>
cudaError_t with_tile(bool in_double, const RankPlan& plan, const Run& run) {
  const auto sized = [&](auto type) {
    using T = decltype(type);
    if (plan.small) return run(type, std::integral_constant<int, kSmallSortTile<T>>{});
    return run(type, std::integral_constant<int, kSortTile<T>>{});
  };
  return in_double ? sized(double{}) : sized(float{});
}

}  // namespace cuda
}  // namespace r2kd
