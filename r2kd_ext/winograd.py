"""Which 3 x 3 convolutions of a frozen network Winograd's filtering takes, and their weights.

For the kernel of `ops_winograd`: F(4x4, 3x3), which computes a tile of 4 x 4 outputs as

    y = A^T [ sum over channels of (G w G^T) * (B^T d B) ] A

from a tile d of 6 x 6 inputs, with * by element: a quarter of the multiplications. B^T evaluates a
polynomial at the points 0, +-3/4, +-3/2 and infinity, A^T interpolates; G is what goes with them.
With these points a deep network ends up about twice as far from the exact logits as by direct sums.

Source: Winograd, *Arithmetic Complexity of Computations*, SIAM 1980; for networks Lavin and Gray,
*Fast Algorithms for Convolutional Neural Networks*, CVPR 2016 (there with the points +-1, +-2).
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import torch
from torch import Tensor, nn

from .backends import choose_winograd

TILE = 4  # the side of a tile of outputs
POINTS = (TILE + 2) ** 2  # numbers of a transformed weight or tile
PANEL = 16  # channels come in so many, inputs as well as outputs
_POINTS = (Fraction(0), *(sign * Fraction(x) for x in ("3/4", "3/2") for sign in (1, -1)))
# Up to which it was measured (docs/teacher.md). Of pairs of channels, each with POINTS numbers:
_MOST_PAIRS = 512 * 512
_MOST_COMPUTED = 1.5  # outputs of whole tiles, by output that there is


def weight_matrix() -> list[list[Fraction]]:
    """G [6, 3]: of a polynomial with three coefficients its values at the six points, each divided
    by what B^T has multiplied it with."""
    rows = []
    for point in _POINTS:
        others = Fraction(1)
        for other in _POINTS:
            others *= point - other if other != point else 1
        rows.append([point**power / others for power in range(3)])
    return [*rows, [Fraction(0), Fraction(0), Fraction(1)]]


def transform_weight(weight: Tensor) -> Tensor:
    """G w G^T of a weight (K, C, 3, 3), as the kernel reads it: (K / 16, 36, C, 16), float32.

    Computed in float64. K must be a multiple of 16.
    """
    outputs, inputs = weight.shape[:2]
    matrix = torch.tensor(
        [[float(x) for x in row] for row in weight_matrix()],
        dtype=torch.float64, device=weight.device,
    )  # fmt: skip
    both_sides = torch.kron(matrix, matrix)  # [36, 9]
    points = weight.detach().double().reshape(-1, 9) @ both_sides.T  # [K C, 36]
    by_panel = points.view(outputs // PANEL, PANEL, inputs, POINTS).permute(0, 3, 2, 1)
    return by_panel.to(torch.float32, memory_format=torch.contiguous_format)


def applies(layer: nn.Module) -> bool:
    """Whether the filtering computes what this layer does, with whatever channels and dtype."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def takes(layer: nn.Module) -> bool:
    """Whether the kernel computes this layer, and was measured to be the faster one for such."""
    if not applies(layer):
        return False
    weight = cast(Tensor, layer.weight)
    outputs, inputs = weight.shape[:2]
    return (
        choose_winograd(weight.device).backend == "native"
        and weight.dtype == torch.float32
        and inputs % PANEL == 0
        and outputs % PANEL == 0
        and inputs * outputs <= _MOST_PAIRS
    )


def pays(x: Tensor) -> bool:
    """Whether images of this size (B, C, H, W) are not mostly the rest of a tile."""
    height, width = x.shape[2:]
    tiles = -(-height // TILE) * -(-width // TILE)
    return tiles * TILE**2 <= _MOST_COMPUTED * height * width
