"""Residual networks for small images, with three stages.

Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2; the
variants "x4" have four times the channels in the stages and twice in the stem.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import he_convolutions


class _Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNetCifar(nn.Module):
    """(B, 3, H, W) -> (B, num_classes).

    Args:
        depth: 6 n + 2, with n blocks in a stage.
        widths: channels of the stem and the three stages.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], 1, blocks)
        self.layer2 = _stage(widths[1], widths[2], 2, blocks)
        self.layer3 = _stage(widths[2], widths[3], 2, blocks)
        self.fc = nn.Linear(widths[3], num_classes)
        he_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs, stride), *rest)
