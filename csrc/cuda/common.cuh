// What the kernels of the correlation share: how logits are read, sums over threads, launches.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "plan.h"
#include "r2kd/correlation_moments.h"

namespace r2kd {
namespace cuda {

// Where a dtype is known when the kernel runs, and not when it is compiled: mixed dtypes, float64.
struct Any {};

template <typename S>
constexpr int kChunk = sizeof(S) == 2 ? 8 : 4;  // numbers that a thread takes at a time: 16 bytes
template <>
inline constexpr int kChunk<Any> = 4;

// So many threads to a multiprocessor that each has 64 registers, 80 where it takes 8 numbers at a
// time, 128 in double. Left alone, the compiler gives some kernels fewer, and spills.
template <typename T, typename S>
constexpr int kThreadsTogether = sizeof(T) == 8 ? 512 : kChunk<S> == 8 ? 768 : 1024;
template <typename T, typename S, int threads>
constexpr int kBlocks = kThreadsTogether<T, S> / threads;

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }

template <typename S, typename T>
__device__ __forceinline__ S narrowed(T x) {
  if constexpr (sizeof(S) == 2) {
    if constexpr (std::is_same_v<S, __half>) return __float2half_rn(static_cast<float>(x));
    else return __float2bfloat16_rn(static_cast<float>(x));
  } else {
    return static_cast<S>(x);
  }
}

// The matrices and scalars of one call, as the entry point has them.
struct Call {
  CorrelationParams params;
  ConstMatrix student, teacher;  // [B, C]
  const std::uint8_t* mask;      // [B] or null
  std::int64_t mask_stride;
  const double* sample_weight;   // [B] or null; forward only
  cudaStream_t stream;

  bool in_double() const {
    return student.dtype == DType::float64 || teacher.dtype == DType::float64;
  }
  bool weighed() const { return mask != nullptr || sample_weight != nullptr; }
};

// The same as a kernel takes it.
template <typename T>
struct Logits {
  ConstMatrix student, teacher;  // [B, C]
  const std::uint8_t* mask;      // [B] or null
  std::int64_t mask_stride;
  std::int64_t rows;
  int cols;
  bool vector;  // rows are whole and aligned chunks of 16 bytes
  bool centered, intra;
  T class_mean;  // 1 / C
  ExpScale<T> exp;

  __device__ __forceinline__ bool keeps(std::int64_t row) const {
    return mask == nullptr || mask[row * mask_stride] != 0;
  }
};

inline bool aligned(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

inline bool in_chunks(const ConstMatrix& matrix, std::int64_t cols, int chunk) {
  return matrix.col_stride == 1 && cols % chunk == 0 && matrix.row_stride % chunk == 0 &&
         aligned(matrix.data);
}

template <typename T, typename S>
Logits<T> logits_of(const Call& call) {
  Logits<T> logits;
  logits.student = call.student;
  logits.teacher = call.teacher;
  logits.mask = call.mask;
  logits.mask_stride = call.mask_stride;
  logits.rows = call.params.rows;
  logits.cols = static_cast<int>(call.params.cols);
  logits.vector = !std::is_same_v<S, Any> && in_chunks(call.student, call.params.cols, kChunk<S>) &&
                  in_chunks(call.teacher, call.params.cols, kChunk<S>);
  logits.centered = call.params.centered;
  logits.intra = call.params.intra_weight != 0;
  logits.class_mean = static_cast<T>(1.0 / static_cast<double>(call.params.cols));
  logits.exp = exp_scale<T>(call.params.temperature, kLargestPower<T>);
  return logits;
}

// Calls run(T{}, S{}) with the accumulating type and the stored type of a call.
template <typename Run>
cudaError_t with_types(const Call& call, const Run& run) {
  if (call.in_double()) return run(double{}, Any{});
  if (call.student.dtype != call.teacher.dtype) return run(float{}, Any{});
  if (call.student.dtype == DType::bfloat16) return run(float{}, __nv_bfloat16{});
  if (call.student.dtype == DType::float16) return run(float{}, __half{});
  return run(float{}, float{});
}

// One row of a matrix.
template <typename T, typename S>
struct Row {
  const ConstMatrix& matrix;  // in constant memory: its stride takes no registers
  const char* data;           // [C]

  __device__ __forceinline__ Row(const ConstMatrix& from, std::int64_t row)
      : matrix(from),
        data(static_cast<const char*>(from.data) + row * from.row_stride * element_bytes()) {}

  __device__ __forceinline__ int element_bytes() const {
    if constexpr (std::is_same_v<S, Any>) {
      return matrix.dtype == DType::float64 ? 8 : matrix.dtype == DType::float32 ? 4 : 2;
    } else {
      return sizeof(S);
    }
  }

  __device__ __forceinline__ T at(std::int64_t j) const {
    const char* place = data + j * matrix.col_stride * element_bytes();
    if constexpr (std::is_same_v<S, Any>) {
      switch (matrix.dtype) {
        case DType::float64:
          return static_cast<T>(*reinterpret_cast<const double*>(place));
        case DType::float32:
          return static_cast<T>(*reinterpret_cast<const float*>(place));
        case DType::bfloat16:
          return static_cast<T>(widened(*reinterpret_cast<const __nv_bfloat16*>(place)));
        default:
          return static_cast<T>(widened(*reinterpret_cast<const __half*>(place)));
      }
    } else {
      return static_cast<T>(widened(*reinterpret_cast<const S*>(place)));
    }
  }
};

// Which columns a thread takes in one step of its walk along a row: `count` of them, `step` apart.
// In whole chunks they are neighbours, which it reads at once; else its neighbours' come between.
struct Columns {
  int first, step, count;
};

template <int V>
__device__ __forceinline__ Columns columns_of(int begin, int end, int thread, int threads,
                                              bool vector) {
  Columns columns;
  columns.first = begin + (vector ? thread * V : thread);
  columns.step = vector ? 1 : threads;
  columns.count = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) columns.count += columns.first + i * columns.step < end;
  return columns;
}

// The numbers of a row in these columns, 0 past `count`.
template <typename T, typename S, int V>
__device__ __forceinline__ void load_columns(const Row<T, S>& row, const Columns& columns,
                                             bool vector, T (&out)[V]) {
  if constexpr (!std::is_same_v<S, Any>) {
    if (vector) {
      if (columns.count == 0) return;
      const uint4 word = *reinterpret_cast<const uint4*>(row.data + columns.first * sizeof(S));
      S parts[V];
      memcpy(parts, &word, sizeof(word));
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = static_cast<T>(widened(parts[i]));
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    out[i] = i < columns.count ? row.at(columns.first + i * columns.step) : T(0);
  }
}

// Sums whose order the shape alone decides; every thread gets them.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  }
  return x;
}
template <typename T>
__device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x = larger(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  return x;
}

// room: [32], free again after the call. All threads of a one-dimensional block must come here.
template <typename T>
__device__ __forceinline__ T block_sum(T x, T* room) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  T total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += room[warp];
  __syncthreads();
  return total;
}

// One column's moments over one part; target: its first number, the next one `cols` further on.
template <typename T>
__device__ __forceinline__ void store_partial(T* target, std::int64_t cols,
                                              const ColumnBlock<T>& block, bool centered) {
  target[0] = block.pp;
  target[cols] = block.qq;
  target[2 * cols] = block.pq;
  if (centered) {
    target[3 * cols] = block.mean_p;
    target[4 * cols] = block.rest_p;
    target[5 * cols] = block.mean_q;
    target[6 * cols] = block.rest_q;
  }
}

// Weights of the rows in the row term.
struct RowWeights {
  const double* sample_weight;  // [B] or null
  const double* totals;         // [2]: weight and number of the kept rows; null where all count
  double inter_weight;
  double rows;

  __device__ __forceinline__ double total() const { return totals == nullptr ? rows : totals[0]; }
  __device__ __forceinline__ double of(std::int64_t row) const {
    return sample_weight == nullptr ? 1.0 : sample_weight[row];
  }
  // What r of this row is multiplied by in the loss, with its sign turned.
  __device__ __forceinline__ double in_loss(std::int64_t row) const {
    const double sum = total();
    return inter_weight == 0 || sum == 0 ? 0 : inter_weight * of(row) / sum;
  }
};

// Lets a kernel have more dynamic shared memory than the 48 KiB that it may have unasked.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// A launch of blocks in clusters. Grids and clusters are one-dimensional.
class ClusterLaunch {
 public:
  ClusterLaunch(std::int64_t blocks, int threads, int shared_bytes, int cluster,
                cudaStream_t stream) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute_.val.clusterDim.y = 1;
    attribute_.val.clusterDim.z = 1;
    config_.gridDim = dim3(static_cast<unsigned>(blocks));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config_.stream = stream;
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
  const cudaLaunchConfig_t& config() const { return config_; }

 private:
  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

// The launchers, one per kernel file. `scratch` is laid out as the plan says.
cudaError_t launch_weigh(const Call& call, char* scratch);
cudaError_t launch_tile(const Call& call, const ForwardPlan& plan, void* stats, char* scratch);
cudaError_t launch_rows(const Call& call, const ForwardPlan& plan, void* stats, char* scratch);
cudaError_t launch_columns(const Call& call, const ForwardPlan& plan, const void* stats,
                           char* scratch);
cudaError_t launch_finish(const Call& call, const ForwardPlan& plan, void* stats, void* loss,
                          char* scratch);
cudaError_t launch_loss(const Call& call, const ForwardPlan& plan, void* loss, const char* scratch);
cudaError_t launch_backward(const Call& call, const BackwardPlan& plan, const void* grad_loss,
                            const void* stats, void* grad_student);

// Whether the device can hold a cluster of this backward pass at all.
cudaError_t clusters_fit(const Call& call, const BackwardPlan& plan, bool* fits);

inline RowWeights row_weights(const Call& call, const char* scratch) {
  return {call.sample_weight, call.weighed() ? reinterpret_cast<const double*>(scratch) : nullptr,
          call.params.inter_weight, static_cast<double>(call.params.rows)};
}

}  // namespace cuda
}  // namespace r2kd
