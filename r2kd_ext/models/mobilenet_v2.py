"""MobileNetV2 of half width for small images, with ReLU in place of ReLU6.

Source: Sandler et al., *MobileNetV2: Inverted Residuals and Linear Bottlenecks*, CVPR 2018.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import he_convolutions, small_linear

# Expansion, outputs (of the half-width network), blocks, stride of the first block.
_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
_STEM, _FEATURES = 16, 1280


class _InvertedResidual(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)"""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, _STEM, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(_STEM),
            nn.ReLU(inplace=True),
        )
        stages, inputs = [], _STEM
        for expansion, outputs, blocks, stride in _STAGES:
            stage = [_InvertedResidual(inputs, outputs, stride, expansion)]
            stage += [_InvertedResidual(outputs, outputs, 1, expansion) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(
            nn.Conv2d(inputs, _FEATURES, 1, bias=False),
            nn.BatchNorm2d(_FEATURES),
            nn.ReLU(inplace=True),
        )
        linear = nn.Linear(_FEATURES, num_classes)
        self.classifier = nn.Sequential(linear)  # the checkpoints call it classifier.0
        he_convolutions(self)
        small_linear(linear)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(F.adaptive_avg_pool2d(out, 1).flatten(1))
