"""The one list of networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from .._arguments import check_count
from . import digits
from .mobilenet_v2 import MobileNetV2
from .resnet import BasicBlock, Bottleneck, ResNet
from .resnet_cifar import ResNetCifar
from .shufflenet_v1 import ShuffleNetV1
from .shufflenet_v2 import ShuffleNetV2
from .vgg import VGG
from .wide_resnet import WideResNet

_NARROW, _X4 = (16, 16, 32, 64), (32, 64, 128, 256)

_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "digits_teacher": digits.teacher,
    "digits_student": digits.student,
    **{f"resnet{n}": partial(ResNetCifar, n, _NARROW) for n in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(ResNetCifar, 8, _X4),
    "resnet32x4": partial(ResNetCifar, 32, _X4),
    "wrn_16_1": partial(WideResNet, 16, 1),
    "wrn_16_2": partial(WideResNet, 16, 2),
    "wrn_40_1": partial(WideResNet, 40, 1),
    "wrn_40_2": partial(WideResNet, 40, 2),
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleNetV1,
    "ShuffleV2": ShuffleNetV2,
    "ResNet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "ResNet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
}


def names() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(_BUILDERS)


def create(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised network (torch's global random generator) that returns logits (B, C).

    The "digits" networks take grey images (B, 1, 28, 28) in [0, 1]. All others take (B, 3, H, W)
    and have the state-dict names, order and shapes of the public checkpoints of the CIFAR and
    Tiny-ImageNet distillation benchmarks, where H x W is 32 x 32 and 64 x 64: the size of the
    images changes no parameter, so one network takes both.

    Args:
        name: one of `names()`.
        num_classes: C, an integer >= 1.

    Raises ValueError for an unknown name or a `num_classes` below 1, TypeError for a
    `num_classes` that is no integer.
    """
    if name not in _BUILDERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, names()))}, got {name!r}")
    check_count("num_classes", num_classes)
    return _BUILDERS[name](num_classes)
