// Python bindings of the sparse kernels.
#include "bindings_sparse.h"

namespace py = pybind11;

namespace r2kd {

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
    check(status, "csr_linear");
  });
  module.def("csr_conv2d", [](Sizes shape, Sizes strides, Sizes out_shape, Sizes kernel_and_stride,
                              Sizes padding_and_dilation, std::int64_t groups, std::uintptr_t x, int dtype,
                              std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                              std::uintptr_t bias, std::uintptr_t y, bool channels_last, int threads) {
    const Conv2dParams params =
        conv2d_params(shape, out_shape, kernel_and_stride, padding_and_dilation, groups);
    const CsrMatrix weight =
        csr_matrix(values, columns, row_offsets, out_shape[1], weight_cols(params));
    Status status;
    {
      const py::gil_scoped_release release;
      status = csr_conv2d(params, images(x, strides, dtype), weight, as_pointer<const void*>(bias),
                          as_pointer<void*>(y), channels_last, threads);
    }
    check(status, "csr_conv2d");
  });
}

}  // namespace r2kd
