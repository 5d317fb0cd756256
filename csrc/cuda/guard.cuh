// What surrounds the launches of every entry: its device, and what became of them.
#pragma once

#include <cuda_runtime.h>

#include "status.h"

namespace r2kd {
namespace cuda {

inline CudaStatus status_of(cudaError_t error, const char* step) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // do not leave it for the next caller to find
  return {static_cast<int>(error), step, cudaGetErrorString(error)};
}

// Makes a device the current one for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) error_ = cudaSetDevice(device);
  }
  ~DeviceGuard() {
    if (error_ == cudaSuccess && previous_ != device_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int device_, previous_ = 0;
  cudaError_t error_;
};

// The status of `launch(stream)`, which launches one kernel, on the device of a call.
template <typename Launch>
CudaStatus launched(const Place& place, const char* kernel, const Launch& launch) {
  const DeviceGuard guard(place.device);
  if (guard.error() != cudaSuccess) return status_of(guard.error(), kPreparing);
  return status_of(launch(reinterpret_cast<cudaStream_t>(place.stream)), kernel);
}

}  // namespace cuda
}  // namespace r2kd
