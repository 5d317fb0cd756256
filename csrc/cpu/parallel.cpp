#include "parallel.h"

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace r2kd {
namespace {

// The core is not linked with an OpenMP runtime. A wheel of torch brings its own copy of one
// under a mangled file name, so linking would load a second runtime whose threads compete with
// torch's. torch loads its copy with global visibility; GCC's entry point GOMP_parallel, which
// LLVM's and Intel's runtimes export too, is therefore found among the process's global symbols.
struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;

  Runtime() {
#if defined(__linux__)
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    thread = reinterpret_cast<decltype(thread)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    threads = reinterpret_cast<decltype(threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
#endif
  }
  bool found() const { return parallel && thread && threads; }
};

const Runtime& runtime() {
  static const Runtime instance;
  return instance;
}

struct Region {
  int parts;
  void (*body)(int, void*);
  void* context;
};

void run_share(void* argument) {
  const auto* region = static_cast<const Region*>(argument);
  const int step = runtime().threads();
  for (int part = runtime().thread(); part < region->parts; part += step) {
    region->body(part, region->context);
  }
}

}  // namespace

void run_parts(int parts, void (*body)(int, void*), void* context) {
  if (parts <= 1 || !runtime().found()) {
    for (int part = 0; part < parts; ++part) body(part, context);
    return;
  }
  Region region{parts, body, context};
  runtime().parallel(run_share, &region, static_cast<unsigned>(parts), 0);
}

const char* parallel_runtime() { return runtime().found() ? "GOMP" : "none"; }

}  // namespace r2kd
