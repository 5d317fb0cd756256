// What the entries of all CUDA kernels take and return.
#pragma once

#include <cstdint>

namespace r2kd {
namespace cuda {

constexpr const char* kPreparing = "preparing the launch";

extern const bool kCompiled;  // whether this build has the kernels

// What became of the launches of a call.
struct CudaStatus {
  int code = 0;           // cudaError_t; 0 is success, -1 a build without CUDA
  const char* step = "";  // the kernel that could not be launched, or kPreparing
  const char* message = "";
};

// Where a call runs.
struct Place {
  int device;            // CUDA's number
  std::uintptr_t stream;  // cudaStream_t
};

}  // namespace cuda
}  // namespace r2kd
