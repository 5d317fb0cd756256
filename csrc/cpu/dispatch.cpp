#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#include "correlation_entries.h"

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
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SimdLevel::avx2;
#endif
  return SimdLevel::baseline;
}

SimdLevel chosen_level() {
  const SimdLevel best = best_level();
  const char* wanted = std::getenv("R2KD_SIMD");
  if (wanted != nullptr) {
    for (int level = 0; level < static_cast<int>(best); ++level) {
      if (std::strcmp(wanted, kNames[level]) == 0) return static_cast<SimdLevel>(level);
    }
  }
  return best;
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
                           std::int64_t mask_stride, void* loss, void* stats, int threads) {
  R2KD_DISPATCH(correlation_forward, params, student, teacher, mask, mask_stride, loss, stats,
                threads)
}

Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads) {
  R2KD_DISPATCH(correlation_backward, params, student, teacher, mask, mask_stride, grad_loss, stats,
                grad_student, threads)
}

}  // namespace r2kd
