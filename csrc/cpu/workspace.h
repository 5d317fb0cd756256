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

// Memory that a thread keeps from one call to the next. In a training step gradients come and go at the
// end of the heap, and the system takes back what is freed there: a workspace from malloc then faults
// on each page it touches and moves the gradients about, which costs a tenth of a step on 256 x 1000
// logits (docs/performance.md, "kept workspace").
struct KeptMemory {
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::int64_t kMost = 0;  // each call gets a block of its own, with its bounds
#else
  static constexpr std::int64_t kMost = std::int64_t{8} << 20;
#endif
  char* memory = nullptr;
  std::int64_t bytes = 0;
  bool lent = false;

  ~KeptMemory() { std::free(memory); }
};
inline thread_local KeptMemory kept_memory;

// One block of memory, cut into equal parts that start on their own cache line.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (borrowed_) {
      kept_memory.lent = false;
    } else {
      std::free(memory_);
    }
  }

  bool allocate(int parts, std::int64_t bytes_per_part) {
    stride_ = (bytes_per_part + kLine - 1) / kLine * kLine;
    const std::int64_t bytes = stride_ * parts;
    borrowed_ = KeptMemory::kMost > 0 && bytes <= KeptMemory::kMost && !kept_memory.lent;
    memory_ = borrowed_ ? borrow(bytes) : fresh(bytes);
    return memory_ != nullptr;
  }
  char* part(int part) const { return memory_ + part * stride_; }

 private:
  static constexpr std::int64_t kLine = 64;

  static char* fresh(std::int64_t bytes) {
    return static_cast<char*>(std::aligned_alloc(kLine, static_cast<std::size_t>(bytes)));
  }
  static char* borrow(std::int64_t bytes) {
    KeptMemory& kept = kept_memory;
    if (kept.bytes < bytes) {
      std::free(kept.memory);
      kept.memory = fresh(bytes);
      kept.bytes = kept.memory == nullptr ? 0 : bytes;
    }
    kept.lent = kept.memory != nullptr;
    return kept.memory;
  }

  char* memory_ = nullptr;
  std::int64_t stride_ = 0;
  bool borrowed_ = false;
};

// Hands out arrays of a block of memory, each on its own cache line. Over null it only counts.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}
  template <typename Item>
  Item* take(std::int64_t count) {
    Item* const items = reinterpret_cast<Item*>(memory_ + used_);
    used_ += (count * static_cast<std::int64_t>(sizeof(Item)) + 63) / 64 * 64;
    return items;
  }
  std::int64_t used() const { return used_; }

 private:
  char* memory_;
  std::int64_t used_ = 0;
};

}  // namespace R2KD_ISA
}  // namespace r2kd
