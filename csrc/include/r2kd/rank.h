// Ranks along rows: Spearman's correlation of hard or soft ranks, and soft ranks by themselves.
//
//   hard: rank_j = 1 + how many x_k come before x_j in the stable ascending order
//   soft: the Euclidean projection of x / strength onto the permutahedron of (1, ..., C)
//   rho = sum(a b) / (|a| |b| + eps),  a, b = (ranks - (C + 1) / 2) / (C (C + 1) / 2)
//
// docs/rank.md derives the soft rank and its gradient. A NaN makes its row NaN. Infinite elements
// of a row share the mean of their places as their soft rank and get no gradient.
#pragma once

#include "r2kd/types.h"

namespace r2kd {

struct SpearmanParams {
  std::int64_t rows;  // B
  std::int64_t cols;  // C, 1 <= C <= kMaxRankCols
  double eps;         // added to the product of the norms
  double strength;    // > 0, in units of x; only where soft
  bool soft;
};

struct SoftRankParams {
  std::int64_t rows;  // B
  std::int64_t cols;  // C, 1 <= C <= kMaxRankCols
  double strength;    // > 0, in units of x
};

// The pooled order of a row, one number per place k: the index of the element in that place, with
// two flags. The elements of a pool may come in any order. A row with a NaN has kNaNRow in place 0
// and nothing in the others.
constexpr std::uint32_t kBlockStart = 0x80000000u;  // a pool of the isotonic regression begins here
constexpr std::uint32_t kInfinite = 0x40000000u;    // infinite, and a pool of its own
constexpr std::uint32_t kIndexMask = 0x3fffffffu;
constexpr std::uint32_t kNaNRow = 0xffffffffu;
constexpr std::int64_t kMaxRankCols = 0x3fffffff;

// All run on at most `threads` threads; the bits do not depend on their number.
// mask: [B] or null (all rows kept), one byte per row, `mask_stride` in elements.

// rho: [B], double where either input is double, else float; 0 for rows that the mask drops.
Status spearman_forward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                        const std::uint8_t* mask, std::int64_t mask_stride, void* rho, int threads);

// *loss += weight (1 - mean of rho over the kept rows), and nothing where no row is kept.
// loss: double where either input is double, else float.
Status rank_loss(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                 const std::uint8_t* mask, std::int64_t mask_stride, double weight, void* loss,
                 int threads);

// Soft ranks only. grad_x += *grad_loss times the gradient of what rank_loss adds. grad_loss: of
// loss's type. grad_x: [B, C] contiguous, the dtype of x.
Status rank_loss_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                          const std::uint8_t* mask, std::int64_t mask_stride, double weight,
                          const void* grad_loss, void* grad_x, int threads);

// Soft ranks only. grad_rho: [B] of rho's type, `grad_stride` in elements. grad_x: [B, C]
// contiguous, the dtype of x, every element written.
Status spearman_backward(const SpearmanParams& params, const ConstMatrix& x, const ConstMatrix& y,
                         const std::uint8_t* mask, std::int64_t mask_stride, const void* grad_rho,
                         std::int64_t grad_stride, void* grad_x, int threads);

// ranks: [B, C] contiguous, double where x is double, else float. order: [B, C] contiguous.
Status soft_rank_forward(const SoftRankParams& params, const ConstMatrix& x, void* ranks,
                         std::uint32_t* order, int threads);

// order: what forward left. grad_x: [B, C] contiguous, of dtype `dtype`, every element written.
Status soft_rank_backward(const SoftRankParams& params, const ConstMatrix& grad_ranks,
                          const std::uint32_t* order, void* grad_x, DType dtype, int threads);

}  // namespace r2kd
