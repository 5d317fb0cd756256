"""How far Winograd's filtering moves the logits of deep networks, by tile and points.

    python benchmarks/ablation_winograd.py [--draws 5] [--output FILE.csv]

For each network, with random weights and the batch statistics of random images: the distance of
float32 logits from those in float64, relative to the largest of them, the median over the draws.
"direct" is torch; "kernel" the prepared teacher with `winograd_conv2d`. The others are written in
torch, with all 3 x 3 convolutions with stride 1 by F(m x m, 3 x 3) with the points 0, +-a, ... and
infinity: the fewer points, the more multiplications (2.25 times fewer than direct for m = 2, 4
times for m = 4).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from harness import machine, write_rows
from torch import Tensor, nn
from torch.nn import functional as F

from r2kd_ext import TeacherEnsemble, models, winograd

RESULTS = Path(__file__).parent / "results" / "ablation_winograd.csv"
NETWORKS = ("resnet56", "wrn_40_2", "vgg13")
# The finite points of each tile of outputs.
POINTS = {
    "F(2x2), 1": (2, (0, 1, -1)),
    "F(4x4), 1 and 2": (4, (0, 1, -1, 2, -2)),
    "F(4x4), 1 and 1/2": (4, (0, 1, -1, 0.5, -0.5)),
    "F(4x4), 5/8 and 5/4": (4, (0, 0.625, -0.625, 1.25, -1.25)),
    "F(4x4), 3/4 and 3/2": (4, (0, 0.75, -0.75, 1.5, -1.5)),
}
IMAGES = (8, 3, 32, 32)


class Matrices(NamedTuple):
    """y = A^T [(G w G^T) * (B^T d B)] A for a tile of m x m outputs."""

    m: int
    at: Tensor  # [m, m + 2]
    g: Tensor  # [m + 2, 3]
    bt: Tensor  # [m + 2, m + 2]


def matrices(m: int, points: Sequence[float]) -> Matrices:
    """Of the points and infinity, in float64 (Toom and Cook; transposed)."""
    count = m + 2
    at, g, bt = (torch.zeros(shape, dtype=torch.float64) for shape in
                 ((m, count), (count, 3), (count, count)))  # fmt: skip

    def product(roots: Sequence[float]) -> Tensor:
        """The coefficients of the polynomial with these roots, of the lowest power first."""
        found = torch.ones(1, dtype=torch.float64)
        for root in roots:
            found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
        return found

    for row, point in enumerate(points):
        others = [x for x in points if x != point]
        bt[row, : count - 1] = product(others)
        scale = torch.tensor([point - x for x in others], dtype=torch.float64).prod()
        g[row] = torch.tensor([point**power for power in range(3)], dtype=torch.float64) / scale
        at[:, row] = torch.tensor([point**power for power in range(m)], dtype=torch.float64)
    bt[-1] = product(points)
    g[-1, -1] = at[-1, -1] = 1
    return Matrices(m, at, g, bt)


def filtered(x: Tensor, weight: Tensor, by: Matrices) -> Tensor:
    """conv2d(x, weight, padding=1), the weight transformed in float64, the rest in x's dtype."""
    batch, _, height, width = x.shape
    rows, cols = -(-height // by.m), -(-width // by.m)
    x = F.pad(x, (1, cols * by.m + 1 - width, 1, rows * by.m + 1 - height))
    tiles = x.unfold(2, by.m + 2, by.m).unfold(3, by.m + 2, by.m)  # [B, C, rows, cols, t, t]
    bt, at = by.bt.to(x.dtype), by.at.to(x.dtype)
    inputs = bt @ tiles @ bt.T
    weights = (by.g @ weight.double() @ by.g.T).to(x.dtype)  # [K, C, t, t]
    products = torch.einsum("bcrsij,kcij->bkrsij", inputs, weights)
    y = at @ products @ at.T  # [B, K, rows, cols, m, m]
    y = y.transpose(3, 4).reshape(batch, len(weight), rows * by.m, cols * by.m)
    return y[..., :height, :width]


@contextmanager
def convolutions_by(network: nn.Module, by: Matrices) -> Iterator[None]:
    """The network with all convolutions that can be computed so."""

    def run(layer: nn.Conv2d, x: Tensor) -> Tensor:
        y = filtered(x, layer.weight, by)
        return y if layer.bias is None else y + layer.bias[:, None, None]

    layers: list[Any] = [layer for layer in network.modules() if winograd.applies(layer)]
    for layer in layers:
        layer.forward = partial(run, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max())


@torch.no_grad()
def distances(name: str, seed: int) -> dict[str, float]:
    """Of one draw of weights and images, by what computed the convolutions."""
    torch.manual_seed(seed)
    network = models.create(name, 100)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.momentum = None  # the mean over all batches
    for _ in range(4):
        network(torch.randn(32, *IMAGES[1:]))
    network.eval()
    images = torch.randn(IMAGES)
    want = network.double()(images.double())
    network.float()
    found = {"direct": distance(network(images), want)}
    if winograd.choose_winograd(torch.device("cpu")).backend == "native":
        kernel: Callable[[Tensor], Tensor] = TeacherEnsemble(network, dense_weight=1, chunk=8)
        found["kernel"] = distance(kernel(images), want)
    for text, (m, points) in POINTS.items():
        with convolutions_by(network, matrices(m, points)):
            found[text] = distance(network(images), want)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=5, help="of weights and images (default 5)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the result file (CSV)")
    options = parser.parse_args()
    if options.draws < 1:
        parser.error(f"--draws must be at least 1, got {options.draws}")
    rows = []
    for name in NETWORKS:
        draws = [distances(name, seed) for seed in range(options.draws)]
        for by in draws[0]:
            far = f"{median(draw[by] for draw in draws):.2e}"
            rows.append({"network": name, "convolutions": by, "distance": far, **machine()})
            print(f"{name:>10} {by:<22} {far}")
    write_rows(options.output, rows)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
