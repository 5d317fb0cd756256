// A library for test_sparse_emulated.py: the CUDA kernels of the sparse layers on the CPU, and their
// plans.
#include <cuda_runtime.h>

#include "cuda/sparse.h"

using namespace r2kd;

namespace r2kd::cuda {
const bool kCompiled = true;
}

namespace {

// numbers: batch, C, H, W, R, H', W', kernel, stride, padding, dilation, groups
Conv2dParams conv2d_params(const std::int64_t* numbers) {
  const std::int64_t* n = numbers;
  return {n[0], n[1], n[2],          n[3],           n[4],           n[5],
          n[6], {n[7], n[8]}, {n[9], n[10]}, {n[11], n[12]}, {n[13], n[14]}, n[15]};
}

}  // namespace

extern "C" {

void set_up(int backwards, unsigned most_blocks, int multiprocessors) {
  emulated::multiprocessors = multiprocessors;
  emulated::backwards = backwards != 0;
  emulated::most_blocks = most_blocks;
}

// out: [6]
void plan_linear(std::int64_t batch, std::int64_t rows, std::int64_t cols, int multiprocessors,
                 std::int64_t* out) {
  const auto plan = cuda::plan_csr_linear(batch, rows, cols, multiprocessors);
  const std::int64_t numbers[] = {plan.rows,      plan.samples, plan.columns,
                                  plan.row_tiles, plan.tiles,   plan.shared_bytes};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

// out: [17]
void plan_conv2d(const std::int64_t* sizes, int multiprocessors, std::int64_t* out) {
  const auto plan = cuda::plan_csr_conv2d(conv2d_params(sizes), multiprocessors);
  const std::int64_t numbers[] = {
      plan.rows,      plan.bands,      plan.band_rows,    plan.lane_blocks,  plan.tile_rows,
      plan.tile_cols, plan.tiles_down, plan.tiles_across, plan.whole,        plan.patch_cols,
      plan.positions, plan.unit_columns, plan.units,      plan.staged_units, plan.row_tiles,
      plan.tiles,     plan.shared_bytes};
  std::copy(std::begin(numbers), std::end(numbers), out);
}

int csr_linear(std::int64_t batch, std::int64_t rows, std::int64_t cols, const void* x,
               std::int64_t row_stride, std::int64_t col_stride, int dtype, const void* values,
               const std::int32_t* columns, const std::int32_t* row_offsets, const void* bias,
               void* y) {
  return cuda::csr_linear({x, row_stride, col_stride, static_cast<DType>(dtype)}, batch,
                          {values, columns, row_offsets, rows, cols}, bias, y, {0, 0})
      .code;
}

int csr_conv2d(const std::int64_t* sizes, const void* x, const std::int64_t* strides, int dtype,
               const void* values, const std::int32_t* columns, const std::int32_t* row_offsets,
               const void* bias, void* y, int channels_last) {
  const Conv2dParams params = conv2d_params(sizes);
  const std::int64_t cols =
      params.channels / params.groups * params.kernel[0] * params.kernel[1];
  return cuda::csr_conv2d(params,
                          {x, {strides[0], strides[1], strides[2], strides[3]},
                           static_cast<DType>(dtype)},
                          {values, columns, row_offsets, params.out_channels, cols}, bias, y,
                          channels_last != 0, {0, 0})
      .code;
}

}  // extern "C"
