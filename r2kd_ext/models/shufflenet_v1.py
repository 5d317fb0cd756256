"""ShuffleNet with three groups, for small images.

Source: Zhang et al., *ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices*, CVPR 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM, _GROUPS = 24, 3
_STAGES = ((240, 4), (480, 8), (960, 4))  # outputs, blocks


class _Block(nn.Module):
    """Stride 1: (B, inputs, H, W) -> (B, outputs, H, W), with outputs = inputs.

    Stride 2: -> (B, inputs + outputs, H / 2, W / 2), the pooled input after the new channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.stride = stride
        # The stem has too few channels to be divided.
        self.groups = 1 if inputs == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(F.channel_shuffle(out, self.groups))))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, padding=1)], 1))


class ShuffleNetV1(nn.Module):
    """(B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, *_STAGES[0])
        self.layer2 = _stage(_STAGES[0][0], *_STAGES[1])
        self.layer3 = _stage(_STAGES[1][0], *_STAGES[2])
        self.linear = nn.Linear(_STAGES[2][0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs - inputs, 2), *rest)
