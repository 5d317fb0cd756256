// Python bindings of the CUDA kernels of sparse weights. All addresses are on the device; the stream
// is a number.
#include <stdexcept>
#include <string>

#include "bindings_sparse.h"
#include "cuda/sparse.h"

namespace py = pybind11;

namespace r2kd {
namespace {

using cuda::CudaStatus;

std::string text_of(const std::int64_t* numbers, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += (i == 0 ? "" : " x ") + std::to_string(numbers[i]);
  return text;
}

// Raises RuntimeError unless the launch of `entry` on x of this shape succeeded.
void check(const CudaStatus& status, const char* entry, const std::string& x, const CsrMatrix& weight) {
  if (status.code == 0) return;
  std::string text = std::string(entry) + ", " + status.step + ", x " + x + ", weight " +
                     std::to_string(weight.rows) + " x " + std::to_string(weight.cols) + ": " +
                     status.message;
  if (status.code > 0) text += " (CUDA error " + std::to_string(status.code) + ")";
  throw std::runtime_error(text);
}

}  // namespace

void bind_cuda_sparse(py::module_& module) {
  module.def("cuda_csr_linear",
             [](std::int64_t batch, std::int64_t rows, std::int64_t cols, std::uintptr_t x,
                std::int64_t row_stride, std::int64_t col_stride, int dtype, std::uintptr_t values,
                std::uintptr_t columns, std::uintptr_t row_offsets, std::uintptr_t bias,
                std::uintptr_t y, int device, std::uintptr_t stream) {
               const CsrMatrix weight = csr_matrix(values, columns, row_offsets, rows, cols);
               CudaStatus status;
               {
                 const py::gil_scoped_release release;
                 status = cuda::csr_linear(matrix(x, row_stride, col_stride, dtype), batch, weight,
                                           as_pointer<const void*>(bias), as_pointer<void*>(y),
                                           {device, stream});
               }
               const std::int64_t shape[] = {batch, cols};
               check(status, "csr_linear", text_of(shape, 2), weight);
             });
  module.def("cuda_csr_conv2d",
             [](Sizes shape, Sizes strides, Sizes out_shape, Sizes kernel_and_stride,
                Sizes padding_and_dilation, std::int64_t groups, std::uintptr_t x, int dtype,
                std::uintptr_t values, std::uintptr_t columns, std::uintptr_t row_offsets,
                std::uintptr_t bias, std::uintptr_t y, bool channels_last, int device,
                std::uintptr_t stream) {
               const Conv2dParams params =
                   conv2d_params(shape, out_shape, kernel_and_stride, padding_and_dilation, groups);
               const CsrMatrix weight =
                   csr_matrix(values, columns, row_offsets, out_shape[1], weight_cols(params));
               CudaStatus status;
               {
                 const py::gil_scoped_release release;
                 status = cuda::csr_conv2d(params, images(x, strides, dtype), weight,
                                           as_pointer<const void*>(bias), as_pointer<void*>(y),
                                           channels_last, {device, stream});
               }
               check(status, "csr_conv2d", text_of(shape.data(), 4), weight);
             });
}

}  // namespace r2kd
