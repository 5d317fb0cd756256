// Python bindings of the partial moments, for losses over the rows of several processes.
#include "bindings.h"
#include "r2kd/correlation.h"

namespace py = pybind11;

namespace r2kd {

void bind_moments(py::module_& module) {
  module.attr("MOMENT_SUMS") = static_cast<int>(kMomentSums);
  module.def(
      "correlation_moments",
      [](std::int64_t rows, std::int64_t cols, double temperature, bool centered, double inter_weight,
         double intra_weight, double eps, std::uintptr_t student, std::int64_t student_row_stride,
         std::int64_t student_col_stride, int student_dtype, std::uintptr_t teacher,
         std::int64_t teacher_row_stride, std::int64_t teacher_col_stride, int teacher_dtype,
         std::uintptr_t mask, std::int64_t mask_stride, std::uintptr_t sample_weight,
         std::uintptr_t sums, std::uintptr_t columns, std::uintptr_t stats, int threads) {
        const CorrelationParams params{rows,         cols,         temperature,
                                       inter_weight, intra_weight, eps,         centered};
        Status status;
        {
          const py::gil_scoped_release release;
          status = correlation_moments(
              params, matrix(student, student_row_stride, student_col_stride, student_dtype),
              matrix(teacher, teacher_row_stride, teacher_col_stride, teacher_dtype),
              as_pointer<const std::uint8_t*>(mask), mask_stride,
              as_pointer<const double*>(sample_weight), as_pointer<double*>(sums),
              as_pointer<double*>(columns), as_pointer<void*>(stats), threads);
        }
        check(status, "correlation_moments", rows, cols);
      });
}

}  // namespace r2kd
