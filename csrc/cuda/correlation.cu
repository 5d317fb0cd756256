// The entries of the correlation on the GPU: which kernels a call launches, in which order.
#include "correlation.h"

#include <atomic>

#include "common.cuh"
#include "device.h"
#include "guard.cuh"

namespace r2kd {
namespace cuda {

const bool kCompiled = true;

namespace {

// The limits of `device`, which is the current one. Asked for once: that takes longer than a launch.
cudaError_t limits_of(int device, DeviceLimits* limits) {
  constexpr int kRemembered = 64;
  static std::atomic<int> known_shared[kRemembered], known_blocks[kRemembered];
  const bool remembered = device >= 0 && device < kRemembered;
  if (remembered) {
    limits->most_blocks = known_blocks[device].load(std::memory_order_acquire);
    limits->shared_bytes = known_shared[device].load(std::memory_order_relaxed);
    if (limits->most_blocks != 0) return cudaSuccess;
  }
  int architecture = 0;
  cudaError_t error = cudaDeviceGetAttribute(&limits->shared_bytes,
                                             cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) {
    error = static_cast<cudaError_t>(compiled_architecture(&architecture));
  }
  limits->most_blocks = architecture >= 90 ? 16 : 1;
  if (remembered && error == cudaSuccess) {
    known_shared[device].store(limits->shared_bytes, std::memory_order_relaxed);
    known_blocks[device].store(limits->most_blocks, std::memory_order_release);
  }
  return error;
}

int chunk_of(const Call& call) {
  const bool halves = call.student.dtype == DType::bfloat16 || call.student.dtype == DType::float16;
  return halves && call.student.dtype == call.teacher.dtype ? 8 : 4;
}

std::string cluster_of(int blocks) { return "cluster of " + std::to_string(blocks); }

}  // namespace

CudaStatus plan_correlation(const CorrelationParams& params, DType student, DType teacher,
                            bool weighed, int device, Plan* plan) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return status_of(guard.error(), kPreparing);
  DeviceLimits limits;
  const cudaError_t error = limits_of(device, &limits);
  if (error != cudaSuccess) return status_of(error, kPreparing);
  Call call{};
  call.student.dtype = student;
  call.teacher.dtype = teacher;
  const ForwardPlan forward =
      plan_forward(params, call.in_double(), chunk_of(call), weighed, limits);
  const BackwardPlan backward = plan_backward(params, call.in_double(), chunk_of(call), limits);
  plan->scratch_bytes = forward.scratch_bytes;
  plan->forward_launches = forward.launches;
  plan->forward = forward.tiles         ? "tiles"
                  : forward.cluster > 1 ? "rows, " + cluster_of(forward.cluster)
                                        : "rows";
  plan->backward = !backward.resident          ? "stream"
                   : backward.cluster > 1      ? cluster_of(backward.cluster)
                   : backward.row_threads == 32 ? "warp"
                                                : "block";
  return {};
}

CudaStatus correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                               const ConstMatrix& teacher, const std::uint8_t* mask,
                               std::int64_t mask_stride, const double* sample_weight, void* loss,
                               void* stats, void* scratch, const Place& place) {
  const DeviceGuard guard(place.device);
  if (guard.error() != cudaSuccess) return status_of(guard.error(), kPreparing);
  DeviceLimits limits;
  cudaError_t error = limits_of(place.device, &limits);
  if (error != cudaSuccess) return status_of(error, kPreparing);
  const Call call{params,        student, teacher, mask, mask_stride,
                  sample_weight, reinterpret_cast<cudaStream_t>(place.stream)};
  const ForwardPlan plan =
      plan_forward(params, call.in_double(), chunk_of(call), call.weighed(), limits);
  const bool intra = params.intra_weight != 0;
  char* memory = static_cast<char*>(scratch);

  if (call.weighed()) error = launch_weigh(call, memory);
  if (error != cudaSuccess) return status_of(error, "weigh_kernel");
  error = plan.tiles ? launch_tile(call, plan, stats, memory)
                     : launch_rows(call, plan, stats, memory);
  if (error != cudaSuccess) return status_of(error, plan.tiles ? "tile_kernel" : "rows_kernel");
  if (intra && !plan.tiles) error = launch_columns(call, plan, stats, memory);
  if (error != cudaSuccess) return status_of(error, "columns_kernel");
  if (intra) error = launch_finish(call, plan, stats, loss, memory);
  if (error != cudaSuccess) return status_of(error, "finish_kernel");
  if (plan.col_sums != 1) error = launch_loss(call, plan, loss, memory);
  return status_of(error, "loss_kernel");
}

CudaStatus correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                                const ConstMatrix& teacher, const std::uint8_t* mask,
                                std::int64_t mask_stride, const void* grad_loss, const void* stats,
                                void* grad_student, const Place& place) {
  const DeviceGuard guard(place.device);
  if (guard.error() != cudaSuccess) return status_of(guard.error(), kPreparing);
  DeviceLimits limits;
  cudaError_t error = limits_of(place.device, &limits);
  if (error != cudaSuccess) return status_of(error, kPreparing);
  const Call call{params,  student, teacher, mask, mask_stride,
                  nullptr, reinterpret_cast<cudaStream_t>(place.stream)};
  BackwardPlan plan = plan_backward(params, call.in_double(), chunk_of(call), limits);
  if (plan.cluster > 8) {
    // More blocks than every such GPU promises; this one may not have room for them together.
    bool fits = false;
    error = clusters_fit(call, plan, &fits);
    if (error != cudaSuccess) return status_of(error, "backward_kernel");
    limits.most_blocks = 8;
    if (!fits) plan = plan_backward(params, call.in_double(), chunk_of(call), limits);
  }
  return status_of(launch_backward(call, plan, grad_loss, stats, grad_student), "backward_kernel");
}

}  // namespace cuda
}  // namespace r2kd
