"""A teacher and a much smaller student for grey images of 28 x 28 pixels."""

from __future__ import annotations

from torch import nn


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """3 x 3 convolution, batch norm, ReLU: (B, inputs, H, W) to (B, outputs, H/stride, W/stride)"""
    return [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def teacher(num_classes: int) -> nn.Sequential:
    """Five convolutions of 16 to 64 channels; (B, 1, 28, 28) -> (B, num_classes)."""
    return nn.Sequential(
        *_block(1, 16),
        nn.MaxPool2d(2),  # [B, 16, 14, 14]
        *_block(16, 32),
        *_block(32, 32),
        nn.MaxPool2d(2),  # [B, 32, 7, 7]
        *_block(32, 64),
        *_block(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),  # [B, 64]
        nn.Linear(64, num_classes),
    )


def student(num_classes: int) -> nn.Sequential:
    """Two convolutions of 4 and 8 channels; (B, 1, 28, 28) -> (B, num_classes)."""
    return nn.Sequential(
        *_block(1, 4, stride=2),  # [B, 4, 14, 14]
        *_block(4, 8, stride=2),  # [B, 8, 7, 7]
        nn.Flatten(),  # [B, 392]
        nn.Linear(392, num_classes),
    )
