// Linear layers and 2-D convolutions whose weight is sparse.
//
//   csr_linear:  y[b, r] = bias[r] + sum_k w[r, k] x[b, k]
//   csr_conv2d:  the same sum over the K inputs of each output pixel, K = channels of a group * area of
//                the kernel; column k of w is (channel * kernel height + i) * kernel width + j
//
// Sums are taken in float32, in the order of the columns.
#pragma once

#include "r2kd/types.h"

namespace r2kd {

// The nonzero entries of a weight [R, K], row by row. Row r has the entries row_offsets[r] up to
// row_offsets[r + 1]; its columns ascend and are in [0, K). The kernels rely on it.
struct CsrMatrix {
  const void* values;               // [nnz], of the dtype of x
  const std::int32_t* columns;      // [nnz]
  const std::int32_t* row_offsets;  // [R + 1]
  std::int64_t rows;                // R
  std::int64_t cols;                // K
};

struct Conv2dParams {
  std::int64_t batch;
  std::int64_t channels, height, width;              // of x
  std::int64_t out_channels, out_height, out_width;  // of y
  std::int64_t kernel[2], stride[2], padding[2], dilation[2];
  std::int64_t groups;
};

// A 4-D tensor [B, C, H, W]; strides count elements.
struct ConstImages {
  const void* data;
  std::int64_t strides[4];
  DType dtype;
};

// Both run on at most `threads` threads; the bits do not depend on their number.
// dtype of x, y, the values and bias alike: float32, bfloat16 or float16. bias: [R] or null.

// x: [B, K]. y: [B, R] contiguous, every element written.
Status csr_linear(const ConstMatrix& x, std::int64_t batch, const CsrMatrix& weight, const void* bias,
                  void* y, int threads);

// y: [B, R, H', W'], every element written; contiguous, or channels-last where `channels_last`.
// out_height and out_width are at least 1.
Status csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,
                  const void* bias, void* y, bool channels_last, int threads);

}  // namespace r2kd
