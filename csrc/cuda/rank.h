// Ranks along rows on the GPU: r2kd/rank.h with all addresses on the device. Nothing here allocates
// device memory or waits for the device: every call is one kernel on the stream that is given, and
// a CUDA graph can capture it.
#pragma once

#include "r2kd/rank.h"
#include "rank_plan.h"
#include "status.h"

namespace r2kd {
namespace cuda {

// scratch: as many bytes as `plan_rank` says, aligned to 16; nothing is in it afterwards. in_double
// of the plan: whether x or y is float64; in soft_rank_backward nothing depends on it.

CudaStatus spearman_forward(const SpearmanParams& params, const ConstMatrix& x,
                            const ConstMatrix& y, const std::uint8_t* mask,
                            std::int64_t mask_stride, void* rho, void* scratch, const Place& place);

CudaStatus spearman_backward(const SpearmanParams& params, const ConstMatrix& x,
                             const ConstMatrix& y, const std::uint8_t* mask,
                             std::int64_t mask_stride, const void* grad_rho,
                             std::int64_t grad_stride, void* grad_x, void* scratch,
                             const Place& place);

CudaStatus soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                             std::uint32_t* order, void* scratch, const Place& place);

CudaStatus soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                              const std::uint32_t* order, void* grad_x, DType dtype, void* scratch,
                              const Place& place);

}  // namespace cuda
}  // namespace r2kd
