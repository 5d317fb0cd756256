// How a function that the CPU and the CUDA kernels share is declared.
#pragma once

#if defined(__CUDACC__)
#define R2KD_SHARED __host__ __device__ __forceinline__
#else
// Inlined without exception: the CPU kernels are compiled for several instruction sets, and the
// linker would otherwise keep one copy of the function for all of them.
#define R2KD_SHARED inline __attribute__((always_inline))
#endif
