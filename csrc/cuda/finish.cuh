// What ends a forward pass, in whichever kernel: the partial sums of both terms to the loss.
#pragma once

#include "common.cuh"

namespace r2kd {
namespace cuda {

struct LossTask {
  RowWeights weights;
  const double* row_sums;  // [row_parts]: sums of w (1 - r) over rows
  int row_parts;
  double intra_weight;
  double cols;
};

// The sum of `count` numbers by the threads of a block. All threads must come here.
__device__ __forceinline__ double total_of(const double* numbers, std::int64_t count,
                                           double* room) {  // [32]
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += numbers[i];
  return block_sum(sum, room);
}

// loss: [] of type T. col_sum: sum of 1 - r over all columns.
template <typename T>
__device__ __forceinline__ void store_loss(const LossTask& task, double col_sum, T* loss,
                                           double* room) {  // [32]
  double value = 0;
  if (task.weights.inter_weight != 0) {
    const double sum = total_of(task.row_sums, task.row_parts, room);
    const double total = task.weights.total();
    if (total != 0) value += task.weights.inter_weight * sum / total;
  }
  if (task.intra_weight != 0) value += task.intra_weight * col_sum / task.cols;
  if (task.weights.totals != nullptr && task.weights.totals[1] == 0) value = 0;  // no row is kept
  if (threadIdx.x == 0) *loss = static_cast<T>(value);
}

inline LossTask loss_task(const Call& call, const ForwardPlan& plan, const char* scratch) {
  return {row_weights(call, scratch),
          reinterpret_cast<const double*>(scratch + plan.at_row_sums), plan.row_sums,
          call.params.intra_weight, static_cast<double>(call.params.cols)};
}

}  // namespace cuda
}  // namespace r2kd
