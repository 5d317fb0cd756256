// Dense 3 x 3 convolutions of frozen networks by Winograd's minimal filtering.
#pragma once

#include <cstdint>

#include "r2kd/types.h"

namespace r2kd {

// Channels come in panels of so many; both counts of channels are multiples of it.
constexpr std::int64_t kWinogradPanel = 16;
// Numbers of a transformed 3 x 3 weight, and of a transformed tile of 6 x 6 pixels.
constexpr std::int64_t kWinogradPoints = 36;

struct WinogradParams {
  std::int64_t batch, height, width;    // of the input and of the output
  std::int64_t channels, out_channels;
  bool relu;
};

// y = relu(conv2d(x, weight, padding 1) + bias + other), the ReLU where asked; float32.
//   x       [B, H, W, C]
//   weight  [K / 16, 36, C, 16], as `winograd.transform_weight` makes it
//   bias    [K], or null
//   other   [B, H, W, K], or null; may be y
//   y       [B, H, W, K]
// The result does not depend on `threads`, and that of an image not on its batch.
Status winograd_conv2d(const WinogradParams& params, const float* x, const float* weight,
                       const float* bias, const float* other, float* y, int threads);

}  // namespace r2kd
