#include "device.h"

#include <cuda_runtime.h>

namespace r2kd {
namespace {

// Does nothing. Whether it has code for a device tells whether this build was compiled for it.
__global__ void probe_kernel() {}

}  // namespace

CudaInfo cuda_info() {
  CudaInfo info;
  info.compiled = true;
  info.runtime_version = CUDART_VERSION;
  info.architectures = R2KD_CUDA_ARCHS;
  cudaError_t error = cudaGetDeviceCount(&info.devices);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, probe_kernel);
  } else {
    info.devices = 0;
  }
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
      driver == 0) {
    info.problem = "no NVIDIA driver found";
  } else if (error != cudaSuccess) {
    info.problem = std::string(cudaGetErrorString(error)) + " (CUDA error " +
                   std::to_string(static_cast<int>(error)) + ")";
  }
  cudaGetLastError();  // do not leave an error for the next caller to find
  return info;
}

namespace cuda {

int compiled_architecture(int* architecture) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  *architecture = error == cudaSuccess ? attributes.ptxVersion : 0;
  return static_cast<int>(error);
}

}  // namespace cuda

}  // namespace r2kd
