#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "correlation_entries.h"
#include "rank_entries.h"
#include "sparse_entries.h"
#include "winograd_entries.h"

namespace r2kd {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

SimdLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return SimdLevel::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return SimdLevel::avx2;
  }
#endif
  return SimdLevel::baseline;
}

SimdLevel chosen_level() {
  const SimdLevel best = best_level();
  const char* variable = std::getenv("R2KD_SIMD");
  const std::string wanted = variable == nullptr ? "" : variable;
  if (wanted.empty()) return best;
  std::string names;
  for (int level = 0; level <= static_cast<int>(best); ++level) {
    if (wanted == kNames[level]) return static_cast<SimdLevel>(level);
    names += (level == 0 ? "" : ", ") + std::string(kNames[level]);
  }
  throw std::invalid_argument("environment variable R2KD_SIMD must be empty or one of " + names +
                              " (what this processor can run), got '" + wanted + "'");
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = chosen_level();
  return level;
}

const char* simd_level_name() { return kNames[static_cast<int>(simd_level())]; }

#if defined(__x86_64__)
#define R2KD_DISPATCH(function, ...)                                    \
  switch (simd_level()) {                                               \
    case SimdLevel::avx512:                                             \
      return avx512::function(__VA_ARGS__);                             \
    case SimdLevel::avx2:                                               \
      return avx2::function(__VA_ARGS__);                               \
    default:                                                            \
      return baseline::function(__VA_ARGS__);                           \
  }
#else
#define R2KD_DISPATCH(function, ...) return baseline::function(__VA_ARGS__);
#endif

Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, void* loss,
                           void* stats, int threads) {
  R2KD_DISPATCH(correlation_forward, params, student, teacher, mask, mask_stride, sample_weight, loss,
                stats, threads)
}

Status correlation_moments(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, double* sums,
                           double* columns, void* stats, int threads) {
  R2KD_DISPATCH(correlation_moments, params, student, teacher, mask, mask_stride, sample_weight, sums,
                columns, stats, threads)
}

Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads) {
  R2KD_DISPATCH(correlation_backward, params, student, teacher, mask, mask_stride, grad_loss, stats,
                grad_student, threads)
}

Status spearman_forward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                        const std::uint8_t* mask, std::int64_t mask_stride, void* rho, int threads) {
  R2KD_DISPATCH(spearman_forward, params, x, y, mask, mask_stride, rho, threads)
}

Status rank_loss(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                 const std::uint8_t* mask, std::int64_t mask_stride, double weight, void* loss,
                 int threads) {
  R2KD_DISPATCH(rank_loss, params, x, y, mask, mask_stride, weight, loss, threads)
}

Status rank_loss_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                          const std::uint8_t* mask, std::int64_t mask_stride, double weight,
                          const void* grad_loss, void* grad_x, int threads) {
  R2KD_DISPATCH(rank_loss_backward, params, x, y, mask, mask_stride, weight, grad_loss, grad_x,
                threads)
}

Status spearman_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                         const std::uint8_t* mask, std::int64_t mask_stride, const void* grad_rho,
                         std::int64_t grad_stride, void* grad_x, int threads) {
  R2KD_DISPATCH(spearman_backward, params, x, y, mask, mask_stride, grad_rho, grad_stride, grad_x,
                threads)
}

Status soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                         std::uint32_t* order, int threads) {
  R2KD_DISPATCH(soft_rank_forward, params, x, ranks, order, threads)
}

Status soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                          const std::uint32_t* order, void* grad_x, DType dtype, int threads) {
  R2KD_DISPATCH(soft_rank_backward, params, grad_ranks, order, grad_x, dtype, threads)
}

Status csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight, const void* bias,
                  void* y, int threads) {
  R2KD_DISPATCH(csr_linear, x, batch, weight, bias, y, threads)
}

Status csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,
                  const void* bias, void* y, bool channels_last, int threads) {
  R2KD_DISPATCH(csr_conv2d, params, x, weight, bias, y, channels_last, threads)
}

Status winograd_conv2d(const WinogradParams& params, const float* x, const float* weight,
                       const float* bias, const float* other, float* y, int threads) {
  R2KD_DISPATCH(winograd_conv2d, params, x, weight, bias, other, y, threads)
}

}  // namespace r2kd
