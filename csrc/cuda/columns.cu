// The columns' partial moments for many classes, from the logits and the rows' statistics: a thread
// takes one column over the rows of one part.
#include "common.cuh"

namespace r2kd {
namespace cuda {
namespace {

template <typename T>
struct ColumnsTask {
  Logits<T> logits;
  std::int64_t part_rows;
  const T* stats;  // [6 B + 5 C]
  double* counts;  // [P]: kept rows of each part
  T* partials;     // [P, M, C]
};

template <typename T, typename S>
__global__ void __launch_bounds__(kColumnThreads, kBlocks<T, float, kColumnThreads>)
    columns_kernel(const ColumnsTask<T> task) {
  const Logits<T>& in = task.logits;
  const int j = static_cast<int>(blockIdx.x) * kColumnThreads + static_cast<int>(threadIdx.x);
  if (j >= in.cols) return;
  const std::int64_t part = blockIdx.y;
  const std::int64_t begin = part * task.part_rows;
  const std::int64_t end = min(begin + task.part_rows, in.rows);
  ColumnTotal<T> total{};
  T rows = 0;
  for (std::int64_t first = begin; first < end; first += kColumnBlockRows) {
    const std::int64_t last = min(first + kColumnBlockRows, end);
    ColumnBlock<T> block{};
    T block_rows = 0;
#pragma unroll 4
    for (std::int64_t row = first; row < last; ++row) {
      if (!in.keeps(row)) continue;
      const T* stats = task.stats + row * kRowStats;
      const T z = Row<T, S>(in.student, row).at(j), y = Row<T, S>(in.teacher, row).at(j);
      const T e = scaled_exp(z - stats[kStudentOrigin], in.exp);
      const T h = scaled_exp(y - stats[kTeacherOrigin], in.exp);
      const T p_scale = stats[kStudentInvSum], q_scale = stats[kTeacherInvSum];
      if (in.centered) {
        const T inverse = inverse_of_count(block_rows + T(1));
        block.add_centered(e, p_scale, h, q_scale, inverse, block_rows * inverse);
      } else {
        block.add(e * p_scale, h * q_scale);
      }
      block_rows += T(1);
    }
    total.merge(block, rows, block_rows, in.centered);
    rows += block_rows;
  }
  T* partial = task.partials + part * moment_count(in.centered) * in.cols;
  store_partial(partial + j, in.cols, total.rounded(), in.centered);
  if (j == 0) task.counts[part] = static_cast<double>(rows);
}

}  // namespace

cudaError_t launch_columns(const Call& call, const ForwardPlan& plan, const void* stats,
                           char* scratch) {
  return with_types(call, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const ColumnsTask<T> task{logits_of<T, S>(call), plan.part_rows, static_cast<const T*>(stats),
                              reinterpret_cast<double*>(scratch + plan.at_counts),
                              reinterpret_cast<T*>(scratch + plan.at_partials)};
    const dim3 grid(static_cast<unsigned>(ceil_div(call.params.cols, kColumnThreads)),
                    static_cast<unsigned>(plan.parts));
    columns_kernel<T, S><<<grid, kColumnThreads, 0, call.stream>>>(task);
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace r2kd
