// A dense 3 x 3 convolution with stride 1 and padding 1 by Winograd's F(4x4, 3x3), on the CPU. Compiled
// once per instruction set; dispatch.cpp picks one.
//
// A tile of 4 x 4 outputs reads 6 x 6 inputs, and is
//   y = A^T [ sum over channels of (G w G^T) * (B^T d B) ] A,
// with * by element: 36 multiplications per pair of channels where the sum itself takes 144. Both
// transforms evaluate and interpolate polynomials at the points 0, +-a, +-b and infinity. With a = 3/4
// and b = 3/2 all of their coefficients are exact, and a deep network ends up about twice as far from
// the exact logits as by direct sums; with the usual 1 and 2 three to five times (docs/teacher.md).
//
// Lanes are channels throughout: images come with channels last, so nothing is ever transposed. A block of
// tiles is transformed once; then, for each panel of 16 output channels, 36 small matrix products
// follow, and the output transform while their results are in the caches.

#include <algorithm>

#include "parallel.h"
#include "simd.h"
#include "winograd_entries.h"
#include "workspace.h"

namespace r2kd {
namespace R2KD_ISA {
namespace {

using Lanes = Vector<float>;

constexpr int kL = kLanes<float>;
constexpr int kIn = 6, kOut = 4;  // the sides of a tile
constexpr int kPoints = kWinogradPoints;
constexpr int kPanel = kWinogradPanel;
constexpr int kPanelRegisters = kPanel / kL;
// Tiles of one product: their sums are 12 registers.
constexpr int kRows = 12 / kPanelRegisters;
// Tiles of a block: few, so that what is transformed stays in the caches.
constexpr int kBlock = 12;
static_assert(kBlock % kRows == 0, "products of whole blocks");
// From one point to the next of the products; a line more than there are, so that the same place of two
// points is not in the same set of the cache.
constexpr int kProductStride = kBlock * kPanel + kPanel;

constexpr float kA = 0.75f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

struct Plan {
  Plan(const WinogradParams& params) : p(params) {
    tile_rows = (p.height + kOut - 1) / kOut;
    tile_cols = (p.width + kOut - 1) / kOut;
    tiles = p.batch * tile_rows * tile_cols;
    panels = p.out_channels / kPanel;
    blocks = (tiles + kBlock - 1) / kBlock;
    // A line more, so that the same place of two points is not in the same set of the cache.
    input_stride = kBlock * p.channels + kPanel;
  }

  const WinogradParams& p;
  std::int64_t tile_rows, tile_cols, tiles;  // of an image, of an image, of all
  std::int64_t panels;                       // of output channels
  std::int64_t blocks;                       // of tiles
  std::int64_t input_stride;                 // from one point of the inputs to the next
};

struct Scratch {
  Scratch(Carver& carver, const Plan& plan)
      : inputs(carver.take<float>(kPoints * plan.input_stride)),
        products(carver.take<float>(kPoints * kProductStride)),
        zeros(carver.take<float>(plan.p.channels)) {}
  float* inputs;    // [36, block, C] and padding by point
  float* products;  // [36, block, 16] and padding by point
  float* zeros;     // [C], what a pixel outside of the image has
};

struct Call {
  const Plan& plan;
  const float *x, *weight, *bias, *other;
  float* y;
};

struct Tile {
  std::int64_t image, row, col;  // of its first output
};

Tile tile_of(const Plan& plan, std::int64_t index) {
  const std::int64_t of_image = index % (plan.tile_rows * plan.tile_cols);
  return {index / (plan.tile_rows * plan.tile_cols), of_image / plan.tile_cols * kOut,
          of_image % plan.tile_cols * kOut};
}

using Pixels = const float* [kIn][kIn];

// Where the inputs of a tile are; `zeros` for those outside of the image.
void find_pixels(const Call& call, Tile tile, const float* zeros, Pixels& pixels) {
  const WinogradParams& p = call.plan.p;
  const std::int64_t top = tile.row - 1, left = tile.col - 1, step = p.width * p.channels;
  const float* const image = call.x + tile.image * p.height * step;
  if (top >= 0 && left >= 0 && top + kIn <= p.height && left + kIn <= p.width) {
    const float* const first = image + top * step + left * p.channels;
    for (int i = 0; i < kIn; ++i) {
      for (int j = 0; j < kIn; ++j) pixels[i][j] = first + i * step + j * p.channels;
    }
    return;
  }
  for (int i = 0; i < kIn; ++i) {
    const bool row_there = top + i >= 0 && top + i < p.height;
    for (int j = 0; j < kIn; ++j) {
      const bool there = row_there && left + j >= 0 && left + j < p.width;
      pixels[i][j] = there ? image + (top + i) * step + (left + j) * p.channels : zeros;
    }
  }
}

// B^T d, the values at the six points of the polynomials that multiply there.
R2KD_INLINE void evaluate(const Lanes (&d)[kIn], Lanes (&out)[kIn]) {
  const Lanes u = d[4] - kB2 * d[2], v = d[3] - kB2 * d[1];
  const Lanes w = d[4] - kA2 * d[2], z = d[3] - kA2 * d[1];
  out[0] = d[4] - (kA2 + kB2) * d[2] + (kA2 * kB2) * d[0];
  out[1] = u + kA * v;
  out[2] = u - kA * v;
  out[3] = w + kB * z;
  out[4] = w - kB * z;
  out[5] = d[5] - (kA2 + kB2) * d[3] + (kA2 * kB2) * d[1];
}

// A^T m, the four outputs.
R2KD_INLINE void interpolate(const Lanes (&m)[kIn], Lanes (&out)[kOut]) {
  const Lanes even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Lanes even_b = m[3] + m[4], odd_b = m[3] - m[4];
  out[0] = m[0] + even_a + even_b;
  out[1] = kA * odd_a + kB * odd_b;
  out[2] = kA2 * even_a + kB2 * even_b;
  out[3] = (kA2 * kA) * odd_a + ((kB2 * kB) * odd_b + m[5]);
}

// The tile's inputs, transformed, to target[point * stride + channel].
void transform_input(const Pixels& pixels, std::int64_t channels, std::int64_t stride, float* target) {
  for (std::int64_t c = 0; c < channels; c += kL) {
    Lanes columns[kIn][kIn];  // B^T d
    for (int j = 0; j < kIn; ++j) {
      Lanes d[kIn], out[kIn];
      for (int i = 0; i < kIn; ++i) d[i] = load(pixels[i][j] + c);
      evaluate(d, out);
      for (int i = 0; i < kIn; ++i) columns[i][j] = out[i];
    }
    for (int i = 0; i < kIn; ++i) {
      Lanes out[kIn];
      evaluate(columns[i], out);
      for (int j = 0; j < kIn; ++j) store(target + (i * kIn + j) * stride + c, out[j]);
    }
  }
}

// products [tiles, 16] = inputs [tiles, C] weight [C, 16], of kRows tiles.
R2KD_INLINE void multiply(const float* inputs, const float* weight, std::int64_t channels, float* products) {
  Lanes sums[kRows][kPanelRegisters];
  for (int row = 0; row < kRows; ++row) {
    for (int r = 0; r < kPanelRegisters; ++r) sums[row][r] = Lanes{};
  }
  std::int64_t c = 0;
  do {  // at least once: with a test before it, GCC keeps the sums in memory
    Lanes w[kPanelRegisters];
    for (int r = 0; r < kPanelRegisters; ++r) w[r] = load(weight + c * kPanel + r * kL);
    for (int row = 0; row < kRows; ++row) {
      const float value = inputs[row * channels + c];
      for (int r = 0; r < kPanelRegisters; ++r) sums[row][r] += value * w[r];
    }
  } while (++c < channels);
  for (int row = 0; row < kRows; ++row) {
    for (int r = 0; r < kPanelRegisters; ++r) store(products + row * kPanel + r * kL, sums[row][r]);
  }
}

// The outputs of a tile in the panel's channels, from products[point * stride].
template <bool kAdd, bool kRelu>
void transform_output(const Call& call, Tile tile, std::int64_t panel, const float* products) {
  const WinogradParams& p = call.plan.p;
  const std::int64_t col_step = p.out_channels, row_step = p.width * col_step;
  const std::int64_t rows = std::min<std::int64_t>(kOut, p.height - tile.row);
  const std::int64_t cols = std::min<std::int64_t>(kOut, p.width - tile.col);
  const std::int64_t first = (tile.image * p.height + tile.row) * row_step + tile.col * col_step + panel * kPanel;
  for (int r = 0; r < kPanel; r += kL) {
    Lanes half[kOut][kIn];  // A^T m
    for (int j = 0; j < kIn; ++j) {
      Lanes m[kIn], out[kOut];
      for (int i = 0; i < kIn; ++i) m[i] = load(products + (i * kIn + j) * kProductStride + r);
      interpolate(m, out);
      for (int i = 0; i < kOut; ++i) half[i][j] = out[i];
    }
    const Lanes bias = call.bias == nullptr ? Lanes{} : load(call.bias + panel * kPanel + r);
    for (int i = 0; i < rows; ++i) {
      Lanes out[kOut];
      interpolate(half[i], out);
      const std::int64_t at = first + i * row_step + r;
      const float* const other = call.other + (kAdd ? at : 0);
      float* const y = call.y + at;
      const auto finish = [&](int j) {
        Lanes value = out[j] + bias;
        if constexpr (kAdd) value += load(other + j * col_step);
        store(y + j * col_step, kRelu ? maximum<float>(Lanes{}, value) : value);  // a NaN stays
      };
      finish(0);
      if (cols > 1) finish(1);
      if (cols > 2) finish(2);
      if (cols > 3) finish(3);
    }
  }
}

template <bool kAdd, bool kRelu>
void convolve_block(const Call& call, std::int64_t first, const Scratch& scratch) {
  const Plan& plan = call.plan;
  const std::int64_t channels = plan.p.channels;
  const int count = static_cast<int>(std::min<std::int64_t>(kBlock, plan.tiles - first));
  Tile tiles[kBlock];
  for (int t = 0; t < count; ++t) {
    tiles[t] = tile_of(plan, first + t);
    Pixels pixels;
    find_pixels(call, tiles[t], scratch.zeros, pixels);
    transform_input(pixels, channels, plan.input_stride, scratch.inputs + t * channels);
  }
  for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
    for (int point = 0; point < kPoints; ++point) {
      const float* const weight = call.weight + (panel * kPoints + point) * channels * kPanel;
      const float* const inputs = scratch.inputs + point * plan.input_stride;
      float* const products = scratch.products + point * kProductStride;
      // Those of tiles past the last one have what was there before, and go nowhere.
      for (int t = 0; t < count; t += kRows) {
        multiply(inputs + t * channels, weight, channels, products + t * kPanel);
      }
    }
    for (int t = 0; t < count; ++t) {
      transform_output<kAdd, kRelu>(call, tiles[t], panel, scratch.products + t * kPanel);
    }
  }
}

template <bool kAdd, bool kRelu>
Status convolve(const Call& call, int threads) {
  const Plan& plan = call.plan;
  const std::int64_t work = kBlock * kPoints * plan.p.channels * plan.p.out_channels / kL;
  const int parts = part_count(plan.blocks, work, threads);
  Carver sizes(nullptr);
  const Scratch counted(sizes, plan);
  Workspace workspace;
  if (!workspace.allocate(parts, sizes.used())) return Status::out_of_memory;
  auto body = [&](int part) {
    Carver carver(workspace.part(part));
    const Scratch scratch(carver, plan);
    std::fill(scratch.zeros, scratch.zeros + plan.p.channels, 0.0f);
    std::fill(scratch.inputs, scratch.inputs + kPoints * plan.input_stride, 0.0f);
    const Range range = part_range(plan.blocks, parts, part);
    for (std::int64_t block = range.begin; block < range.end; ++block) {
      convolve_block<kAdd, kRelu>(call, block * kBlock, scratch);
    }
  };
  run_parts(parts, body);
  return Status::ok;
}

}  // namespace

Status winograd_conv2d(const WinogradParams& params, const float* x, const float* weight,
                       const float* bias, const float* other, float* y, int threads) {
  if (params.batch * params.height * params.width == 0) return Status::ok;
  const Plan plan(params);
  const Call call{plan, x, weight, bias, other, y};
  if (other == nullptr) {
    return params.relu ? convolve<false, true>(call, threads) : convolve<false, false>(call, threads);
  }
  return params.relu ? convolve<true, true>(call, threads) : convolve<true, false>(call, threads);
}

}  // namespace R2KD_ISA
}  // namespace r2kd
