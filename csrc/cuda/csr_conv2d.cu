// A 2-D convolution with a sparse weight. Lanes are images, or bands of rows of them where images are
// few, so that every load from shared memory is one line, whatever the stride and the dilation. A
// block has a tile of 8 pixels, which each lane has in its own image, and 64 (or 32, 16) rows of the
// weight. It goes along the channels: it stages, with their padding, the parts of some of them that
// the tile reads, then each warp adds the entries of its rows there.
#include "csr_rows.cuh"
#include "guard.cuh"
#include "sparse.h"

namespace r2kd {
namespace cuda {
namespace {

struct Conv2dTask {
  Conv2dParams params;
  ConstImages x;     // [B, C, H, W]
  CsrMatrix weight;  // [R, K]
  const void* bias;  // [R] or null
  void* y;           // [B, R, H', W']
  bool channels_last;   // of y
  bool aligned;         // whether what a lane writes lies in whole pieces
  bool channels_first;  // whether neighbouring channels of x are neighbours in memory
  CsrConv2dPlan plan;
};

// A tile of pixels of a block of lanes, and a group of channels.
struct ImageTile {
  std::int64_t first_lane;  // of all images and bands
  int group;
  int row, col;  // of its first pixel, in the band
};

// Pixel k of a tile.
struct TilePixel {
  int row, col;

  __device__ __forceinline__ TilePixel(const CsrConv2dPlan& plan, int k)
      : row(plan.tile_rows == 2 ? k / 4 : 0), col(plan.tile_rows == 2 ? k % 4 : k) {}
};

// Where in shared memory a position of a unit is: in the order in which x lies in memory, so that
// threads that stage neighbours read neighbours.
struct Layout {
  int unit, position;

  __device__ __forceinline__ explicit Layout(const Conv2dTask& task)
      : unit(task.channels_first ? 1 : task.plan.positions),
        position(task.channels_first ? task.plan.staged_units : 1) {}
};

// places[k] = where the input of column k of the staged ones is for the first pixel.
__device__ __forceinline__ void place_columns(const Conv2dTask& task, const Layout& layout, int* places) {
  const CsrConv2dPlan& plan = task.plan;
  const int width = static_cast<int>(task.params.kernel[1]);
  for (int k = static_cast<int>(threadIdx.x); k < plan.staged_units * plan.unit_columns;
       k += kCsrThreads) {
    const int unit = k / plan.unit_columns, rest = k % plan.unit_columns;
    int position = 0;
    if (plan.whole) {
      const int down = rest / width * static_cast<int>(task.params.dilation[0]);
      const int right = rest % width * static_cast<int>(task.params.dilation[1]);
      position = down * plan.patch_cols + right;
    }
    places[k] = (unit * layout.unit + position * layout.position) * kStagedLine;
  }
}

// staged[place][lane] = x in `count` units from `first` on; 0 in the padding and in lanes past the
// last. A thread has a place and goes through the lanes: the neighbours of a place are read by the
// next threads, and the odd distance of places keeps these in different banks.
template <typename S>
__device__ __forceinline__ void stage_units(const Conv2dTask& task, const ImageTile& tile,
                                            const Layout& layout, int first, int count,
                                            float* staged) {
  constexpr int together = 4;
  const Conv2dParams& p = task.params;
  const CsrConv2dPlan& plan = task.plan;
  const int lanes = static_cast<int>(min(p.batch * plan.bands - tile.first_lane, std::int64_t{32}));
  for (int place = static_cast<int>(threadIdx.x); place < plan.staged_units * plan.positions;
       place += kCsrThreads) {
    const int unit = place / layout.unit % plan.staged_units;
    const int position = place / layout.position % plan.positions;
    if (unit >= count) continue;
    int channel = first + unit;
    int down, right;  // from the corner of the first pixel
    if (plan.whole) {
      down = position / plan.patch_cols;
      right = position % plan.patch_cols;
    } else {
      const int width = static_cast<int>(p.kernel[1]), area = static_cast<int>(p.kernel[0]) * width;
      const int rest = channel % area;
      const TilePixel pixel(plan, position);
      channel /= area;
      down = rest / width * static_cast<int>(p.dilation[0]) + pixel.row * static_cast<int>(p.stride[0]);
      right = rest % width * static_cast<int>(p.dilation[1]) + pixel.col * static_cast<int>(p.stride[1]);
    }
    channel += tile.group * static_cast<int>(p.channels / p.groups);
    const int col = tile.col * static_cast<int>(p.stride[1]) - static_cast<int>(p.padding[1]) + right;
    const bool column_exists = col >= 0 && col < p.width;
    int band = static_cast<int>(tile.first_lane % plan.bands);
    const S* image = static_cast<const S*>(task.x.data) + channel * task.x.strides[1] +
                     col * task.x.strides[3] + tile.first_lane / plan.bands * task.x.strides[0];
    const int top = tile.row * static_cast<int>(p.stride[0]) - static_cast<int>(p.padding[0]) + down;
    const int step = plan.band_rows * static_cast<int>(p.stride[0]);
#pragma unroll 1
    for (int lane = 0; lane < 32; lane += together) {
      float numbers[together];
#pragma unroll
      for (int i = 0; i < together; ++i) {
        const int row = top + band * step;
        const bool exists = column_exists && row >= 0 && row < p.height && lane + i < lanes;
        numbers[i] = 0;
        if (exists) numbers[i] = widened(image[row * task.x.strides[2]]);
        if (++band == plan.bands) {
          band = 0;
          image += task.x.strides[0];
        }
      }
#pragma unroll
      for (int i = 0; i < together; ++i) staged[place * kStagedLine + lane + i] = numbers[i];
    }
  }
}

template <typename S, int rows>
__device__ __forceinline__ void store_tile(const Conv2dTask& task, const ImageTile& tile,
                                           int first_row, int end_row,
                                           const float (&sums)[rows][kCsrPixels]) {
  const Conv2dParams& p = task.params;
  const CsrConv2dPlan& plan = task.plan;
  const std::int64_t lane = tile.first_lane + threadIdx.x % 32;
  const std::int64_t image = lane / plan.bands;
  const int first_down = static_cast<int>(lane % plan.bands) * plan.band_rows;
  const std::int64_t plane = p.out_height * p.out_width;
  if (image >= p.batch || first_row >= end_row) return;
  S* const y = static_cast<S*>(task.y) + image * p.out_channels * plane;
  // Where pixel k is in the plane, or -1.
  const auto place_of = [&](int k) {
    const TilePixel pixel(plan, k);
    const int down = tile.row + pixel.row, row = first_down + down, col = tile.col + pixel.col;
    const bool exists = down < plan.band_rows && row < p.out_height &&
                        pixel.col < plan.tile_cols && col < p.out_width;
    return exists ? row * p.out_width + col : std::int64_t{-1};
  };
  if (task.channels_last) {
#pragma unroll
    for (int k = 0; k < kCsrPixels; ++k) {
      const std::int64_t at = place_of(k);
      if (at < 0) continue;
      float outputs[rows];
#pragma unroll
      for (int row = 0; row < rows; ++row) outputs[row] = sums[row][k];
      store_neighbours(y + at * p.out_channels + first_row, outputs, end_row - first_row, task.aligned);
    }
    return;
  }
  S* const first = y + first_row * plane;
#pragma unroll
  for (int k = 0; k < kCsrPixels; k += 4) {
    if (task.aligned) {  // where a tile has one of these four it has all
      const std::int64_t at = place_of(k);
      if (at < 0) continue;
#pragma unroll
      for (int row = 0; row < rows; ++row) {
        float outputs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[i] = sums[row][k + i];
        if (first_row + row < end_row) store_neighbours(first + row * plane + at, outputs, 4, true);
      }
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = place_of(k + i);
      if (at < 0) continue;
#pragma unroll
      for (int row = 0; row < rows; ++row) {
        if (first_row + row < end_row) first[row * plane + at] = narrowed<S>(sums[row][k + i]);
      }
    }
  }
}

template <typename S, int rows>
__global__ void __launch_bounds__(kCsrThreads, 2) csr_conv2d_kernel(const Conv2dTask task) {
  extern __shared__ double shared[];
  const Conv2dParams& p = task.params;
  const CsrConv2dPlan& plan = task.plan;
  const CsrMatrix& weight = task.weight;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  StagedEntry* const entries = reinterpret_cast<StagedEntry*>(shared) + 32 * warp;       // [32]
  int* const places = reinterpret_cast<int*>(shared) + kStagedBytes / sizeof(int);       // [columns]
  float* const staged = reinterpret_cast<float*>(places + plan.staged_units * plan.unit_columns);
  const Layout layout(task);
  place_columns(task, layout, places);

  // Pixels of the tile are `step` apart, and the second four `half` from the first.
  const int place_of_position = layout.position * kStagedLine;
  const int step = place_of_position * (plan.whole ? static_cast<int>(p.stride[1]) : 1);
  int half = 4 * step;
  if (plan.whole && plan.tile_rows == 2) {
    half = place_of_position * static_cast<int>(p.stride[0]) * plan.patch_cols;
  }
  const auto offset = [=](int k) { return k / 4 * half + k % 4 * step; };

  const int group_rows = static_cast<int>(p.out_channels / p.groups);
  const int units = static_cast<int>(plan.units);
  for (std::int64_t index = blockIdx.x; index < plan.tiles; index += gridDim.x) {
    // Tiles of the same pixels follow each other: their x is in the second-level cache.
    std::int64_t rest = index / plan.row_tiles;
    ImageTile tile;
    tile.group = static_cast<int>(rest % p.groups);
    rest /= p.groups;
    tile.col = static_cast<int>(rest % plan.tiles_across) * plan.tile_cols;
    rest /= plan.tiles_across;
    tile.row = static_cast<int>(rest % plan.tiles_down) * plan.tile_rows;
    tile.first_lane = rest / plan.tiles_down * 32;

    const int end_row = (tile.group + 1) * group_rows;
    const int first_row = tile.group * group_rows +
                          (static_cast<int>(index % plan.row_tiles) * kCsrWarps + warp) * rows;
    RowCursor cursor = row_cursor(weight, first_row, min(first_row + rows, end_row));
    float sums[rows][kCsrPixels];
    start_sums<S>(task.bias, first_row, end_row, sums);
    for (int first = 0; first < units; first += plan.staged_units) {
      // Nobody reads the units before; and if nobody has entries left, all is done.
      if (!__syncthreads_or(cursor.at < cursor.end)) break;
      const Entry<S> ahead = load_entry<S>(weight, cursor, 0);
      const int count = min(plan.staged_units, units - first);
      stage_units<S>(task, tile, layout, first, count, staged);
      __syncthreads();
      const int first_column = first * plan.unit_columns;
      const auto place = [=](int column) { return places[column - first_column]; };
      add_entries(weight, first_column + count * plan.unit_columns, ahead, place, staged + lane,
                  offset, entries, cursor, sums);
    }
    store_tile<S>(task, tile, first_row, end_row, sums);
  }
}

template <typename S>
cudaError_t launch_conv2d(const Conv2dTask& task, cudaStream_t stream) {
  const auto launch = [&](auto kernel) {
    return launch_csr(kernel, task.plan.blocks, task.plan.shared_bytes, stream, task);
  };
  if (task.plan.rows == 2) return launch(csr_conv2d_kernel<S, 2>);
  if (task.plan.rows == 4) return launch(csr_conv2d_kernel<S, 4>);
  return launch(csr_conv2d_kernel<S, 8>);
}

}  // namespace

CudaStatus csr_conv2d(const Conv2dParams& params, const ConstImages& x, const CsrMatrix& weight,
                      const void* bias, void* y, bool channels_last, const Place& place) {
  return launched(place, "csr_conv2d_kernel", [&](cudaStream_t stream) {
    int multiprocessors;
    const cudaError_t error = count_multiprocessors(place, &multiprocessors);
    if (error != cudaSuccess) return error;
    const CsrConv2dPlan plan = plan_csr_conv2d(params, multiprocessors);
    const bool in_pieces =
        aligned(y) && (channels_last ? params.out_channels / params.groups % plan.rows == 0
                                     : plan.tile_cols % 4 == 0 && params.out_width % 4 == 0);
    const bool channels_first = x.strides[1] == 1 && x.strides[3] != 1;
    const Conv2dTask task{params,    x, weight, bias, y, channels_last, in_pieces, channels_first,
                          plan};
    return with_storage(x.dtype, [&](auto storage) {
      return launch_conv2d<decltype(storage)>(task, stream);
    });
  });
}

}  // namespace cuda
}  // namespace r2kd
