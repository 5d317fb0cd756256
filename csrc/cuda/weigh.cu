// The weight and the number of the rows that a mask keeps, for the kernels that divide by them.
#include "common.cuh"

namespace r2kd {
namespace cuda {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads)
    weigh_kernel(const std::uint8_t* mask,     // [B] or null
                 std::int64_t mask_stride,
                 const double* sample_weight,  // [B] or null
                 std::int64_t rows,
                 double* totals) {             // [2]: weight, number
  __shared__ double room[32];
  double weight = 0, count = 0;
#pragma unroll 8
  for (std::int64_t row = threadIdx.x; row < rows; row += kThreads) {
    const bool keep = mask == nullptr || mask[row * mask_stride] != 0;
    count += keep ? 1.0 : 0.0;
    weight += keep ? (sample_weight == nullptr ? 1.0 : sample_weight[row]) : 0.0;
  }
  weight = block_sum(weight, room);
  count = block_sum(count, room);
  if (threadIdx.x == 0) {
    totals[0] = weight;
    totals[1] = count;
  }
}

}  // namespace

cudaError_t launch_weigh(const Call& call, char* scratch) {
  weigh_kernel<<<1, kThreads, 0, call.stream>>>(call.mask, call.mask_stride, call.sample_weight,
                                                call.params.rows,
                                                reinterpret_cast<double*>(scratch));
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace r2kd
