"""Wide residual networks. Source: Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import he_convolutions


class _Block(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)"""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        # A block that changes the width takes its shortcut after the activation, others before.
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class _Stage(nn.Module):
    """Blocks in a row, in the attribute `layer` that the checkpoints name."""

    def __init__(self, inputs: int, outputs: int, stride: int, blocks: int) -> None:
        super().__init__()
        rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """(B, 3, H, W) -> (B, num_classes).

    Args:
        depth: 6 n + 4, with n blocks in a stage.
        widen: the stages have 16, 32 and 64 channels times this.
    """

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, 16 * widen, 1, blocks)
        self.block2 = _Stage(16 * widen, 32 * widen, 2, blocks)
        self.block3 = _Stage(32 * widen, 64 * widen, 2, blocks)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        he_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
