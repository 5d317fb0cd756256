// Python bindings of the rank kernels.
#include "bindings.h"
#include "r2kd/rank.h"

namespace py = pybind11;

namespace r2kd {

void bind_rank(py::module_& module) {
  module.attr("MAX_RANK_COLS") = kMaxRankCols;
  module.def("spearman_forward", [](std::int64_t rows, std::int64_t cols, double eps, double strength,
                                    bool soft, std::uintptr_t x, std::int64_t x_row_stride,
                                    std::int64_t x_col_stride, int x_dtype, std::uintptr_t y,
                                    std::int64_t y_row_stride, std::int64_t y_col_stride, int y_dtype,
                                    std::uintptr_t mask, std::int64_t mask_stride, std::uintptr_t rho,
                                    int threads) {
    const SpearmanParams params{rows, cols, eps, strength, soft};
    Status status;
    {
      const py::gil_scoped_release release;
      status = spearman_forward(params, matrix(x, x_row_stride, x_col_stride, x_dtype),
                                matrix(y, y_row_stride, y_col_stride, y_dtype),
                                as_pointer<const std::uint8_t*>(mask), mask_stride,
                                as_pointer<void*>(rho), threads);
    }
    check(status, "spearman_forward", rows, cols);
  });
  module.def("rank_loss", [](std::int64_t rows, std::int64_t cols, double weight, bool soft,
                             double strength, double eps, std::uintptr_t x, int x_dtype,
                             std::uintptr_t y, int y_dtype, std::uintptr_t mask,
                             std::int64_t mask_stride, std::uintptr_t loss, int threads) {
    const SpearmanParams params{rows, cols, eps, strength, soft};
    Status status;
    {
      const py::gil_scoped_release release;
      status = rank_loss(params, matrix(x, cols, 1, x_dtype), matrix(y, cols, 1, y_dtype),
                         as_pointer<const std::uint8_t*>(mask), mask_stride, weight,
                         as_pointer<void*>(loss), threads);
    }
    check(status, "rank_loss", rows, cols);
  });
  module.def("rank_loss_backward", [](std::int64_t rows, std::int64_t cols, double weight, bool soft,
                                      double strength, double eps, std::uintptr_t x, int x_dtype,
                                      std::uintptr_t y, int y_dtype, std::uintptr_t mask,
                                      std::int64_t mask_stride, std::uintptr_t grad_loss,
                                      std::uintptr_t grad_x, int threads) {
    const SpearmanParams params{rows, cols, eps, strength, soft};
    Status status;
    {
      const py::gil_scoped_release release;
      status = rank_loss_backward(params, matrix(x, cols, 1, x_dtype), matrix(y, cols, 1, y_dtype),
                                  as_pointer<const std::uint8_t*>(mask), mask_stride, weight,
                                  as_pointer<const void*>(grad_loss), as_pointer<void*>(grad_x),
                                  threads);
    }
    check(status, "rank_loss_backward", rows, cols);
  });
  module.def("spearman_backward", [](std::int64_t rows, std::int64_t cols, double eps, double strength,
                                     std::uintptr_t x, std::int64_t x_row_stride,
                                     std::int64_t x_col_stride, int x_dtype, std::uintptr_t y,
                                     std::int64_t y_row_stride, std::int64_t y_col_stride, int y_dtype,
                                     std::uintptr_t mask, std::int64_t mask_stride,
                                     std::uintptr_t grad_rho, std::int64_t grad_stride,
                                     std::uintptr_t grad_x, int threads) {
    const SpearmanParams params{rows, cols, eps, strength, true};
    Status status;
    {
      const py::gil_scoped_release release;
      status = spearman_backward(params, matrix(x, x_row_stride, x_col_stride, x_dtype),
                                 matrix(y, y_row_stride, y_col_stride, y_dtype),
                                 as_pointer<const std::uint8_t*>(mask), mask_stride,
                                 as_pointer<const void*>(grad_rho), grad_stride,
                                 as_pointer<void*>(grad_x), threads);
    }
    check(status, "spearman_backward", rows, cols);
  });
  module.def("soft_rank_forward", [](std::int64_t rows, std::int64_t cols, double strength,
                                     std::uintptr_t x, std::int64_t row_stride,
                                     std::int64_t col_stride, int dtype, std::uintptr_t ranks,
                                     std::uintptr_t order, int threads) {
    Status status;
    {
      const py::gil_scoped_release release;
      status = soft_rank_forward({rows, cols, strength}, matrix(x, row_stride, col_stride, dtype),
                                 as_pointer<void*>(ranks), as_pointer<std::uint32_t*>(order), threads);
    }
    check(status, "soft_rank_forward", rows, cols);
  });
  module.def("soft_rank_backward", [](std::int64_t rows, std::int64_t cols, double strength,
                                      std::uintptr_t grad, std::int64_t row_stride,
                                      std::int64_t col_stride, int grad_dtype, std::uintptr_t order,
                                      std::uintptr_t grad_x, int dtype, int threads) {
    Status status;
    {
      const py::gil_scoped_release release;
      status = soft_rank_backward({rows, cols, strength},
                                  matrix(grad, row_stride, col_stride, grad_dtype),
                                  as_pointer<const std::uint32_t*>(order), as_pointer<void*>(grad_x),
                                  static_cast<DType>(dtype), threads);
    }
    check(status, "soft_rank_backward", rows, cols);
  });
}

}  // namespace r2kd
