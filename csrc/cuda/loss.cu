// The loss from the partial sums, where finish_kernel does not run or needs more than one block.
#include "finish.cuh"

namespace r2kd {
namespace cuda {
namespace {

constexpr int kThreads = 512;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const LossTask task, const double* col_sums, std::int64_t col_parts, T* loss) {
  __shared__ double room[32];
  const double col_sum = total_of(col_sums, col_parts, room);  // col_sums: [col_parts]
  store_loss(task, col_sum, loss, room);
}

}  // namespace

cudaError_t launch_loss(const Call& call, const ForwardPlan& plan, void* loss,
                        const char* scratch) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    loss_kernel<<<1, kThreads, 0, call.stream>>>(
        loss_task(call, plan, scratch),
        reinterpret_cast<const double*>(scratch + plan.at_col_sums), plan.col_sums,
        static_cast<T*>(loss));
    return cudaGetLastError();
  };
  return call.in_double() ? launch(double{}) : launch(float{});
}

}  // namespace cuda
}  // namespace r2kd
