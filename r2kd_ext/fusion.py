"""The convolutions of a frozen network with the ReLU and residual additions that follow them.

For processors. By themselves ReLU and sums read and write whole activations once more; here a
convolution applies them while it writes its output. Most 3 x 3 convolutions go to the kernel of
`ops_winograd`, the others to oneDNN, by the operators that torch's own compiler (Inductor) calls
when it freezes a network.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from . import winograd
from .folding import is_altered, scale_and_shift
from .ops_winograd import winograd_conv2d, winograd_conv2d_

# torch keeps them to itself: a build may lack them, and a release may take them away.
_AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
)
# About where torch itself takes oneDNN for every convolution, and below starts faster kernels.
_FEWEST_SAMPLES, _FEWEST_VALUES = 16, 20480
# By function, or by method of a tensor. In the last two the first operand becomes the sum.
_ADDITIONS: dict[Any, Callable[[Any, Any], Any]] = {
    operator.add: operator.add,
    torch.add: operator.add,
    "add": operator.add,
    operator.iadd: operator.iadd,
    "add_": operator.iadd,
}
_RELUS: set[Any] = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}


@torch.no_grad()
def fuse_activations(network: nn.Module) -> nn.Module:
    """A network that gives what `network` gives, by rounding, with fewer multiplications and
    passes over activations.

    Shares the weights of `network`, and serves while they, and its structure, stay as they are.
    Fused are, in float32 on a CPU:

    - ReLU, where nothing else uses what comes before it: a Conv2d, such a sum, or a BatchNorm2d;
    - the sum of what a Conv2d gives and a tensor that is there before it runs, where nothing else
      uses what the Conv2d gives. Where that tensor is not needed later, the sum takes its memory.

    A batch norm with its ReLU becomes a convolution with one weight by the channel. One that a
    convolution feeds is best folded before (`folding.fold_batchnorm`). A convolution that
    `winograd.takes` needs a quarter of its multiplications, and four times the memory of its
    weight beside it.

    The result runs the graph of the forward pass (torch.fx), in which all that does not depend on
    the input is as it was at the time of this call; the first input is run by `network`, too, which
    serves alone from then on should they not agree. `network` itself is returned where nothing can
    be fused, it cannot be traced, a tensor that is no parameter or buffer is made in its forward
    pass, one of its modules has hooks or is in training mode, a weight or statistic is not finite,
    or this torch has no oneDNN. And it is what the result runs for inputs of other dtypes or
    devices or that are not finite, under autocast, with gradients enabled, and with oneDNN
    switched off. Finite, because the ReLU of oneDNN makes 0 of NaN; so the result loses a NaN that
    arises inside of the network, as where activations overflow.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    if (
        not _AVAILABLE
        or any(is_altered(module) or module.training for module in network.modules())
        or not any(_takes(module) for module in network.modules())
        or not all(x.layout == torch.strided and x.isfinite().all() for x in tensors)
    ):
        return network
    try:
        graph = _Tracer().trace(network)
    except Exception:  # tracing runs the forward of any network on stand-ins of tensors
        return network
    # Such a constant may be random, or kept by the network from one call to the next.
    if any(str(node.target).startswith("_tensor_constant") for node in graph.nodes):
        return network
    fused = fx.GraphModule(network, graph)
    return _Fused(fused, network) if _rewrite(fused) else network


class _Proxy(fx.Proxy):
    """Keeps `x += y` as it is, of which torch.fx makes `x = x + y`."""


def _recorded(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def record(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _function in (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
    *(operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor),
    *(operator.ilshift, operator.irshift, operator.imatmul),
):
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Fused(nn.Module):
    """The fused network, and the one it was made from for what the fused one does not take.

    A graph does not show on what Python decided while it was made, such as the type of an argument,
    so the first input goes through both; where they differ by more than rounding, the plain network
    alone runs from then on.
    """

    def __init__(self, fused: nn.Module, plain: nn.Module) -> None:
        super().__init__()
        self.fused, self.plain = fused, plain
        self.checked, self.agrees = False, True
        self.eval()

    def forward(self, x: Tensor) -> Any:
        may = (
            _float32_on_cpu(x)
            and torch.backends.mkldnn.enabled
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and math.isfinite(x.sum())
        )
        if not (may and self.agrees):
            return self.plain(x)
        if self.checked:
            return self.fused(x)
        expected = self.plain(x.clone())  # should it change its input
        found = self.fused(x)
        self.agrees, self.checked = _agree(found, expected), True
        return found if self.agrees else expected


def _agree(found: Any, expected: Any) -> bool:
    """Whether they differ by no more than the roundings of a deep network in float32."""
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return False
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    largest = expected.abs().amax() if expected.numel() else expected.sum()
    return bool(((found - expected).abs() <= 1e-3 * largest).all())


class _Convolution(nn.Module):
    """relu(layer(x) + other), the sum and ReLU as asked: (B, inputs, H, W) -> (B, outputs, H', W').

    Args:
        layer: a Conv2d, or a BatchNorm2d in eval mode.
        relu: whether ReLU comes last.
        add: what adds `other` (B, outputs, H', W').
        in_place: whether `other` may be overwritten with the result.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.BatchNorm2d,
        relu: bool,
        add: Callable[[Any, Any], Any] = operator.add,
        in_place: bool = False,
    ) -> None:
        super().__init__()
        self.layer, self.relu, self.add, self.in_place = layer, relu, add, in_place
        if isinstance(layer, nn.Conv2d):
            weight, bias = layer.weight, layer.bias
            padding = cast(tuple[int, ...], layer.padding)
            geometry = padding, layer.stride, layer.dilation, layer.groups
        else:
            scale, shift = scale_and_shift(layer)
            weight = scale.float().view(-1, 1, 1, 1)
            bias, geometry = shift.float(), ((0, 0), (1, 1), (1, 1), len(shift))
        self.operands, self.geometry = (weight, bias), geometry
        self.transformed = winograd.transform_weight(weight) if winograd.takes(layer) else None

    def forward(self, x: Tensor, other: Any = None) -> Tensor:
        if x.dim() != 4 or x.dtype != torch.float32:
            return self._plain(x, other)
        if len(x) < _FEWEST_SAMPLES and x.numel() < _FEWEST_VALUES:
            return self._plain(x, other)
        if other is not None and not (_float32_on_cpu(other) and other.shape == self._shape(x)):
            return self._plain(x, other)
        if self.transformed is not None and winograd.pays(x):
            return self._by_winograd(x, self.transformed, other)
        if other is None and not self.relu:
            return self._plain(x, other)
        operators, layer = torch.ops.mkldnn, (*self.operands, *self.geometry)
        if other is None:
            return operators._convolution_pointwise.default(x, *layer, "relu", [], "")
        after: tuple[Any, ...] = ("add", 1, "relu" if self.relu else None, [], None)
        if self.in_place:
            return operators._convolution_pointwise_.binary(other, x, *layer, *after)
        return operators._convolution_pointwise.binary(x, other, *layer, *after)

    def _by_winograd(self, x: Tensor, weight: Tensor, other: Tensor | None) -> Tensor:
        bias = self.operands[1]
        if (
            other is None
            or not self.in_place
            or not other.is_contiguous(memory_format=torch.channels_last)
        ):
            return winograd_conv2d(x, weight, bias, other, self.relu)
        winograd_conv2d_(x, weight, bias, other, self.relu)
        return other

    def _plain(self, x: Tensor, other: Any) -> Tensor:
        out = self.layer(x)
        if other is not None:
            out = self.add(out, other)
        return out.relu() if self.relu else out

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of what the layer gives. The operators read past the end of an `other` of another."""
        weight, kernel = self.operands[0], self.operands[0].shape[2:]
        sizes = zip(x.shape[2:], kernel, *self.geometry[:3], strict=True)
        spatial = [(n + 2 * pad - dil * (k - 1) - 1) // step + 1 for n, k, pad, step, dil in sizes]
        return (len(x), len(weight), *spatial)


def _float32_on_cpu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32 and x.device.type == "cpu"


def _takes(module: nn.Module) -> bool:
    """Whether `_Convolution` computes such a layer with what follows it."""
    if type(module) is nn.Conv2d:
        return (
            _float32_on_cpu(module.weight)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
    return (
        type(module) is nn.BatchNorm2d
        and _float32_on_cpu(module.running_mean)
        and not module.training
    )


def _rewrite(network: fx.GraphModule) -> int:
    """Put a `_Convolution` where there can be one, and return how many there are."""
    graph = network.graph
    for node in list(graph.nodes):
        if type(_module(network, node)) is nn.Identity and len(node.all_input_nodes) == 1:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    count = 0
    for node in list(graph.nodes):
        layer = _module(network, node)
        if layer is None or not _takes(layer) or len(node.args) != 1:
            continue
        chain, args, add, in_place = [node], list(node.args), operator.add, False
        other = _summand(node) if isinstance(layer, nn.Conv2d) else None
        if other is not None:
            # The sum runs at the layer's place: right behind it, where nothing changed `other`.
            chain.append(node.next)
            args.append(other)
            add, in_place = _ADDITIONS[node.next.target], _may_be_overwritten(network, other, node)
        relu = _relu(network, chain[-1])
        if relu is not None:
            chain.append(relu)
        if len(chain) == 1 and not winograd.takes(layer):
            continue
        name = f"_fused_convolutions.{count}"
        network.add_submodule(name, _Convolution(cast(Any, layer), relu is not None, add, in_place))
        with graph.inserting_before(node):
            chain[-1].replace_all_uses_with(graph.call_module(name, tuple(args)))
        for old in reversed(chain):
            graph.erase_node(old)
        count += 1
    network.delete_all_unused_submodules()
    network.recompile()
    return count


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """What the node calls, if it calls a module."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _summand(node: fx.Node) -> fx.Node | None:
    """What is added to the node right behind it, if all that uses the node is that sum."""
    after = node.next
    if (
        list(node.users) != [after]
        or after.op not in ("call_function", "call_method")
        or after.target not in _ADDITIONS
        or len(after.args) != 2
        or after.kwargs  # torch.add(alpha=...)
    ):
        return None
    first, second = after.args
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
        return None
    if first is not node and _ADDITIONS[after.target] is operator.iadd:
        return None  # changes the other, for all that uses it later
    return second if first is node else first


def _relu(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The ReLU of the node, if that is all that uses it. It may work in place: none would see."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op in ("call_function", "call_method"):
        is_relu = user.target in _RELUS
    else:
        is_relu = type(_module(network, user)) is nn.ReLU
    return user if is_relu else None


def _may_be_overwritten(network: fx.GraphModule, other: fx.Node, layer: fx.Node) -> bool:
    """Whether nothing but the layer's sum uses the memory of `other` from the layer on.

    It must be a layer's own output, and of those that read it before none may return a view.
    """
    nodes = list(network.graph.nodes)
    later = nodes[nodes.index(layer) + 2 :]
    if layer in other.users or not other.users.keys().isdisjoint(later):
        return False
    kinds = (nn.Conv2d, nn.BatchNorm2d, _Convolution)
    made_and_read_by = [other, *(user for user in other.users if user is not layer.next)]
    return all(type(_module(network, node)) in kinds for node in made_and_read_by)
