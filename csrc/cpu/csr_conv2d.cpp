// A 2-D convolution with a sparse weight, on the CPU. Compiled once per instruction set; dispatch.cpp
// picks one.
//
// Lanes are images, or bands of rows of them where images are few or large. A block of lanes is copied
// once, with its padding, as x[channel][row][column][lane]; there is no unfolded copy. Each lane then
// computes the same tile of up to 8 pixels, so that one entry of the weight is a broadcast and 8 fused
// multiply-adds with whole registers, whatever the kernel, stride and dilation.

#include <algorithm>
#include <limits>

#include "csr_rows.h"
#include "lanes.h"
#include "parallel.h"
#include "sparse_entries.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

constexpr int kL = kLanes<float>;
constexpr std::int64_t kChunkRows = 128;
// The packed copy of a block of lanes; bands are made as low as this asks for.
constexpr std::int64_t kPackedBytes = 2 << 20;
// What the pixels of a tile read of a block of channels stays in the first-level cache, unless rows
// have too few entries there to pay for fetching and storing the sums.
constexpr std::int64_t kFirstLevel = 24 << 10;
constexpr std::int64_t kEntriesPerVisit = 16;

// What a call works on, and how it is cut. A lane is a band of output rows of one image.
struct Plan {
  Plan(const Conv2dParams& params, const CsrMatrix& weight, int threads) : p(params) {
    group_channels = p.channels / p.groups;
    group_rows = p.out_channels / p.groups;
    area = p.kernel[0] * p.kernel[1];
    width = (p.out_width - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1;
    const std::int64_t lanes_wanted = (kL + p.batch - 1) / p.batch;
    std::int64_t band = (p.out_height + lanes_wanted - 1) / lanes_wanted;
    while (band > 1 && packed_size(band) * std::int64_t{sizeof(float)} > kPackedBytes) band = (band + 1) / 2;
    bands = (p.out_height + band - 1) / band;
    band_rows = (p.out_height + bands - 1) / bands;
    height = input_rows(band_rows);
    lanes = p.batch * bands;
    blocks = (lanes + kL - 1) / kL;

    tile_cols = (p.out_width + kTile - 1) / kTile;
    tile_cols = (p.out_width + tile_cols - 1) / tile_cols;
    tile_rows = tile_cols <= kTile / 2 ? 2 : 1;

    const std::int64_t tile_area = ((tile_rows - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1) *
                                   ((tile_cols - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1);
    const std::int64_t bytes = tile_area * kL * std::int64_t{sizeof(float)};
    const std::int64_t entries = weight.row_offsets[weight.rows];
    const std::int64_t paying =
        entries == 0 ? group_channels : kEntriesPerVisit * weight.rows * group_channels / entries + 1;
    const std::int64_t most = std::max<std::int64_t>({kFirstLevel / bytes, paying, 1});
    const std::int64_t channel_blocks = (group_channels + most - 1) / most;
    block_channels = (group_channels + channel_blocks - 1) / channel_blocks;

    const std::int64_t wanted = (threads + blocks * p.groups - 1) / (blocks * p.groups);
    chunks = std::max((group_rows + kChunkRows - 1) / kChunkRows,
                      std::min(wanted, (group_rows + 15) / 16));
    items = blocks * p.groups * chunks;
    work = (entries + weight.rows + group_channels) * p.out_height * p.out_width * p.batch / kL;
  }

  std::int64_t input_rows(std::int64_t band) const {
    return (band - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1;
  }
  std::int64_t packed_size(std::int64_t band) const {
    return group_channels * input_rows(band) * width * kL;
  }
  std::int64_t line() const { return (std::max(width, group_channels) + 7) / 8 * 8; }

  const Conv2dParams& p;
  std::int64_t group_channels, group_rows, area;
  std::int64_t bands, band_rows, lanes, blocks;  // of output rows; blocks of lanes
  std::int64_t height, width;                    // of the packed copy
  std::int64_t tile_rows, tile_cols;
  std::int64_t block_channels;         // the sums are fetched and stored once for so many
  std::int64_t chunks, items, work;    // chunks of the rows of a group
};

struct Scratch {
  Scratch(Carver& carver, const Plan& plan)
      : packed(carver.take<float>(plan.packed_size(plan.band_rows))),
        sums(carver.take<float>(kChunkRows * kTile * kL)),
        lines(carver.take<float>(std::max<std::int64_t>(plan.line(), kChunkRows) * std::max(kL, 8))),
        left(carver.take<std::int64_t>(kChunkRows)),
        places(carver.take<std::int32_t>(plan.group_channels * plan.area)) {}
  float* packed;         // [C / groups, height, width, lanes]
  float* sums;           // [chunk, tile, lanes]
  float* lines;          // [lanes, line]
  std::int64_t* left;    // [chunk], the first entry of each row that is not added yet
  std::int32_t* places;  // [K], where in `packed` the input of a column is for the first pixel
};

struct Call {
  const Plan& plan;
  const ConstImages& x;
  const CsrMatrix& weight;
  const float* values;  // [nnz], in float
  const float* bias;    // [R], in float, or null
  void* y;
  bool channels_last;
};

// Copies what a block of lanes reads of the channels of a group, with zeros for padding and for the
// lanes past the last one.
void pack(const Call& call, std::int64_t block, std::int64_t group, const Scratch& scratch) {
  const Plan& plan = call.plan;
  const Conv2dParams& p = plan.p;
  const ConstImages& x = call.x;
  const std::int64_t line = plan.line();
  const std::int64_t channel = group * plan.group_channels;
  const std::int64_t plane = plan.height * plan.width * kL;
  // Columns of x that there are, [first, last), counted from the left padding.
  const std::int64_t first = std::min(p.padding[1], plan.width);
  const std::int64_t last = std::max(first, std::min(p.padding[1] + p.width, plan.width));
  const bool by_channel = x.strides[1] == 1 && x.strides[3] != 1;
  std::fill(scratch.lines, scratch.lines + line * kL, 0.0f);
  for (std::int64_t h = 0; h < plan.height; ++h) {
    std::int64_t rows[kL];  // offset of row h of each lane in x, or -1
    bool none = true;
    for (int lane = 0; lane < kL; ++lane) {
      const std::int64_t index = block * kL + lane;
      const std::int64_t row = index % plan.bands * plan.band_rows * p.stride[0] + h - p.padding[0];
      const bool there = index < plan.lanes && row >= 0 && row < p.height;
      rows[lane] = there ? index / plan.bands * x.strides[0] + row * x.strides[2] : -1;
      none = none && !there;
      if (!there) std::fill(scratch.lines + lane * line, scratch.lines + (lane + 1) * line, 0.0f);
    }
    float* const target = scratch.packed + h * plan.width * kL;
    if (none || by_channel) {
      for (std::int64_t c = 0; c < plan.group_channels; ++c) {
        std::fill(target + c * plane, target + c * plane + (none ? plan.width : first) * kL, 0.0f);
        if (!none) std::fill(target + c * plane + last * kL, target + c * plane + plan.width * kL, 0.0f);
      }
    }
    if (none) continue;
    if (by_channel) {
      for (std::int64_t w = first; w < last; ++w) {
        for (int lane = 0; lane < kL; ++lane) {
          if (rows[lane] < 0) continue;
          load_line(x.data, x.dtype, rows[lane] + channel + (w - p.padding[1]) * x.strides[3], 1,
                    plan.group_channels, scratch.lines + lane * line);
        }
        transpose(scratch.lines, line, kL, plan.group_channels, target + w * kL, plane);
      }
      continue;
    }
    for (std::int64_t c = 0; c < plan.group_channels; ++c) {
      for (int lane = 0; lane < kL; ++lane) {
        if (rows[lane] < 0) continue;
        float* const into = scratch.lines + lane * line;
        std::fill(into, into + first, 0.0f);
        load_line(x.data, x.dtype, rows[lane] + (channel + c) * x.strides[1], x.strides[3], last - first,
                  into + first);
        std::fill(into + last, into + plan.width, 0.0f);
      }
      transpose(scratch.lines, line, kL, plan.width, target + c * plane, kL);
    }
  }
}

// A tile of pixels: output rows from `row` on, counted in a band, and output columns from `col` on.
struct Tile {
  std::int64_t row, col;
};

// Writes the sums of a tile [chunk, rows, cols, lanes] to y.
void unpack(const Call& call, std::int64_t block, Range channels, Tile tile, std::int64_t tile_rows,
            std::int64_t tile_cols, const Scratch& scratch) {
  const Plan& plan = call.plan;
  const Conv2dParams& p = plan.p;
  const std::int64_t pixels = tile_rows * tile_cols, chunk = channels.end - channels.begin;
  const std::int64_t image = p.out_channels * p.out_height * p.out_width;
  const auto each_lane = [&](std::int64_t row, auto store) {
    for (int lane = 0; lane < kL; ++lane) {
      const std::int64_t index = block * kL + lane;
      const std::int64_t out_row = index % plan.bands * plan.band_rows + row;
      // A band ends where the next one starts, the last one with the image.
      if (index >= plan.lanes || out_row >= p.out_height) continue;
      store(lane, index / plan.bands, out_row);
    }
  };
  if (call.channels_last) {
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
      transpose(scratch.sums + pixel * kL, pixels * kL, chunk, kL, scratch.lines, kChunkRows);
      each_lane(tile.row + pixel / tile_cols, [&](int lane, std::int64_t n, std::int64_t row) {
        const std::int64_t col = tile.col + pixel % tile_cols;
        store_line(scratch.lines + lane * kChunkRows, chunk, call.y, call.x.dtype,
                   n * image + (row * p.out_width + col) * p.out_channels + channels.begin);
      });
    }
    return;
  }
  for (std::int64_t r = 0; r < chunk; ++r) {
    transpose(scratch.sums + r * pixels * kL, kL, pixels, kL, scratch.lines, kTile);
    for (std::int64_t i = 0; i < tile_rows; ++i) {
      each_lane(tile.row + i, [&](int lane, std::int64_t n, std::int64_t row) {
        store_line(scratch.lines + lane * kTile + i * tile_cols, tile_cols, call.y, call.x.dtype,
                   n * image + ((channels.begin + r) * p.out_height + row) * p.out_width + tile.col);
      });
    }
  }
}

template <int ROWS, int COLS>
void add_tile(const Call& call, Range channels, Tile tile, const Scratch& scratch) {
  constexpr std::int64_t size = ROWS * COLS * kL;
  const Plan& plan = call.plan;
  const CsrMatrix& weight = call.weight;
  const std::int64_t chunk = channels.end - channels.begin;
  const std::int64_t row_step = plan.p.stride[0] * plan.width * kL;
  const float* const x =
      scratch.packed + (tile.row * plan.p.stride[0] * plan.width + tile.col * plan.p.stride[1]) * kL;
  for (std::int64_t r = 0; r < chunk; ++r) {
    const float start = call.bias == nullptr ? 0.0f : call.bias[channels.begin + r];
    std::fill(scratch.sums + r * size, scratch.sums + (r + 1) * size, start);
    scratch.left[r] = weight.row_offsets[channels.begin + r];
  }
  const std::int32_t* const places = scratch.places;
  const auto place = [places](std::int32_t column) { return static_cast<std::int64_t>(places[column]); };
  for (std::int64_t c = 0; c < plan.group_channels; c += plan.block_channels) {
    const auto limit =
        static_cast<std::int32_t>(std::min(c + plan.block_channels, plan.group_channels) * plan.area);
    for (std::int64_t r = 0; r < chunk; ++r) {
      const Entries row{call.values, weight.columns, scratch.left[r],
                        weight.row_offsets[channels.begin + r + 1]};
      float* const sums = scratch.sums + r * size;
      // Neighbouring pixels a whole register apart: their distance is part of the instruction.
      scratch.left[r] =
          plan.p.stride[1] == 1
              ? add_entries<ROWS, COLS>(row, limit, x, row_step, kL, place, sums)
              : add_entries<ROWS, COLS>(row, limit, x, row_step, plan.p.stride[1] * kL, place, sums);
    }
  }
}

void add_channels(const Call& call, std::int64_t block, Range channels, const Scratch& scratch) {
  const Plan& plan = call.plan;
  for (std::int64_t row = 0; row < plan.band_rows; row += plan.tile_rows) {
    const std::int64_t rows = std::min(plan.tile_rows, plan.band_rows - row);
    for (std::int64_t col = 0; col < plan.p.out_width; col += plan.tile_cols) {
      const std::int64_t cols = std::min(plan.tile_cols, plan.p.out_width - col);
      const Tile tile{row, col};
      if (rows == 2) {
        with_size<kTile / 2>(static_cast<int>(cols), [&](auto size) {
          add_tile<2, decltype(size)::value>(call, channels, tile, scratch);
        });
      } else {
        with_size<kTile>(static_cast<int>(cols), [&](auto size) {
          add_tile<1, decltype(size)::value>(call, channels, tile, scratch);
        });
      }
      unpack(call, block, channels, tile, rows, cols, scratch);
    }
  }
}

}  // namespace

Status csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,
                  const void* bias, void* y, bool channels_last, int threads) {
  if (params.batch == 0 || params.out_channels == 0) return Status::ok;
  const Plan plan(params, weight, threads);
  if (plan.packed_size(plan.band_rows) > std::numeric_limits<std::int32_t>::max()) {
    return Status::out_of_memory;  // 8 GiB for one row of pixels
  }
  const std::int64_t entries = weight.row_offsets[weight.rows];
  const WideNumbers wide(weight.values, entries, bias, weight.rows, x.dtype);
  if (!wide.ok()) return Status::out_of_memory;
  const Call call{plan, x, weight, wide.values(), wide.bias(), y, channels_last};

  // Items are blocks of lanes times groups times chunks of rows, chunks fastest: a part packs once.
  const int parts = part_count(plan.items, plan.work / plan.items + 1, threads);
  Carver sizes(nullptr);
  Scratch(sizes, plan);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const Scratch scratch(carver, plan);
    for (std::int64_t k = 0; k < plan.group_channels * plan.area; ++k) {
      const std::int64_t i = k % plan.area / params.kernel[1], j = k % params.kernel[1];
      const std::int64_t row = k / plan.area * plan.height + i * params.dilation[0];
      scratch.places[k] = static_cast<std::int32_t>((row * plan.width + j * params.dilation[1]) * kL);
    }
    const Range range = part_range(plan.items, parts, part);
    std::int64_t packed = -1;
    for (std::int64_t item = range.begin; item < range.end; ++item) {
      const std::int64_t input = item / plan.chunks;
      const std::int64_t block = input / params.groups, group = input % params.groups;
      const int chunk = static_cast<int>(item % plan.chunks);
      const Range rows = part_range(plan.group_rows, static_cast<int>(plan.chunks), chunk);
      if (input != packed) {
        pack(call, block, group, scratch);
        packed = input;
      }
      const std::int64_t first = group * plan.group_rows;
      add_channels(call, block, {first + rows.begin, first + rows.end}, scratch);
    }
  };
  run_parts(parts, body);
  return Status::ok;
}

}  // namespace R2KD_ISA
}  // namespace r2kd
