// The sparse layers on the GPU: r2kd/sparse.h with all addresses on the device. Nothing here
// allocates device memory or waits for the device: every call is one kernel on the stream that is
// given, and a CUDA graph can capture it. There is no scratch memory.
#pragma once

#include "csr_plan.h"
#include "status.h"

namespace r2kd {
namespace cuda {

// batch and the rows of the weight are at least 1; so is out_width.

CudaStatus csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight,
                      const void* bias, void* y, const Place& place);

CudaStatus csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,
                      const void* bias, void* y, bool channels_last, const Place& place);

}  // namespace cuda
}  // namespace r2kd
