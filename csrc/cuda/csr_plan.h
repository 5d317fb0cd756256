// How a call of the sparse layers is split over a GPU. Plain arithmetic on sizes, so that a machine
// without a GPU can test it. No sum depends on it: each output is added by one thread, in the order
// of the entries.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan.h"
#include "r2kd/sparse.h"

namespace r2kd {
namespace cuda {

constexpr int kCsrWarps = 8;  // of a block; each has rows of the weight of its own
constexpr int kCsrThreads = 32 * kCsrWarps;
constexpr int kCsrPixels = 8;  // of a tile, that each lane has: 1 x 8, or 2 x 4 of narrow images
// A block's copy of the input is `kStagedPlaces` lines of a number for each lane and one that is left
// free: 66 KiB, so that two blocks fit into a multiprocessor, and one stages while the other adds.
constexpr int kStagedPlaces = 512;
constexpr int kStagedLine = 33;
constexpr std::int64_t kMostCsrBlocks = std::int64_t{1} << 30;

// An entry of the weight, as a warp shares it with its lanes.
struct StagedEntry {
  int place;  // of what the entry is multiplied by, in the block's copy of the input
  float value;
};
constexpr int kStagedBytes = kCsrThreads * static_cast<int>(sizeof(StagedEntry));

struct CsrLinearPlan {
  int rows;     // of the weight, that a warp has
  int samples;  // that a lane has, 32 apart
  int columns;  // that are staged at a time
  std::int64_t row_tiles, tiles, blocks;
  int shared_bytes;
};

inline CsrLinearPlan plan_csr_linear(std::int64_t batch, std::int64_t rows, std::int64_t cols,
                                     int multiprocessors) {
  // x is staged once for each tile of rows, so these are as tall as leaves a block for each
  // multiprocessor; entries are read once for each tile of samples.
  constexpr int shapes[][2] = {{16, 4}, {16, 2}, {16, 1}, {4, 1}};
  CsrLinearPlan plan{};
  for (const auto& shape : shapes) {
    plan.rows = shape[0];
    plan.samples = shape[1];
    plan.row_tiles = ceil_div(rows, kCsrWarps * plan.rows);
    plan.tiles = plan.row_tiles * ceil_div(batch, 32 * plan.samples);
    const bool full = 2 * rows > kCsrWarps * plan.rows && 2 * batch > 32 * plan.samples;
    if (full && plan.tiles >= multiprocessors) break;
  }
  plan.columns = static_cast<int>(
      std::min<std::int64_t>(kStagedPlaces / plan.samples, round_up(std::max<std::int64_t>(cols, 1), 32)));
  plan.blocks = std::min(plan.tiles, kMostCsrBlocks);
  plan.shared_bytes = kStagedBytes + plan.columns * (32 * plan.samples + 1) * static_cast<int>(sizeof(float));
  return plan;
}

// Lanes are images, or bands of output rows of them where images are few, as on the CPU.
struct CsrConv2dPlan {
  int rows;  // of the weight, that a warp has
  int bands, band_rows;
  std::int64_t lane_blocks;
  int tile_rows, tile_cols;  // of a tile of pixels
  std::int64_t tiles_down, tiles_across;
  // What is staged of the input for a tile: of each channel all that the tile reads, or where this is
  // less or all would not fit, of each column of the weight the 8 pixels that it is multiplied by.
  bool whole;
  int patch_cols;        // where `whole`
  int positions;         // of a unit, which is a channel or a column of the weight
  int unit_columns;      // columns of the weight in a unit
  std::int64_t units;    // of a group
  int staged_units;      // at a time
  std::int64_t row_tiles, tiles, blocks;  // row_tiles: of a group
  int shared_bytes;
};

inline CsrConv2dPlan plan_csr_conv2d(const Conv2dParams& p, int multiprocessors) {
  CsrConv2dPlan plan{};
  const std::int64_t band = ceil_div(p.out_height, ceil_div(32, p.batch));
  plan.bands = static_cast<int>(ceil_div(p.out_height, band));
  plan.band_rows = static_cast<int>(ceil_div(p.out_height, plan.bands));
  plan.lane_blocks = ceil_div(p.batch * plan.bands, 32);
  plan.tile_cols = static_cast<int>(ceil_div(p.out_width, ceil_div(p.out_width, kCsrPixels)));
  plan.tile_rows = plan.tile_cols <= kCsrPixels / 2 && plan.band_rows > 1 ? 2 : 1;
  plan.tiles_down = ceil_div(plan.band_rows, plan.tile_rows);
  plan.tiles_across = ceil_div(p.out_width, plan.tile_cols);

  const std::int64_t area = p.kernel[0] * p.kernel[1], channels = p.channels / p.groups;
  const std::int64_t patch_rows = (plan.tile_rows - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1;
  const std::int64_t patch_cols = (plan.tile_cols - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1;
  plan.whole = patch_rows <= kStagedPlaces && patch_cols <= kStagedPlaces &&
               patch_rows * patch_cols <= std::min<std::int64_t>(kStagedPlaces, kCsrPixels * area);
  plan.patch_cols = plan.whole ? static_cast<int>(patch_cols) : 0;
  plan.positions = plan.whole ? static_cast<int>(patch_rows * patch_cols) : kCsrPixels;
  plan.unit_columns = plan.whole ? static_cast<int>(area) : 1;
  plan.units = plan.whole ? channels : channels * area;
  plan.staged_units = static_cast<int>(
      std::min<std::int64_t>(kStagedPlaces / plan.positions, std::max<std::int64_t>(plan.units, 1)));

  const std::int64_t rows = p.out_channels / p.groups;
  const std::int64_t others = p.groups * plan.tiles_down * plan.tiles_across * plan.lane_blocks;
  for (const int tall : {8, 4, 2}) {
    plan.rows = tall;
    plan.row_tiles = ceil_div(rows, kCsrWarps * tall);
    plan.tiles = plan.row_tiles * others;
    if (2 * rows > kCsrWarps * tall && plan.tiles >= multiprocessors) break;
  }
  plan.blocks = std::min(plan.tiles, kMostCsrBlocks);
  const int places = plan.staged_units * plan.positions;
  plan.shared_bytes =
      kStagedBytes + static_cast<int>(sizeof(int)) * plan.staged_units * plan.unit_columns +
      static_cast<int>(sizeof(float)) * places * kStagedLine;
  return plan;
}

}  // namespace cuda
}  // namespace r2kd
