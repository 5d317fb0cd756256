// Large pages for large outputs.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace r2kd {

// Asks for large pages under memory that may be written for the first time. glibc takes blocks of
// more than 32 MiB from the system each time they are allocated, smaller ones whenever the end of the
// heap was given back in between, and the first write to each page of 4 KiB is then a fault: for a
// gradient of 64 MB 16,000 of them, which take longer than the gradient (docs/performance.md, "large
// pages"). The advice changes no content and is ignored where the system knows no large pages. A
// block of 4 MiB holds at least one large page, of 2 MiB, wherever it begins.
inline void advise_large_pages(void* memory, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::int64_t kFreshFrom = std::int64_t{4} << 20;
  constexpr std::uintptr_t kPage = 4096;
  if (bytes < kFreshFrom) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) /
                   kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace r2kd
