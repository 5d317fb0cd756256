// The instruction set that the CPU kernels use on this machine.
#pragma once

namespace r2kd {

enum class SimdLevel { baseline = 0, avx2 = 1, avx512 = 2 };

// The best level that the processor has, or the one that the environment variable R2KD_SIMD names
// (baseline, avx2, avx512). Decided once per process. Throws std::invalid_argument where R2KD_SIMD
// names something else or more than the processor has.
SimdLevel simd_level();
const char* simd_level_name();

}  // namespace r2kd
