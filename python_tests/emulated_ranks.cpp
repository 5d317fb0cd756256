// A library for test_rank_emulated.py: the CUDA kernels of the ranks on the CPU, their plans, and
// steps of theirs by themselves.
#include <cuda_runtime.h>

#include "cuda/rank.h"

using namespace r2kd;

namespace r2kd::cuda {
const bool kCompiled = true;
}

namespace {

ConstMatrix matrix(const void* data, const std::int64_t* strides, int dtype) {
  return {data, strides[0], strides[1], static_cast<DType>(dtype)};
}

struct NeighbourTask {
  bool barrier;
  int* found;  // [64]
};

// found[i] = the number that thread i + 1 has written.
void neighbour_kernel(const NeighbourTask task) {
  __shared__ int numbers[64];
  numbers[threadIdx.x] = -1;
  __syncthreads();
  numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (task.barrier) __syncthreads();
  task.found[threadIdx.x] = numbers[(threadIdx.x + 1) % 64];
}

}  // namespace

extern "C" {

int neighbour(int thread, int barrier) {
  int found[64];
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(64);
  cudaLaunchKernelEx(&config, neighbour_kernel, NeighbourTask{barrier != 0, found});
  return found[thread];
}

void set_order(int backwards, unsigned most_blocks) {
  emulated::backwards = backwards != 0;
  emulated::most_blocks = most_blocks;
}

// out: [12]
void plan(int op, std::int64_t rows, std::int64_t cols, int in_double, std::int64_t* out) {
  const auto found = cuda::plan_rank(static_cast<cuda::RankOp>(op), rows, cols, in_double != 0);
  const std::int64_t numbers[] = {
      found.threads,    found.small,   found.merges,    found.blocks,    found.at_entries,  found.at_merged,
      found.at_sums, found.at_begins, found.at_y_ranks, found.at_slopes, found.block_bytes,
      found.scratch_bytes};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

int spearman(std::int64_t rows, std::int64_t cols, double eps, double strength, int soft,
             const void* x, const std::int64_t* x_strides, int x_dtype, const void* y,
             const std::int64_t* y_strides, int y_dtype, const std::uint8_t* mask,
             std::int64_t mask_stride, void* rho, void* scratch) {
  return cuda::spearman_forward({rows, cols, eps, strength, soft != 0},
                                matrix(x, x_strides, x_dtype), matrix(y, y_strides, y_dtype), mask,
                                mask_stride, rho, scratch, {0, 0})
      .code;
}

int spearman_backward(std::int64_t rows, std::int64_t cols, double eps, double strength,
                      const void* x, const std::int64_t* x_strides, int x_dtype, const void* y,
                      const std::int64_t* y_strides, int y_dtype, const std::uint8_t* mask,
                      std::int64_t mask_stride, const void* grad_rho, std::int64_t grad_stride,
                      void* grad_x, void* scratch) {
  return cuda::spearman_backward({rows, cols, eps, strength, true}, matrix(x, x_strides, x_dtype),
                                 matrix(y, y_strides, y_dtype), mask, mask_stride, grad_rho,
                                 grad_stride, grad_x, scratch, {0, 0})
      .code;
}

int soft_rank(std::int64_t rows, std::int64_t cols, double strength, const void* x,
              const std::int64_t* strides, int dtype, void* ranks, std::uint32_t* order,
              void* scratch) {
  return cuda::soft_rank_forward({rows, cols, strength}, matrix(x, strides, dtype), ranks, order,
                                 scratch, {0, 0})
      .code;
}

int soft_rank_backward(std::int64_t rows, std::int64_t cols, double strength, const void* grad,
                       const std::int64_t* strides, int grad_dtype, const std::uint32_t* order,
                       void* grad_x, int dtype, void* scratch) {
  return cuda::soft_rank_backward({rows, cols, strength}, matrix(grad, strides, grad_dtype), order,
                                  grad_x, static_cast<DType>(dtype), scratch, {0, 0})
      .code;
}

}  // extern "C"
