// Python bindings of the sparse kernels.
#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "r2kd/sparse.h"

namespace py = pybind11;

namespace r2kd {
namespace {

CsrMatrix csr_matrix(std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                     std::int64_t rows, std::int64_t cols) {
  return {as_pointer<const void*>(values), as_pointer<const std::int32_t*>(columns),
          as_pointer<const std::int32_t*>(row_offsets), rows, cols};
}

void check_memory(Status status, const char* kernel) {
  if (status == Status::ok) return;
  PyErr_Format(PyExc_MemoryError, "%s: no memory for the workspace", kernel);
  throw py::error_already_set();
}

}  // namespace

void bind_sparse(py::module_& module) {
  module.def("csr_linear", [](std::int64_t batch, std::int64_t rows, std::int64_t cols, std::uintptr_t x,
                              std::int64_t row_stride, std::int64_t col_stride, int dtype,
                              std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                              std::uintptr_t bias, std::uintptr_t y, int threads) {
    Status status;
    {
      const py::gil_scoped_release release;
      status = csr_linear(matrix(x, row_stride, col_stride, dtype), batch,
                          csr_matrix(values, columns, row_offsets, rows, cols),
                          as_pointer<const void*>(bias), as_pointer<void*>(y), threads);
    }
    check_memory(status, "csr_linear");
  });
  using Sizes = std::array<std::int64_t, 4>;
  module.def("csr_conv2d", [](Sizes shape, Sizes strides, Sizes out_shape, Sizes kernel_and_stride,
                              Sizes padding_and_dilation, std::int64_t groups, std::uintptr_t x, int dtype,
                              std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                              std::uintptr_t bias, std::uintptr_t y, bool channels_last, int threads) {
    const Conv2dParams params{shape[0],
                              shape[1], shape[2], shape[3],
                              out_shape[1], out_shape[2], out_shape[3],
                              {kernel_and_stride[0], kernel_and_stride[1]},
                              {kernel_and_stride[2], kernel_and_stride[3]},
                              {padding_and_dilation[0], padding_and_dilation[1]},
                              {padding_and_dilation[2], padding_and_dilation[3]},
                              groups};
    const ConstImages images{as_pointer<const void*>(x),
                             {strides[0], strides[1], strides[2], strides[3]},
                             static_cast<DType>(dtype)};
    const std::int64_t cols = shape[1] / groups * kernel_and_stride[0] * kernel_and_stride[1];
    Status status;
    {
      const py::gil_scoped_release release;
      status = csr_conv2d(params, images, csr_matrix(values, columns, row_offsets, out_shape[1], cols),
                          as_pointer<const void*>(bias), as_pointer<void*>(y), channels_last, threads);
    }
    check_memory(status, "csr_conv2d");
  });
}

}  // namespace r2kd
