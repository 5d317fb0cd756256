// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fibre, which runs until it
// comes to a barrier. Stands before the real header on the include path.
//
// It shows wrong indices, wrong arithmetic, and barriers that not all threads reach. The order in
// which threads run can be turned round: what then changes is a race. It does not show what the
// hardware does: alignment, registers, memory that two blocks share.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

enum class State { ready, at_warp, at_block, done };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  std::uint64_t slot;  // what it shows to its warp, or to its block
};

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr std::size_t kDynamicBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 4096;  // past shared memory, that nobody may write to
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline unsigned most_blocks = 1u << 30;  // a launch has at most so many; the kernels stride
inline bool backwards = false;           // the order in which threads run

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

inline void wait(State at) {
  Fibre& own = fibres[threadIdx.x];
  own.state = at;
  swapcontext(&own.context, &scheduler);
}

inline void enter() {
  body();
  fibres[threadIdx.x].state = State::done;
}

inline bool all_at(unsigned begin, unsigned end, State state) {
  for (unsigned i = begin; i < end; ++i) {
    if (fibres[i].state != state) return false;
  }
  return true;
}

// A barrier of the block is for all threads that have not returned.
inline bool whole_block_waits(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    if (fibres[i].state != State::at_block && fibres[i].state != State::done) return false;
  }
  return true;
}

inline void release(unsigned begin, unsigned end) {
  for (unsigned i = begin; i < end; ++i) {
    if (fibres[i].state != State::done) fibres[i].state = State::ready;
  }
}

// Dynamic shared memory, which nobody has written to when a block begins.
alignas(16) inline unsigned char dynamic_memory[kDynamicBytes];
template <typename T>
T* dynamic() {
  return reinterpret_cast<T*>(dynamic_memory);
}

// Runs a warp until it waits for others: no warp finds what a later one has not written yet, unless a
// barrier stands between.
inline void run_warp(unsigned begin) {
  for (;;) {
    for (unsigned n = 0; n < 32; ++n) {
      const unsigned i = begin + (backwards ? 31 - n : n);
      if (fibres[i].state != State::ready) continue;
      threadIdx = dim3(i);
      swapcontext(&scheduler, &fibres[i].context);
    }
    if (!all_at(begin, begin + 32, State::at_warp)) return;
    release(begin, begin + 32);
  }
}

inline void run_block(unsigned threads) {
  if (fibres.size() < threads) fibres.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    if (!fibre.stack) fibre.stack.reset(new char[kStackBytes]);
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.context.uc_link = &scheduler;
    fibre.state = State::ready;
    makecontext(&fibre.context, reinterpret_cast<void (*)()>(&enter), 0);
  }
  for (;;) {
    for (unsigned n = 0; n < threads; n += 32) run_warp(backwards ? threads - 32 - n : n);
    if (all_at(0, threads, State::done)) return;
    if (!whole_block_waits(threads)) fail("a barrier that not all threads reach");
    release(0, threads);
  }
}

// What lane `source` of the warp of this thread shows.
template <typename T>
T from_lane(T x, unsigned source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::memcpy(&fibres[threadIdx.x].slot, &x, sizeof(T));
  wait(State::at_warp);
  T other;
  std::memcpy(&other, &fibres[threadIdx.x / 32 * 32 + source].slot, sizeof(T));
  wait(State::at_warp);
  return other;
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::State::at_block); }
inline void __syncwarp() { emulated::wait(emulated::State::at_warp); }
inline int __syncthreads_or(int x) {
  emulated::fibres[threadIdx.x].slot = x != 0;
  __syncthreads();
  int any = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) any |= static_cast<int>(emulated::fibres[i].slot);
  __syncthreads();
  return any;
}
template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  return emulated::from_lane(x, static_cast<unsigned>(lane) % 32);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  return emulated::from_lane(x, threadIdx.x % 32 ^ static_cast<unsigned>(distance));
}
template <typename T>
T __shfl_down_sync(unsigned, T x, int distance) {
  const unsigned lane = threadIdx.x % 32 + static_cast<unsigned>(distance);
  return emulated::from_lane(x, lane < 32 ? lane : threadIdx.x % 32);
}
inline unsigned __ballot_sync(unsigned, int x) {
  emulated::fibres[threadIdx.x].slot = x != 0;
  emulated::wait(emulated::State::at_warp);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    votes |= static_cast<unsigned>(emulated::fibres[threadIdx.x / 32 * 32 + lane].slot) << lane;
  }
  emulated::wait(emulated::State::at_warp);
  return votes;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0 };
enum {
  cudaLaunchAttributeClusterDimension,
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
};
struct cudaLaunchAttribute {
  int id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}

namespace emulated {

inline int shared_bytes = 163 * 1024;  // that a block may have
inline int multiprocessors = 128;

inline void run_grid(const dim3& grid, const dim3& block, std::size_t dynamic_bytes) {
  if (block.x % 32 != 0) fail("a block that is no whole number of warps");
  if (dynamic_bytes > static_cast<std::size_t>(shared_bytes)) fail("too much shared memory");
  gridDim = dim3(std::min(grid.x, most_blocks), grid.y);
  blockDim = block;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      std::memset(dynamic_memory, 0xee, kDynamicBytes);
      run_block(block.x);
      const unsigned char* const end = dynamic_memory + dynamic_bytes;
      if (std::any_of(end, end + kGuardBytes, [](unsigned char x) { return x != 0xee; })) {
        fail("written past the end of shared memory");
      }
    }
  }
}

// kernel<<<grid, block, bytes, stream>>>(...)
template <typename Kernel>
auto launch(Kernel kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes, cudaStream_t) {
  return [=](const auto&... arguments) {
    body = [&] { kernel(arguments...); };
    run_grid(grid, block, dynamic_bytes);
  };
}

}  // namespace emulated

inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  const bool count = attribute == cudaDevAttrMultiProcessorCount;
  *value = count ? emulated::multiprocessors : emulated::shared_bytes;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  return *clusters = 0, cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (config->numAttrs > 0) emulated::fail("there are no clusters");
  emulated::body = [&] { kernel(arguments...); };
  emulated::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes);
  return cudaSuccess;
}
