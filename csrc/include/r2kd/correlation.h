// The correlation distance between two row-wise softmaxes: parameters, saved statistics, entries.
//
//   p = softmax(student / T), q = softmax(teacher / T)                      // [B, C]
//   r(a, b) = sum(a b) / (|a| |b| + eps), on a, b or on their deviations from the mean
//   loss = inter_weight (1 - mean_i r(p_i., q_i.)) + intra_weight (1 - mean_j r(p_.j, q_.j))
//
// Sample weights, where given, make the first mean sum_i w_i r_i / sum_i w_i.
//
// docs/mathematics.md derives the gradient that the statistics encode.
#pragma once

#include "r2kd/types.h"

namespace r2kd {

struct CorrelationParams {
  std::int64_t rows;   // B
  std::int64_t cols;   // C, at least 1
  double temperature;  // T > 0
  double inter_weight;  // weight of the row term, with every factor (T^2) in it
  double intra_weight;  // weight of the column term, likewise
  double eps;           // added to the product of the norms
  bool centered;        // Pearson where true, cosine where false
};

// What forward leaves for backward: kRowStats numbers per row, then five arrays of C numbers.
// Element type: double where either input is double, else float.
//   row i:  stats[kRowStats * i + RowStat]
//   column: stats[kRowStats * B + C * ColStat + j]
// The gradient is  g_ij = (a_i q~_ij - b_i p~_ij) + (A_j q~_ij - B_j p~_ij)  before the softmax.
// Rows that the mask drops hold nothing and are never read.
enum RowStat : int {
  kStudentOrigin = 0,  // the logit that the exponentials are relative to: the largest or near
  kStudentInvSum = 1,  // 1 / sum_j of the exponentials, as the backend computes them
  kTeacherOrigin = 2,
  kTeacherInvSum = 3,
  kRowTeacherCoef = 4,  // a_i
  kRowStudentCoef = 5,  // b_i
  kRowStats = 6,
};
enum ColStat : int {
  kColTeacherCoef = 0,  // A_j
  kColStudentCoef = 1,  // B_j
  kColStudentMean = 2,  // mean over the kept rows of p_ij; only where centred
  kColTeacherMean = 3,
  kColMeanRest = 4,     // B_j times what rounding took from the first mean - A_j times the second's
  kColStats = 5,
};

// Both run on at most `threads` threads and give the same bits for the same number of threads.
// mask: [B] or null (all rows kept), one byte per row, `mask_stride` in elements.
// sample_weight: [B] contiguous or null (all 1), of the row term; one that sums to 0 over the kept
// rows leaves no row term.
// loss: one element, stats: [kRowStats * B + kColStats * C], both of the statistics' type.
Status correlation_forward(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, void* loss,
                           void* stats, int threads);

// Forward up to where the rows of other processes come in: with the moments of all of them, the
// caller writes the columns' statistics, and divides the rows' coefficients by the sum of all
// weights. Without a column term where intra_weight is 0, without a row term where inter_weight is.
// sums: [kMomentSums]
// columns: [3, C] sums over the kept rows of p^2, q^2 and p q; centred [5, C], those of deviations
// from the means over the same rows, then the means of p and of q. Zeros on entry.
// stats: as above, the columns' not written, the rows' coefficients for inter_weight times w_i.
enum MomentSum : int {
  kSumRows = 0,     // kept rows
  kSumWeights = 1,  // sum of their sample weights
  kSumR = 2,        // sum of w_i r_i, 0 without a row term
  kMomentSums = 3,
};
Status correlation_moments(const CorrelationParams& params, const ConstMatrix& student,
                           const ConstMatrix& teacher, const std::uint8_t* mask,
                           std::int64_t mask_stride, const double* sample_weight, double* sums,
                           double* columns, void* stats, int threads);

// grad_loss: one element of the statistics' type. grad_student: [B, C] contiguous, the student's
// dtype, every element written.
Status correlation_backward(const CorrelationParams& params, const ConstMatrix& student,
                            const ConstMatrix& teacher, const std::uint8_t* mask,
                            std::int64_t mask_stride, const void* grad_loss, const void* stats,
                            void* grad_student, int threads);

}  // namespace r2kd
