// What the CUDA side of this build is, and what it finds on this machine.
#pragma once

#include <string>

namespace r2kd {

struct CudaInfo {
  bool compiled = false;
  int runtime_version = 0;    // as 1000 * major + 10 * minor
  std::string architectures;  // as given to the build, e.g. "80 90a"
  int devices = 0;
  std::string problem;  // why no device can be used; empty where one can
};

CudaInfo cuda_info();

namespace cuda {

// The architecture that the code which the current device runs was compiled for, as 90 for sm_90:
// less than the device's own where only older code could be adapted to it. Returns a cudaError_t.
int compiled_architecture(int* architecture);

}  // namespace cuda

}  // namespace r2kd
