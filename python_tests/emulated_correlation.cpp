// A library for test_correlation_emulated.py: the CUDA kernels of the correlation on the CPU.
#include <cuda_runtime.h>

#include "cuda/correlation.h"
#include "cuda/device.h"

using namespace r2kd;

// As sm_80: without clusters.
int cuda::compiled_architecture(int* architecture) {
  *architecture = 80;
  return 0;
}

namespace {

ConstMatrix matrix(const void* data, const std::int64_t* strides, int dtype) {
  return {data, strides[0], strides[1], static_cast<DType>(dtype)};
}

}  // namespace

extern "C" {

void set_order(int backwards) { emulated::backwards = backwards != 0; }

std::int64_t scratch_bytes(const CorrelationParams* params, int student, int teacher, int weighed) {
  cuda::Plan plan;
  cuda::plan_correlation(*params, static_cast<DType>(student), static_cast<DType>(teacher),
                         weighed != 0, 0, &plan);
  return plan.scratch_bytes;
}

int forward(const CorrelationParams* params, const void* student, const std::int64_t* z_strides,
            int z_dtype, const void* teacher, const std::int64_t* y_strides, int y_dtype,
            const std::uint8_t* mask, std::int64_t mask_stride, const double* sample_weight,
            void* loss, void* stats, void* scratch) {
  return cuda::correlation_forward(*params, matrix(student, z_strides, z_dtype),
                                   matrix(teacher, y_strides, y_dtype), mask, mask_stride,
                                   sample_weight, loss, stats, scratch, {0, 0})
      .code;
}

int backward(const CorrelationParams* params, const void* student, const std::int64_t* z_strides,
             int z_dtype, const void* teacher, const std::int64_t* y_strides, int y_dtype,
             const std::uint8_t* mask, std::int64_t mask_stride, const void* grad_loss,
             const void* stats, void* grad) {
  return cuda::correlation_backward(*params, matrix(student, z_strides, z_dtype),
                                    matrix(teacher, y_strides, y_dtype), mask, mask_stride,
                                    grad_loss, stats, grad, {0, 0})
      .code;
}

}  // extern "C"
