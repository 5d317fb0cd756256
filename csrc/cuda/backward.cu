// Backward: p, q and g = dloss/dp of a row, sum_k p_k g_k, then p (g - sum) grad_loss / T.
//
// A row is shared by a warp (few classes), a block, or a cluster of blocks. p and g stay in shared
// memory between the two steps, so the logits are read once; each thread reads back only what it
// has written itself. Where a row does not fit, it is read twice.
#include "common.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct BackwardTask {
  Logits<T> logits;
  bool resident;
  int row_threads;  // threads of a block that share a row: 32, or all
  int ranks;        // blocks that share a row
  int span;         // columns of a row that each of them has, in whole steps of its threads
  T inverse_temperature;
  const T* grad_loss;  // []
  const T* stats;      // [6 B + 5 C]
  void* grad_student;  // [B, C] contiguous
};

// A number of the gradient, in the student's dtype.
template <typename S, typename T>
__device__ __forceinline__ void store_one(void* target, std::int64_t place, DType dtype, T value) {
  if constexpr (!std::is_same_v<S, Any>) {
    static_cast<S*>(target)[place] = narrowed<S>(value);
  } else if (dtype == DType::float64) {
    static_cast<double*>(target)[place] = static_cast<double>(value);
  } else if (dtype == DType::float32) {
    static_cast<float*>(target)[place] = static_cast<float>(value);
  } else if (dtype == DType::bfloat16) {
    static_cast<__nv_bfloat16*>(target)[place] = narrowed<__nv_bfloat16>(value);
  } else {
    static_cast<__half*>(target)[place] = narrowed<__half>(value);
  }
}

template <typename T, typename S, int V>
__device__ __forceinline__ void store_columns(const BackwardTask<T>& task, std::int64_t row,
                                              const Columns& columns, const T (&grad)[V]) {
  const std::int64_t place = row * task.logits.cols + columns.first;
  if constexpr (!std::is_same_v<S, Any>) {
    if (task.logits.vector) {
      S parts[V];
#pragma unroll
      for (int i = 0; i < V; ++i) parts[i] = narrowed<S>(grad[i]);
      uint4 word;
      memcpy(&word, parts, sizeof(word));
      *reinterpret_cast<uint4*>(static_cast<S*>(task.grad_student) + place) = word;
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < columns.count) {
      store_one<S>(task.grad_student, place + i * columns.step, task.logits.student.dtype, grad[i]);
    }
  }
}

// The numbers of a row that a thread needs.
template <typename T>
struct RowNumbers {
  T z_max, p_scale, y_max, q_scale, a, b;
  __device__ __forceinline__ explicit RowNumbers(const T* stats)  // [6]
      : z_max(stats[kStudentOrigin]),
        p_scale(stats[kStudentInvSum]),
        y_max(stats[kTeacherOrigin]),
        q_scale(stats[kTeacherInvSum]),
        a(stats[kRowTeacherCoef]),
        b(stats[kRowStudentCoef]) {}
};

// p and g in these columns, 0 past `count`.
template <typename T, typename S, int V>
__device__ __forceinline__ void p_and_g(const BackwardTask<T>& task, const Row<T, S>& student,
                                        const Row<T, S>& teacher, const RowNumbers<T>& row,
                                        const Columns& columns, T (&p)[V], T (&g)[V]) {
  const Logits<T>& in = task.logits;
  load_columns<T, S, V>(student, columns, in.vector, p);
  load_columns<T, S, V>(teacher, columns, in.vector, g);
  const std::int64_t cols = in.cols;
  const T* col_stats = task.stats + kRowStats * in.rows;  // [5, C]
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < columns.count) {
      const T pi = scaled_exp(p[i] - row.z_max, in.exp) * row.p_scale;
      const T qi = scaled_exp(g[i] - row.y_max, in.exp) * row.q_scale;
      ColumnSlope<T> col{};
      if (in.intra) {
        const T* place = col_stats + columns.first + i * columns.step;
        col.a = place[cols * kColTeacherCoef];
        col.b = place[cols * kColStudentCoef];
        if (in.centered) {
          col.mean_p = place[cols * kColStudentMean];
          col.mean_q = place[cols * kColTeacherMean];
          col.rest = place[cols * kColMeanRest];
        }
      }
      p[i] = pi;
      g[i] = slope(pi, qi, row.a, row.b, in.class_mean, in.centered, in.intra, col);
    }
  }
}

// The sum over all threads that share a row; room: [33].
template <typename T>
__device__ __forceinline__ T row_sum(const BackwardTask<T>& task, T x, T* room) {
  if (task.row_threads == 32) return warp_sum(x);
  x = block_sum(x, room);
#if __CUDA_ARCH__ >= 900
  if (task.ranks > 1) {
    auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) room[32] = x;
    cluster.sync();
    x = 0;
    for (int rank = 0; rank < task.ranks; ++rank) x += *cluster.map_shared_rank(room + 32, rank);
    cluster.sync();  // no block may change what others read, nor leave
  }
#endif
  return x;
}

template <typename T, typename S>
__global__ void __launch_bounds__(most_threads(kChunk<S>), kBlocks<T, S, most_threads(kChunk<S>)>)
    backward_kernel(const BackwardTask<T> task) {
  constexpr int V = kChunk<S>;
  extern __shared__ double shared[];
  __shared__ T room[33];
  const Logits<T>& in = task.logits;
  const int threads = task.row_threads;
  const int slot = static_cast<int>(threadIdx.x) / threads;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const int slots = static_cast<int>(blockDim.x) / threads;
  const int rank = static_cast<int>(blockIdx.x) % task.ranks;
  const int begin = rank * task.span, end = min(begin + task.span, in.cols);
  T* kept_p = reinterpret_cast<T*>(shared) + slot * 2 * task.span;  // [span], in order of threads
  T* kept_g = kept_p + task.span;                                   // [span]
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x / task.ranks) * slots + slot;
  if (row >= in.rows) return;  // whole warps; where warps meet, a block has one row

  if (!in.keeps(row)) {
    const T zeros[V] = {};
    for (int base = begin; base < end; base += threads * V) {
      const Columns columns = columns_of<V>(base, end, thread, threads, in.vector);
      if (columns.count > 0) store_columns<T, S, V>(task, row, columns, zeros);
    }
    return;
  }
  const Row<T, S> student(in.student, row), teacher(in.teacher, row);
  const RowNumbers<T> numbers(task.stats + row * kRowStats);
  T sum = 0, rest = 0;
  for (int base = begin; base < end; base += threads * V) {
    const Columns columns = columns_of<V>(base, end, thread, threads, in.vector);
    if (columns.count == 0) break;
    T p[V], g[V];
    p_and_g<T, S, V>(task, student, teacher, numbers, columns, p, g);
    T chunk = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      chunk += p[i] * g[i];
      if (task.resident) {
        kept_p[base - begin + i * threads + thread] = p[i];
        kept_g[base - begin + i * threads + thread] = g[i];
      }
    }
    add_to_split(sum, rest, chunk);
  }
  const T mean_g = row_sum(task, sum + rest, room);
  const T factor = *task.grad_loss * task.inverse_temperature;
  for (int base = begin; base < end; base += threads * V) {
    const Columns columns = columns_of<V>(base, end, thread, threads, in.vector);
    if (columns.count == 0) break;
    T p[V], g[V];
    if (task.resident) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        p[i] = kept_p[base - begin + i * threads + thread];
        g[i] = kept_g[base - begin + i * threads + thread];
      }
    } else {
      p_and_g<T, S, V>(task, student, teacher, numbers, columns, p, g);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = p[i] * (g[i] - mean_g) * factor;
    store_columns<T, S, V>(task, row, columns, g);
  }
}

// Lets the kernel have the shared memory and the clusters of a plan.
template <typename Kernel>
cudaError_t allow(Kernel kernel, const BackwardPlan& plan) {
  const cudaError_t error = allow_shared(kernel, plan.shared_bytes);
  if (error != cudaSuccess || plan.cluster <= 8) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

}  // namespace

cudaError_t clusters_fit(const Call& call, const BackwardPlan& plan, bool* fits) {
  return with_types(call, [&](auto type, auto storage) {
    const auto kernel = backward_kernel<decltype(type), decltype(storage)>;
    cudaError_t error = allow(kernel, plan);
    if (error != cudaSuccess) return error;
    const ClusterLaunch launch(plan.blocks, plan.threads, plan.shared_bytes, plan.cluster,
                               call.stream);
    int clusters = 0;
    error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config());
    *fits = clusters > 0;
    return error;
  });
}

cudaError_t launch_backward(const Call& call, const BackwardPlan& plan, const void* grad_loss,
                            const void* stats, void* grad_student) {
  return with_types(call, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    BackwardTask<T> task{logits_of<T, S>(call),
                         plan.resident,
                         plan.row_threads,
                         plan.cluster,
                         static_cast<int>(plan.span),
                         static_cast<T>(1.0 / call.params.temperature),
                         static_cast<const T*>(grad_loss),
                         static_cast<const T*>(stats),
                         grad_student};
    // Neighbours' columns in between: then the columns' statistics are read side by side as well.
    if (task.logits.intra || !aligned(grad_student)) task.logits.vector = false;
    const cudaError_t error = allow(backward_kernel<T, S>, plan);
    if (error != cudaSuccess) return error;
    if (plan.cluster > 1) {
      const ClusterLaunch launch(plan.blocks, plan.threads, plan.shared_bytes, plan.cluster,
                                 call.stream);
      return cudaLaunchKernelEx(&launch.config(), backward_kernel<T, S>, task);
    }
    backward_kernel<T, S><<<static_cast<unsigned>(plan.blocks), plan.threads, plan.shared_bytes,
                            call.stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace r2kd
