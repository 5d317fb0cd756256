// How a call is cut into parts, and the memory that each part works in.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "simd.h"

namespace r2kd {
namespace R2KD_ISA {

struct Range {
  std::int64_t begin, end;
};

constexpr int kMaxParts = 256;

// One value per part, on the stack.
template <typename T>
struct PerPart {
  T items[kMaxParts];
  T& operator[](int part) { return items[part]; }
};

// A second thread pays off from about this many elements (docs/performance.md, "threads").
constexpr std::int64_t kElementsPerPart = 8192;

// As many parts as threads, unless that leaves a part with too little to do.
inline int part_count(std::int64_t items, std::int64_t elements_per_item, int threads) {
  std::int64_t parts = items * elements_per_item / kElementsPerPart;
  if (parts > items) parts = items;
  if (parts > threads) parts = threads;
  if (parts > kMaxParts) parts = kMaxParts;
  return parts < 1 ? 1 : static_cast<int>(parts);
}

inline Range part_range(std::int64_t items, int parts, int part) {
  const std::int64_t base = items / parts, extra = items % parts;
  const std::int64_t begin = part * base + (part < extra ? part : extra);
  return {begin, begin + base + (part < extra ? 1 : 0)};
}

// Columns rounded up to whole registers, so that inner loops over scratch need no remainder.
template <typename T>
constexpr std::int64_t padded(std::int64_t cols) {
  return (cols + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Sums in the working type run over at most this many columns, 64 to a lane, then go on in double.
template <typename T>
constexpr std::int64_t kBlockCols = 64 * kLanes<T>;

// One block of memory, cut into equal parts that start on their own cache line.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

  bool allocate(int parts, std::int64_t bytes_per_part) {
    constexpr std::int64_t line = 64;
    stride_ = (bytes_per_part + line - 1) / line * line;
    const auto bytes = static_cast<std::size_t>(stride_) * static_cast<std::size_t>(parts);
    memory_ = static_cast<char*>(std::aligned_alloc(line, bytes));
    return memory_ != nullptr;
  }
  char* part(int part) const { return memory_ + part * stride_; }

 private:
  char* memory_ = nullptr;
  std::int64_t stride_ = 0;
};

}  // namespace R2KD_ISA
}  // namespace r2kd
