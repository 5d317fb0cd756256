// The entries of the ranks on the GPU: which kernel a call launches.
#include "rank.h"

#include "guard.cuh"
#include "rank_rows.cuh"

namespace r2kd {
namespace cuda {
namespace {

bool in_double(const ConstMatrix& x, const ConstMatrix& y) {
  return x.dtype == DType::float64 || y.dtype == DType::float64;
}

}  // namespace

CudaStatus spearman_forward(const SpearmanParams& params, const ConstMatrix& x,
                            const ConstMatrix& y, const std::uint8_t* mask,
                            std::int64_t mask_stride, void* rho, void* scratch,
                            const Place& place) {
  const bool wide = in_double(x, y);
  const RankOp op = params.soft ? RankOp::soft_spearman : RankOp::hard_spearman;
  const SpearmanTask task{params, x, y, mask, mask_stride,
                          plan_rank(op, params.rows, params.cols, wide),
                          static_cast<char*>(scratch)};
  if (params.soft) {
    return launched(place, "soft_spearman_kernel", [&](cudaStream_t stream) {
      return launch_soft_spearman(task, wide, rho, stream);
    });
  }
  return launched(place, "hard_spearman_kernel", [&](cudaStream_t stream) {
    return launch_hard_spearman(task, wide, rho, stream);
  });
}

CudaStatus spearman_backward(const SpearmanParams& params, const ConstMatrix& x,
                             const ConstMatrix& y, const std::uint8_t* mask,
                             std::int64_t mask_stride, const void* grad_rho,
                             std::int64_t grad_stride, void* grad_x, void* scratch,
                             const Place& place) {
  const bool wide = in_double(x, y);
  const SpearmanTask task{
      params, x, y, mask, mask_stride,
      plan_rank(RankOp::soft_spearman_backward, params.rows, params.cols, wide),
      static_cast<char*>(scratch)};
  return launched(place, "soft_spearman_backward_kernel", [&](cudaStream_t stream) {
    return launch_soft_spearman_backward(task, wide, grad_rho, grad_stride, {grad_x, x.dtype},
                                         stream);
  });
}

CudaStatus soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                             std::uint32_t* order, void* scratch, const Place& place) {
  const RankPlan plan =
      plan_rank(RankOp::soft_rank, params.rows, params.cols, x.dtype == DType::float64);
  return launched(place, "soft_rank_kernel", [&](cudaStream_t stream) {
    return launch_soft_rank(params, x, ranks, order, plan, static_cast<char*>(scratch), stream);
  });
}

CudaStatus soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                              const std::uint32_t* order, void* grad_x, DType dtype, void* scratch,
                              const Place& place) {
  const RankPlan plan =
      plan_rank(RankOp::soft_rank_backward, params.rows, params.cols, false);
  return launched(place, "soft_rank_backward_kernel", [&](cudaStream_t stream) {
    return launch_soft_rank_backward(params, grad_ranks, order, {grad_x, dtype}, plan,
                                     static_cast<char*>(scratch), stream);
  });
}

}  // namespace cuda
}  // namespace r2kd
