"""Batch norms of a frozen network, folded into the layers before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Not Linear: of its output (B, T, F) BatchNorm1d takes T as the channels; the graph does not say.
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def fold_batchnorm(network: nn.Module) -> int:
    """Fold batch norms in eval mode into the convolution that feeds them, in place.

    y = gamma (w x + b - mean) / sqrt(var + eps) + beta becomes one layer, and the batch norm an
    Identity, which changes the output by rounding only. Computed in float64, kept in the dtype of
    the layer.

    Which batch norms those are is read from the graph of the forward pass (torch.fx): each of the
    two is called once, and nothing else uses what the convolution gives. A network that cannot be
    traced stays as it is, as do layers with hooks, of derived classes, or whose folded weights
    would not be finite in their dtype.

    Returns how many were folded.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return 0
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing runs the forward of any network on stand-ins of tensors
        return 0
    pairs = _pairs(network, graph)
    folded = 0
    for layer, norm in pairs:
        weight, bias = _merged(layer, norm)
        if not (weight.isfinite().all() and bias.isfinite().all()):
            continue
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        for parent in network.modules():  # under every name that it has
            for name, child in parent._modules.items():
                if child is norm:
                    parent._modules[name] = nn.Identity().eval()
        folded += 1
    return folded


def _pairs(network: nn.Module, graph: fx.Graph) -> list[tuple[Any, Any]]:
    modules = dict(network.named_modules())
    calls: dict[int, int] = {}
    read: set[str] = set()  # modules whose parameters the forward pass uses by itself
    for node in graph.nodes:
        if node.op == "call_module":
            identity = id(modules[node.target])
            calls[identity] = calls.get(identity, 0) + 1
        elif node.op == "get_attr":
            read.add(node.target.rpartition(".")[0])
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in _NORMS:
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        layer, norm = modules[str(source.target)], modules[node.target]
        if (
            type(layer) in _LAYERS
            and len(source.users) == 1
            and calls[id(layer)] == calls[id(norm)] == 1
            and not norm.training
            and isinstance(norm.running_mean, Tensor)
            and not read & {node.target, source.target}
            and not is_altered(layer)
            and not is_altered(norm)
            and layer.weight.shape[0] == norm.num_features
        ):
            pairs.append((layer, norm))
    return pairs


def is_altered(module: nn.Module) -> bool:
    """Whether hooks, or a forward of its own, change what the module does by its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """(C,) each, in float64 on the CPU: a batch norm in eval mode is scale * x + shift."""

    def exact(value: Tensor | None, missing: float) -> Tensor:
        if value is None:
            return torch.full((norm.num_features,), missing, dtype=torch.float64, device="cpu")
        return _exact(value)

    scale = exact(norm.weight, 1) / (exact(norm.running_var, 1) + norm.eps).sqrt()
    return scale, exact(norm.bias, 0) - exact(norm.running_mean, 0) * scale


def _exact(value: Tensor) -> Tensor:
    return value.to("cpu", torch.float64)  # not every device has float64


def _merged(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias (outputs,) of the layer with the batch norm in it."""
    scale, shift = scale_and_shift(norm)
    weight = _exact(layer.weight) * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    bias = shift if layer.bias is None else _exact(layer.bias) * scale + shift
    return weight.to(layer.weight), bias.to(layer.weight)
