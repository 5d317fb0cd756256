// What the bindings of the sparse kernels of both devices share.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "r2kd/sparse.h"

namespace r2kd {

using Sizes = std::array<std::int64_t, 4>;

inline CsrMatrix csr_matrix(std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                            std::int64_t rows, std::int64_t cols) {
  return {as_pointer<const void*>(values), as_pointer<const std::int32_t*>(columns),
          as_pointer<const std::int32_t*>(row_offsets), rows, cols};
}

inline Conv2dParams conv2d_params(const Sizes& shape, const Sizes& out_shape,
                                  const Sizes& kernel_and_stride, const Sizes& padding_and_dilation,
                                  std::int64_t groups) {
  return {shape[0],
          shape[1], shape[2], shape[3],
          out_shape[1], out_shape[2], out_shape[3],
          {kernel_and_stride[0], kernel_and_stride[1]},
          {kernel_and_stride[2], kernel_and_stride[3]},
          {padding_and_dilation[0], padding_and_dilation[1]},
          {padding_and_dilation[2], padding_and_dilation[3]},
          groups};
}

inline std::int64_t weight_cols(const Conv2dParams& params) {
  return params.channels / params.groups * params.kernel[0] * params.kernel[1];
}

inline ConstImages images(std::uintptr_t address, const Sizes& strides, int dtype) {
  return {as_pointer<const void*>(address),
          {strides[0], strides[1], strides[2], strides[3]},
          static_cast<DType>(dtype)};
}

}  // namespace r2kd
