// How a call of the correlation is split over a GPU, and where in the scratch each kernel's results
// go. Plain arithmetic on sizes, so that a machine without a GPU can test it. Sums are added in an
// order that follows from these numbers alone: no number here may depend on what the GPU does.
#pragma once

#include <algorithm>
#include <cstdint>

#include "r2kd/correlation.h"
#include "r2kd/shared.h"

namespace r2kd {
namespace cuda {

struct DeviceLimits {
  int shared_bytes;  // dynamic shared memory that a block may have
  int most_blocks;   // of a thread-block cluster; 1 where there are none (before sm_90)
};

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kColumnThreads = 128;  // of columns_kernel, which are as many columns
constexpr int kColumnBlockRows = 64;  // rows that a column sums in one number each
// Threads of a block that shares a row, which take `chunk` numbers at a time.
R2KD_SHARED constexpr int most_threads(int chunk) { return chunk == 8 ? 256 : 512; }
constexpr int kFinishThreads = 512;
constexpr std::int64_t kMaxCols = std::int64_t{1} << 30;

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// Numbers per column in the partial moments of one part: pp, qq, pq, and where centred the means of
// p and q, each followed by its rest.
R2KD_SHARED int moment_count(bool centered) { return centered ? 7 : 3; }

struct ForwardPlan {
  bool tiles;              // tile_kernel; else rows_kernel, and columns_kernel for the columns
  int tile_rows;           // rows that tile_kernel has in shared memory at a time
  int slices;              // threads of tile_kernel that share the rows of a column
  int parts;               // of the rows, each with its own partial moments of the columns
  std::int64_t part_rows;  // rows of a part
  int row_sums;            // partial sums of the row term
  int row_threads;         // rows_kernel: threads of a block,
  int cluster;             // and blocks that share a row
  int finish_slices;       // threads of finish_kernel that share the parts of a column
  std::int64_t col_sums;   // partial sums of the column term; with one, finish_kernel gives the loss
  int shared_bytes;        // dynamic shared memory of tile_kernel
  int launches;
  // Offsets in the scratch, in bytes.
  std::int64_t at_row_sums, at_counts, at_col_sums, at_partials, scratch_bytes;
};

inline std::int64_t tile_bytes(std::int64_t cols, int rows, int slices, int size, bool intra) {
  return 8 * kTileWarps + size * (2 * rows * cols + 3 * rows) +
         (intra ? size * slices * (10 * cols + 1) : 0);
}

inline int tile_slices(std::int64_t cols, int tile_rows) {
  return static_cast<int>(std::clamp<std::int64_t>(kTileThreads / cols, 1, tile_rows / 4));
}

// chunk: numbers that a thread takes at a time; weighed: whether there is a mask or a sample weight
inline ForwardPlan plan_forward(const CorrelationParams& params, bool in_double, int chunk,
                                bool weighed, const DeviceLimits& device) {
  const std::int64_t rows = params.rows, cols = params.cols;
  const bool intra = params.intra_weight != 0;
  const int size = in_double ? 8 : 4;
  ForwardPlan plan{};
  plan.cluster = 1;
  plan.tiles = cols <= (in_double ? 512 : 1024);
  if (plan.tiles) {
    // Few rows in a tile keep many blocks busy. Many make more threads work on narrow columns.
    int tile = 8;
    while (tile < 64 && rows / (2 * tile) >= 256 &&
           tile_bytes(cols, 2 * tile, tile_slices(cols, 2 * tile), size, intra) <= 48 * 1024) {
      tile *= 2;
    }
    while (tile > 1 && tile_bytes(cols, tile, 1, size, intra) > device.shared_bytes) tile /= 2;
    const std::int64_t tiles = ceil_div(rows, tile);
    const std::int64_t most = cols <= 128 ? 512 : 256;
    const std::int64_t tiles_per_part = ceil_div(tiles, std::min(tiles, most));
    plan.tile_rows = tile;
    plan.slices = tile < 4 ? 1 : tile_slices(cols, tile);
    plan.part_rows = tiles_per_part * tile;
    plan.parts = static_cast<int>(ceil_div(rows, plan.part_rows));
    plan.row_sums = plan.parts;
    plan.shared_bytes = static_cast<int>(tile_bytes(cols, tile, plan.slices, size, intra));
    plan.launches = 1;
  } else {
    plan.row_threads = rows >= 1024 ? 256 : most_threads(chunk);
    plan.row_sums = static_cast<int>(std::min<std::int64_t>(rows, 1024));
    // Few and long rows would leave most of the GPU idle.
    while (plan.cluster < std::min(device.most_blocks, 8) && rows * plan.cluster * 2 <= 256 &&
           cols / (plan.cluster * 2) >= 8192) {
      plan.cluster *= 2;
    }
    plan.launches = 1;
    if (intra) {
      const std::int64_t wanted = ceil_div(1024, ceil_div(cols, kColumnThreads));
      const std::int64_t most = std::clamp<std::int64_t>(rows / 16, 1, 256);
      plan.part_rows = ceil_div(rows, std::min(wanted, most));
      plan.parts = static_cast<int>(ceil_div(rows, plan.part_rows));
      plan.launches += 1;
    }
  }
  if (intra) {
    plan.finish_slices = plan.parts <= 16 ? 4 : plan.parts <= 64 ? 8 : 16;
    plan.col_sums = cols <= 256 ? 1 : ceil_div(cols, kFinishThreads / plan.finish_slices);
    plan.launches += 1;
  }
  if (plan.col_sums != 1) plan.launches += 1;
  if (weighed) plan.launches += 1;

  plan.at_row_sums = 16;  // after the two numbers of weigh_kernel
  plan.at_counts = plan.at_row_sums + 8 * plan.row_sums;
  plan.at_col_sums = plan.at_counts + 8 * plan.parts;
  plan.at_partials = round_up(plan.at_col_sums + 8 * plan.col_sums, 16);
  plan.scratch_bytes = plan.at_partials;
  if (intra) plan.scratch_bytes += plan.parts * moment_count(params.centered) * cols * size;
  return plan;
}

struct BackwardPlan {
  int threads;           // of a block
  int row_threads;       // threads of a block that share a row: 32 or all
  int cluster;           // blocks that share a row
  bool resident;         // p and g of a row stay in shared memory; else the row is read twice
  std::int64_t span;     // columns of a row that one block has
  std::int64_t blocks;
  int shared_bytes;
};

inline BackwardPlan plan_backward(const CorrelationParams& params, bool in_double, int chunk,
                                  const DeviceLimits& device) {
  constexpr std::int64_t kStatic = 1024;  // what the kernel has of shared memory besides
  const std::int64_t rows = params.rows, cols = params.cols;
  const int size = in_double ? 8 : 4;
  BackwardPlan plan{};
  plan.cluster = 1;
  plan.resident = true;
  if (cols <= (in_double ? 512 : 1024)) {
    plan.threads = 256;
    plan.row_threads = 32;
    plan.span = round_up(cols, 32 * chunk);
    plan.blocks = ceil_div(rows, plan.threads / 32);
    while (plan.threads > 32 && plan.threads / 32 * 2 * plan.span * size > device.shared_bytes) {
      plan.threads /= 2;
      plan.blocks = ceil_div(rows, plan.threads / 32);
    }
    plan.shared_bytes = static_cast<int>(plan.threads / 32 * 2 * plan.span * size);
    return plan;
  }
  const auto set = [&](int cluster) {
    const std::int64_t span = ceil_div(cols, cluster);
    int threads = 128;
    while (threads < most_threads(chunk) && threads * chunk * 2 < span) threads *= 2;
    plan.threads = plan.row_threads = threads;
    plan.cluster = cluster;
    plan.span = round_up(span, threads * chunk);
    return 2 * plan.span * size;
  };
  const std::int64_t most = device.shared_bytes - kStatic;
  // Two blocks to a multiprocessor: one computes while the other waits for memory.
  std::int64_t bytes = set(1);
  while (plan.cluster < device.most_blocks && bytes > most / 2) bytes = set(2 * plan.cluster);
  plan.resident = bytes <= most;
  if (!plan.resident) {
    set(1);
    bytes = 0;
  }
  plan.shared_bytes = static_cast<int>(bytes);
  plan.blocks = rows * plan.cluster;
  return plan;
}

}  // namespace cuda
}  // namespace r2kd
