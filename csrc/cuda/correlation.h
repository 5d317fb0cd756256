// The correlation distance on the GPU. Nothing here allocates device memory or waits for the device:
// kernels are launched on the stream that is given, and a CUDA graph can capture every call.
#pragma once

#include <string>

#include "r2kd/correlation.h"
#include "status.h"

namespace r2kd {
namespace cuda {

// What a call would do: bytes of scratch that forward needs, launches, and the path.
struct Plan {
  std::int64_t scratch_bytes;
  int forward_launches;
  std::string forward;   // "tiles" or "rows"; "cluster of N" where N blocks share a row
  std::string backward;  // "warp", "block", "cluster of N", "stream"
};

// weighed: whether there is a mask or a sample weight. dtypes: of student and teacher.
CudaStatus plan_correlation(const CorrelationParams& params, DType student, DType teacher,
                            bool weighed, int device, Plan* plan);

// As correlation_forward and correlation_backward of r2kd/correlation.h, with all addresses on the
// device. scratch: what plan_correlation says, aligned to 16 bytes; nothing is in it afterwards.
CudaStatus correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                               const ConstMatrix& teacher, const std::uint8_t* mask,
                               std::int64_t mask_stride, const double* sample_weight, void* loss,
                               void* stats, void* scratch, const Place& place);
CudaStatus correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                                const ConstMatrix& teacher, const std::uint8_t* mask,
                                std::int64_t mask_stride, const void* grad_loss, const void* stats,
                                void* grad_student, const Place& place);

}  // namespace cuda
}  // namespace r2kd
