"""Initial weights that the published networks share."""

from __future__ import annotations

from torch import nn


def he_convolutions(network: nn.Module) -> None:
    """Draw the weights of every Conv2d from N(0, 2 / (outputs * kernel area)), biases 0.

    Source: He et al., *Delving Deep into Rectifiers*, ICCV 2015, with the fan of the outputs.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(layer: nn.Linear) -> None:
    """Draw the weights of the classifier from N(0, 0.01^2), bias 0."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
