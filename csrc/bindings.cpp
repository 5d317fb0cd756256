// Python bindings. Tensors arrive as addresses, sizes and strides (r2kd_ext/backends/native.py);
// nothing here knows torch. Shapes, dtypes and devices have been checked by the caller.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bindings.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cuda/device.h"
#include "r2kd/correlation.h"

namespace py = pybind11;

namespace {

using r2kd::as_pointer;
using r2kd::matrix;

void check(r2kd::Status status, const char* kernel, const r2kd::CorrelationParams& params) {
  r2kd::check(status, kernel, params.rows, params.cols);
}

py::dict build_info() {
  const r2kd::CudaInfo cuda = r2kd::cuda_info();
  py::dict info;
  info["version"] = std::string(R2KD_VERSION);
  info["commit"] = std::string(R2KD_COMMIT);
  info["compiler"] = std::string(R2KD_COMPILER);
  info["simd"] = r2kd::simd_level_name();
  info["parallel_runtime"] = r2kd::parallel_runtime();
  info["cuda_compiled"] = cuda.compiled;
  info["cuda_runtime_version"] = cuda.runtime_version;
  info["cuda_architectures"] = cuda.architectures;
  info["cuda_devices"] = cuda.devices;
  info["cuda_problem"] = cuda.problem;
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled kernels of r2kd_ext. Addresses in, status out; not a public interface.";
  r2kd::simd_level();  // a wrong R2KD_SIMD stops the import, not the first call of a kernel
  module.attr("ROW_STATS") = static_cast<int>(r2kd::kRowStats);
  module.attr("COL_STATS") = static_cast<int>(r2kd::kColStats);
  module.def("build_info", &build_info);
  r2kd::bind_contiguous(module);
  r2kd::bind_cuda(module);
  r2kd::bind_cuda_rank(module);
  r2kd::bind_cuda_sparse(module);
  r2kd::bind_moments(module);
  r2kd::bind_rank(module);
  r2kd::bind_sparse(module);
  r2kd::bind_winograd(module);
  module.def(
      "correlation_forward",
      [](std::int64_t rows, std::int64_t cols, double temperature, bool centered,
         double inter_weight, double intra_weight, double eps, std::uintptr_t student,
         std::int64_t student_row_stride, std::int64_t student_col_stride, int student_dtype,
         std::uintptr_t teacher, std::int64_t teacher_row_stride, std::int64_t teacher_col_stride,
         int teacher_dtype, std::uintptr_t mask, std::int64_t mask_stride,
         std::uintptr_t sample_weight, std::uintptr_t loss, std::uintptr_t stats, int threads) {
        const r2kd::CorrelationParams params{rows,         cols,         temperature,
                                             inter_weight, intra_weight, eps, centered};
        r2kd::Status status;
        {
          const py::gil_scoped_release release;
          status = r2kd::correlation_forward(
              params, matrix(student, student_row_stride, student_col_stride, student_dtype),
              matrix(teacher, teacher_row_stride, teacher_col_stride, teacher_dtype),
              as_pointer<const std::uint8_t*>(mask), mask_stride,
              as_pointer<const double*>(sample_weight), as_pointer<void*>(loss),
              as_pointer<void*>(stats), threads);
        }
        check(status, "correlation_forward", params);
      });
  module.def(
      "correlation_backward",
      [](std::int64_t rows, std::int64_t cols, double temperature, bool centered,
         double inter_weight, double intra_weight, std::uintptr_t student,
         std::int64_t student_row_stride, std::int64_t student_col_stride, int student_dtype,
         std::uintptr_t teacher, std::int64_t teacher_row_stride, std::int64_t teacher_col_stride,
         int teacher_dtype, std::uintptr_t mask, std::int64_t mask_stride, std::uintptr_t grad_loss,
         std::uintptr_t stats, std::uintptr_t grad_student, int threads) {
        const r2kd::CorrelationParams params{rows,         cols,         temperature,
                                             inter_weight, intra_weight, 0.0, centered};
        r2kd::Status status;
        {
          const py::gil_scoped_release release;
          status = r2kd::correlation_backward(
              params, matrix(student, student_row_stride, student_col_stride, student_dtype),
              matrix(teacher, teacher_row_stride, teacher_col_stride, teacher_dtype),
              as_pointer<const std::uint8_t*>(mask), mask_stride,
              as_pointer<const void*>(grad_loss), as_pointer<const void*>(stats),
              as_pointer<void*>(grad_student), threads);
        }
        check(status, "correlation_backward", params);
      });
}
