"""Residual networks with four stages, and a stem for small images: 3 x 3, no pooling.

Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import he_convolutions

_STEM, _WIDTHS = 64, (64, 128, 256, 512)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """(B, inputs, H, W) -> (B, width, H / stride, W / stride)"""

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """(B, inputs, H, W) -> (B, 4 * width, H / stride, W / stride)"""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = self.EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes).

    Args:
        block: of which the stages are made.
        blocks: of each of the four stages.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        outputs = [block.EXPANSION * width for width in _WIDTHS]
        self.layer1 = _stage(block, _STEM, _WIDTHS[0], 1, blocks[0])
        self.layer2 = _stage(block, outputs[0], _WIDTHS[1], 2, blocks[1])
        self.layer3 = _stage(block, outputs[1], _WIDTHS[2], 2, blocks[2])
        self.layer4 = _stage(block, outputs[2], _WIDTHS[3], 2, blocks[3])
        self.linear = nn.Linear(outputs[3], num_classes)
        he_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, stride: int, blocks: int
) -> nn.Sequential:
    rest = [block(block.EXPANSION * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(block(inputs, width, stride), *rest)
