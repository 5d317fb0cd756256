// The matrices and scalars of one call of the correlation kernels.
#pragma once

#include <cstdint>

#include "r2kd/correlation.h"
#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

struct Call {
  const CorrelationParams& params;
  const ConstMatrix& student;  // [B, C]
  const ConstMatrix& teacher;  // [B, C]
  const std::uint8_t* mask;    // [B] or null
  std::int64_t mask_stride;
  const double* sample_weight;  // [B] or null; forward only

  bool keeps(std::int64_t row) const { return mask == nullptr || mask[row * mask_stride] != 0; }
  std::int64_t kept_rows() const {
    if (mask == nullptr) return params.rows;
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < params.rows; ++row) count += keeps(row);
    return count;
  }
  // Sum of the kept rows' sample weights.
  double kept_weight() const {
    double sum = 0;
    for (std::int64_t row = 0; row < params.rows; ++row) sum += keeps(row) ? sample_weight[row] : 0;
    return sum;
  }
};

// Pearson subtracts each row's origin, since deviations of equal logits are to be 0. Without fused
// operations the product z c is rounded, by too much where the origin is large.
template <bool centered>
constexpr bool kSubtracts = centered || !kFused;

}  // namespace R2KD_ISA
}  // namespace r2kd
