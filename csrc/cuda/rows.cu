// Forward of the rows for many classes: a block, or a cluster of blocks, reads a row once and needs
// no memory for it. Every thread has moments of its own, which are merged in fixed order.
#include "common.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct RowsTask {
  Logits<T> logits;
  RowWeights weights;
  double eps;
  int ranks;         // blocks that share a row
  int span;          // columns of a row that each of them has
  T* stats;          // [6 B + 5 C]
  double* row_sums;  // [number of blocks / ranks]: sum of w (1 - r) over the rows of each
};

template <typename T>
__device__ __forceinline__ RowMoments<T> from_lane(const RowMoments<T>& mine, int distance) {
  RowMoments<T> other;
  other.z_max = __shfl_down_sync(0xffffffffu, mine.z_max, distance);
  other.y_max = __shfl_down_sync(0xffffffffu, mine.y_max, distance);
  other.count = __shfl_down_sync(0xffffffffu, mine.count, distance);
  other.e = __shfl_down_sync(0xffffffffu, mine.e, distance);
  other.e_rest = __shfl_down_sync(0xffffffffu, mine.e_rest, distance);
  other.h = __shfl_down_sync(0xffffffffu, mine.h, distance);
  other.h_rest = __shfl_down_sync(0xffffffffu, mine.h_rest, distance);
  other.ee = __shfl_down_sync(0xffffffffu, mine.ee, distance);
  other.hh = __shfl_down_sync(0xffffffffu, mine.hh, distance);
  other.eh = __shfl_down_sync(0xffffffffu, mine.eh, distance);
  return other;
}

// Merges the moments of a warp's lanes into those of lane 0.
template <typename T>
__device__ __forceinline__ void merge_warp(RowMoments<T>& moments, bool centered,
                                           const ExpScale<T>& scale) {
#pragma unroll 1
  for (int distance = 16; distance > 0; distance /= 2) {
    moments.merge(from_lane(moments, distance), centered, scale);
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(most_threads(kChunk<S>), kBlocks<T, S, most_threads(kChunk<S>)>)
    rows_kernel(const RowsTask<T> task) {
  constexpr int V = kChunk<S>;
  __shared__ RowMoments<T> warps[most_threads(V) / 32];
  __shared__ RowMoments<T> own;  // of this block, for the first one of a cluster to read
  const Logits<T>& in = task.logits;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int rank = static_cast<int>(blockIdx.x) % task.ranks;
  const int begin = rank * task.span, end = min(begin + task.span, in.cols);
  const std::int64_t groups = gridDim.x / task.ranks;
  double row_loss = 0;
  for (std::int64_t row = blockIdx.x / task.ranks; row < in.rows; row += groups) {
    if (!in.keeps(row)) continue;
    const Row<T, S> student(in.student, row), teacher(in.teacher, row);
    auto moments = RowMoments<T>::none();
    for (int base = begin; base < end; base += threads * V) {
      const Columns columns = columns_of<V>(base, end, thread, threads, in.vector);
      if (columns.count == 0) break;
      T z[V], y[V];
      load_columns<T, S, V>(student, columns, in.vector, z);
      load_columns<T, S, V>(teacher, columns, in.vector, y);
      moments.add(z, y, columns.count, in.centered, in.exp);
    }
    __syncwarp();
    merge_warp(moments, in.centered, in.exp);
    if (thread % 32 == 0) warps[thread / 32] = moments;
    __syncthreads();
    if (thread < 32) {
      moments = thread < threads / 32 ? warps[thread] : RowMoments<T>::none();
      merge_warp(moments, in.centered, in.exp);
      if (thread == 0) own = moments;
    }
#if __CUDA_ARCH__ >= 900
    if (task.ranks > 1) {
      auto cluster = cooperative_groups::this_cluster();
      cluster.sync();
      if (rank == 0 && thread == 0) {
        for (int other = 1; other < task.ranks; ++other) {
          moments.merge(*cluster.map_shared_rank(&own, other), in.centered, in.exp);
        }
      }
      cluster.sync();  // no block may change what the first one reads, nor leave
    }
#endif
    if (rank == 0 && thread == 0) {
      const T p_scale = T(1) / moments.sum_e(in.centered);
      const T q_scale = T(1) / moments.sum_h(in.centered);
      const T r = store_row_statistics(
          moments.z_max, p_scale, moments.y_max, q_scale, moments.ee * p_scale * p_scale,
          moments.hh * q_scale * q_scale, moments.eh * p_scale * q_scale,
          static_cast<T>(task.weights.in_loss(row)), static_cast<T>(task.eps),
          task.stats + row * kRowStats);
      row_loss += task.weights.of(row) * (1.0 - static_cast<double>(r));
    }
    __syncthreads();  // `warps` is free again
  }
  if (rank == 0 && thread == 0) task.row_sums[blockIdx.x / task.ranks] = row_loss;
}

}  // namespace

cudaError_t launch_rows(const Call& call, const ForwardPlan& plan, void* stats, char* scratch) {
  return with_types(call, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const auto span = round_up(ceil_div(call.params.cols, plan.cluster), kChunk<S>);
    const RowsTask<T> task{logits_of<T, S>(call),
                           row_weights(call, scratch),
                           call.params.eps,
                           plan.cluster,
                           static_cast<int>(span),
                           static_cast<T*>(stats),
                           reinterpret_cast<double*>(scratch + plan.at_row_sums)};
    if (plan.cluster > 1) {
      const ClusterLaunch launch(std::int64_t{plan.row_sums} * plan.cluster, plan.row_threads, 0,
                                 plan.cluster, call.stream);
      return cudaLaunchKernelEx(&launch.config(), rows_kernel<T, S>, task);
    }
    rows_kernel<T, S><<<plan.row_sums, plan.row_threads, 0, call.stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace r2kd
