// The entry points of every instruction set, as dispatch.cpp calls them.
#pragma once

#include "r2kd/rank.h"

#define R2KD_DECLARE_RANK(isa)                                                                     \
  namespace isa {                                                                                  \
  Status spearman_forward(const SpearmanParams& params, const ConstMatrix& x,                      \
                          const ConstMatrix& y, const std::uint8_t* mask, std::int64_t mask_stride, \
                          void* rho, int threads);                                                 \
  Status rank_loss(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,       \
                   const std::uint8_t* mask, std::int64_t mask_stride, double weight, void* loss,  \
                   int threads);                                                                   \
  Status rank_loss_backward(const SpearmanParams& params, const ConstMatrix& x,                    \
                            const ConstMatrix& y, const std::uint8_t* mask,                        \
                            std::int64_t mask_stride, double weight, const void* grad_loss,        \
                            void* grad_x, int threads);                                            \
  Status spearman_backward(const SpearmanParams& params, const ConstMatrix& x,                     \
                           const ConstMatrix& y, const std::uint8_t* mask,                         \
                           std::int64_t mask_stride, const void* grad_rho, std::int64_t grad_stride, \
                           void* grad_x, int threads);                                             \
  Status soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,        \
                           std::uint32_t* order, int threads);                                     \
  Status soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,           \
                            const std::uint32_t* order, void* grad_x, DType dtype, int threads);   \
  }

namespace r2kd {

R2KD_DECLARE_RANK(baseline)
#if defined(__x86_64__)
R2KD_DECLARE_RANK(avx2)
R2KD_DECLARE_RANK(avx512)
#endif

}  // namespace r2kd
