// Python bindings of the CUDA kernels. All addresses are on the device; the stream is a number.
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "cuda/correlation.h"
#include "cuda/device.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace r2kd {
namespace {

using cuda::CudaStatus;

// Raises RuntimeError unless all launches of `entry` succeeded.
void check(const CudaStatus& status, const char* entry, const CorrelationParams& params) {
  if (status.code == 0) return;
  std::string text = std::string(entry) + ", " + status.step + ", " + std::to_string(params.rows) +
                     " x " + std::to_string(params.cols) + " logits: " + status.message;
  if (status.code > 0) text += " (CUDA error " + std::to_string(status.code) + ")";
  throw std::runtime_error(text);
}

py::dict plan(std::int64_t rows, std::int64_t cols, bool centered, double inter_weight,
              double intra_weight, int student_dtype, int teacher_dtype, bool weighed, int device) {
  const CorrelationParams params{rows, cols, 1.0, inter_weight, intra_weight, 0.0, centered};
  cuda::Plan plan;
  check(cuda::plan_correlation(params, static_cast<DType>(student_dtype),
                               static_cast<DType>(teacher_dtype), weighed, device, &plan),
        "correlation", params);
  py::dict found;
  found["scratch_bytes"] = plan.scratch_bytes;
  found["forward_launches"] = plan.forward_launches;
  found["forward"] = plan.forward;
  found["backward"] = plan.backward;
  return found;
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.attr("CUDA_COMPILED") = cuda::kCompiled;
  module.attr("MAX_CUDA_COLS") = cuda::kMaxCols;
  module.def("cuda_correlation_plan", &plan);
  module.def(
      "cuda_correlation_forward",
      [](std::int64_t rows, std::int64_t cols, double temperature, bool centered,
         double inter_weight, double intra_weight, double eps, std::uintptr_t student,
         std::int64_t student_row_stride, std::int64_t student_col_stride, int student_dtype,
         std::uintptr_t teacher, std::int64_t teacher_row_stride, std::int64_t teacher_col_stride,
         int teacher_dtype, std::uintptr_t mask, std::int64_t mask_stride,
         std::uintptr_t sample_weight, std::uintptr_t loss, std::uintptr_t stats,
         std::uintptr_t scratch, int device, std::uintptr_t stream) {
        const CorrelationParams params{rows,         cols,         temperature,
                                       inter_weight, intra_weight, eps, centered};
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::correlation_forward(
              params, matrix(student, student_row_stride, student_col_stride, student_dtype),
              matrix(teacher, teacher_row_stride, teacher_col_stride, teacher_dtype),
              as_pointer<const std::uint8_t*>(mask), mask_stride,
              as_pointer<const double*>(sample_weight), as_pointer<void*>(loss),
              as_pointer<void*>(stats), as_pointer<void*>(scratch), {device, stream});
        }
        check(status, "correlation forward", params);
      });
  module.def(
      "cuda_correlation_backward",
      [](std::int64_t rows, std::int64_t cols, double temperature, bool centered,
         double inter_weight, double intra_weight, std::uintptr_t student,
         std::int64_t student_row_stride, std::int64_t student_col_stride, int student_dtype,
         std::uintptr_t teacher, std::int64_t teacher_row_stride, std::int64_t teacher_col_stride,
         int teacher_dtype, std::uintptr_t mask, std::int64_t mask_stride, std::uintptr_t grad_loss,
         std::uintptr_t stats, std::uintptr_t grad_student, int device, std::uintptr_t stream) {
        const CorrelationParams params{rows,         cols,         temperature,
                                       inter_weight, intra_weight, 0.0, centered};
        CudaStatus status;
        {
          const py::gil_scoped_release release;
          status = cuda::correlation_backward(
              params, matrix(student, student_row_stride, student_col_stride, student_dtype),
              matrix(teacher, teacher_row_stride, teacher_col_stride, teacher_dtype),
              as_pointer<const std::uint8_t*>(mask), mask_stride, as_pointer<const void*>(grad_loss),
              as_pointer<const void*>(stats), as_pointer<void*>(grad_student), {device, stream});
        }
        check(status, "correlation backward", params);
      });
}

}  // namespace r2kd
