"""VGG with batch norm and one linear layer, for small images.

Source: Simonyan and Zisserman, *Very Deep Convolutional Networks for Large-Scale Image
Recognition*, ICLR 2015.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import he_convolutions, small_linear

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """(B, 3, H, W) -> (B, num_classes); H and W at least 32.

    Args:
        convolutions: of each of the five blocks.
    """

    def __init__(self, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        inputs = (3, *_WIDTHS)
        self.block0 = _block(inputs[0], _WIDTHS[0], convolutions[0])
        self.block1 = _block(inputs[1], _WIDTHS[1], convolutions[1])
        self.block2 = _block(inputs[2], _WIDTHS[2], convolutions[2])
        self.block3 = _block(inputs[3], _WIDTHS[3], convolutions[3])
        self.block4 = _block(inputs[4], _WIDTHS[4], convolutions[4])
        self.classifier = nn.Linear(_WIDTHS[4], num_classes)
        he_convolutions(self)
        small_linear(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for block in (self.block0, self.block1, self.block2):
            out = F.max_pool2d(F.relu(block(out)), 2)
        # The last block works on 4 x 4: images of 32 x 32 have that here, those of 64 x 64 are
        # pooled once more.
        out = F.adaptive_max_pool2d(F.relu(self.block3(out)), 4)
        out = F.relu(self.block4(out))
        return self.classifier(F.adaptive_avg_pool2d(out, 1).flatten(1))


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    """Convolution and batch norm, so many times, with ReLU between: (B, inputs, H, W) to
    (B, outputs, H, W)."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        if number:
            layers.append(nn.ReLU(inplace=True))
        width = outputs if number else inputs
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)
