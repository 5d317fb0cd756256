// Python bindings of the CUDA kernels of ranks. All addresses are on the device; the stream is a
// number.
#include <stdexcept>

#include "bindings.h"
#include "cuda/rank.h"

namespace py = pybind11;

namespace r2kd {
namespace {

using cuda::CudaStatus;

// Raises RuntimeError unless the launch of `entry` on a matrix rows x cols succeeded.
void check(const CudaStatus& status, const char* entry, std::int64_t rows, std::int64_t cols) {
  if (status.code == 0) return;
  std::string text = std::string(entry) + ", " + status.step + ", " + std::to_string(rows) + " x " +
                     std::to_string(cols) + " elements: " + status.message;
  if (status.code > 0) text += " (CUDA error " + std::to_string(status.code) + ")";
  throw std::runtime_error(text);
}

}  // namespace

void bind_cuda_rank(py::module_& module) {
  module.def("cuda_rank_scratch_bytes",
             [](int op, std::int64_t rows, std::int64_t cols, bool in_double) {
               return cuda::plan_rank(static_cast<cuda::RankOp>(op), rows, cols, in_double)
                   .scratch_bytes;
             });
  module.def(
      "cuda_spearman_forward",
      [](std::int64_t rows, std::int64_t cols, double eps, double strength, bool soft,
         std::uintptr_t x, std::int64_t x_row_stride, std::int64_t x_col_stride, int x_dtype,
         std::uintptr_t y, std::int64_t y_row_stride, std::int64_t y_col_stride, int y_dtype,
         std::uintptr_t mask, std::int64_t mask_stride, std::uintptr_t rho, std::uintptr_t scratch,
         int device, std::uintptr_t stream) {
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::spearman_forward(
              {rows, cols, eps, strength, soft}, matrix(x, x_row_stride, x_col_stride, x_dtype),
              matrix(y, y_row_stride, y_col_stride, y_dtype), as_pointer<const std::uint8_t*>(mask),
              mask_stride, as_pointer<void*>(rho), as_pointer<void*>(scratch), {device, stream});
        }
        check(status, "spearman", rows, cols);
      });
  module.def(
      "cuda_spearman_backward",
      [](std::int64_t rows, std::int64_t cols, double eps, double strength, std::uintptr_t x,
         std::int64_t x_row_stride, std::int64_t x_col_stride, int x_dtype, std::uintptr_t y,
         std::int64_t y_row_stride, std::int64_t y_col_stride, int y_dtype, std::uintptr_t mask,
         std::int64_t mask_stride, std::uintptr_t grad_rho, std::int64_t grad_stride,
         std::uintptr_t grad_x, std::uintptr_t scratch, int device, std::uintptr_t stream) {
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::spearman_backward(
              {rows, cols, eps, strength, true}, matrix(x, x_row_stride, x_col_stride, x_dtype),
              matrix(y, y_row_stride, y_col_stride, y_dtype), as_pointer<const std::uint8_t*>(mask),
              mask_stride, as_pointer<const void*>(grad_rho), grad_stride,
              as_pointer<void*>(grad_x), as_pointer<void*>(scratch), {device, stream});
        }
        check(status, "spearman_backward", rows, cols);
      });
  module.def(
      "cuda_soft_rank_forward",
      [](std::int64_t rows, std::int64_t cols, double strength, std::uintptr_t x,
         std::int64_t row_stride, std::int64_t col_stride, int dtype, std::uintptr_t ranks,
         std::uintptr_t order, std::uintptr_t scratch, int device, std::uintptr_t stream) {
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::soft_rank_forward(
              {rows, cols, strength}, matrix(x, row_stride, col_stride, dtype),
              as_pointer<void*>(ranks), as_pointer<std::uint32_t*>(order),
              as_pointer<void*>(scratch), {device, stream});
        }
        check(status, "soft_rank", rows, cols);
      });
  module.def(
      "cuda_soft_rank_backward",
      [](std::int64_t rows, std::int64_t cols, double strength, std::uintptr_t grad,
         std::int64_t row_stride, std::int64_t col_stride, int grad_dtype, std::uintptr_t order,
         std::uintptr_t grad_x, int dtype, std::uintptr_t scratch, int device,
         std::uintptr_t stream) {
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::soft_rank_backward(
              {rows, cols, strength}, matrix(grad, row_stride, col_stride, grad_dtype),
              as_pointer<const std::uint32_t*>(order), as_pointer<void*>(grad_x),
              static_cast<DType>(dtype), as_pointer<void*>(scratch), {device, stream});
        }
        check(status, "soft_rank_backward", rows, cols);
      });
}

}  // namespace r2kd
