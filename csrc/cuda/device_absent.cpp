// Stands in for device.cu in a build without CUDA.
#include "device.h"

namespace r2kd {

CudaInfo cuda_info() {
  CudaInfo info;
  info.problem = "built without CUDA";
  return info;
}

}  // namespace r2kd
