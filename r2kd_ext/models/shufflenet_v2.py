"""ShuffleNetV2 of width 1 for small images.

Source: Ma et al., *ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design*,
ECCV 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM, _FEATURES = 24, 1024
_STAGES = ((116, 3), (232, 7), (464, 3))  # outputs, blocks after the one that halves the image


class _Block(nn.Module):
    """(B, channels, H, W) -> the same; the first half of the channels passes unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = F.relu(self.bn3(self.conv3(self.bn2(self.conv2(out)))))
        return F.channel_shuffle(torch.cat([passed, out], 1), 2)


class _HalvingBlock(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2)"""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(nn.Module):
    """(B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, *_STAGES[0])
        self.layer2 = _stage(_STAGES[0][0], *_STAGES[1])
        self.layer3 = _stage(_STAGES[1][0], *_STAGES[2])
        self.conv2 = nn.Conv2d(_STAGES[2][0], _FEATURES, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_FEATURES)
        self.linear = nn.Linear(_FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_HalvingBlock(inputs, outputs), *(_Block(outputs) for _ in range(blocks)))
