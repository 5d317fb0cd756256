// How a call of the ranks is split over a GPU, and what a block has of the scratch memory. Plain
// arithmetic on sizes, so that a machine without a GPU can test it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "r2kd/rank_math.h"

namespace r2kd {
namespace cuda {

enum class RankOp : int {
  hard_spearman = 0,
  soft_spearman = 1,
  soft_spearman_backward = 2,
  soft_rank = 3,
  soft_rank_backward = 4,
};

// Entries that a block sorts in 32 KiB of shared memory, and in an eighth of it.
template <typename T>
constexpr int kSortTile = 32 * 1024 / static_cast<int>(sizeof(SortEntry<T>));
template <typename T>
constexpr int kSmallSortTile = kSortTile<T> / 8;

constexpr int kRankThreads = 512;  // at most
constexpr int kMergedEntries = 16;  // that a thread merges at a time; divides both tiles
constexpr std::int64_t kRankBlocks = 2048;
constexpr std::int64_t kFewestRankBlocks = 264;  // where scratch memory limits them
constexpr std::int64_t kRankScratch = std::int64_t{256} << 20;  // bytes

// Offsets are bytes from the beginning of a block's scratch, -1 for what the op does not need. Each
// array has C elements.
struct RankPlan {
  int threads;  // of a block
  bool small;   // the row fits into the small tile; else into the large one, or into neither
  bool merges;  // tiles are sorted in shared memory and merged in scratch memory
  std::int64_t blocks;  // each takes row after row
  std::int64_t at_entries, at_merged, at_sums, at_begins, at_y_ranks, at_slopes;
  std::int64_t block_bytes, scratch_bytes;
};

inline RankPlan plan_rank(RankOp op, std::int64_t rows, std::int64_t cols, bool in_double) {
  const int large = in_double ? kSortTile<double> : kSortTile<float>;
  const int small = in_double ? kSmallSortTile<double> : kSmallSortTile<float>;
  const bool sorts = op != RankOp::soft_rank_backward;
  const bool soft_spearman = op == RankOp::soft_spearman || op == RankOp::soft_spearman_backward;
  RankPlan plan{};
  plan.threads = cols <= 256 ? 128 : cols <= 1024 ? 256 : kRankThreads;
  plan.small = cols <= small;
  plan.merges = sorts && cols > large;
  const auto take = [&](bool needed, std::int64_t bytes) {
    if (!needed) return std::int64_t{-1};
    const std::int64_t at = plan.block_bytes;
    plan.block_bytes += (cols * bytes + 15) / 16 * 16;
    return at;
  };
  const std::int64_t entry = in_double ? sizeof(SortEntry<double>) : sizeof(SortEntry<float>);
  plan.at_entries = take(plan.merges, entry);
  plan.at_merged = take(plan.merges, entry);
  plan.at_sums = take(op != RankOp::hard_spearman, sizeof(double));
  plan.at_begins = take(true, sizeof(int));  // of pools; the places of y where ranks are hard
  plan.at_y_ranks = take(soft_spearman, sizeof(double));
  plan.at_slopes = take(op == RankOp::soft_spearman_backward, sizeof(double));
  const std::int64_t affordable = std::max(kRankScratch / plan.block_bytes, kFewestRankBlocks);
  plan.blocks = std::min({rows, kRankBlocks, affordable});
  plan.scratch_bytes = plan.blocks * plan.block_bytes;
  return plan;
}

}  // namespace cuda
}  // namespace r2kd
