"""Forward passes captured as CUDA graphs, one for each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Libraries choose their kernels and allocate workspaces in the first calls of a shape; none of
# that may be left for the capture.
_WARM_UP = 3


class _Capture(NamedTuple):
    version: Any
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: Tensor


class CapturedForward:
    """Replays a function of one CUDA tensor instead of launching its kernels one by one.

    A graph reads and writes the memory that it was captured with. So the input is copied in, the
    output copied out, and a function whose weights have moved must be captured again: `version`
    says so by differing. All graphs share one memory pool, which is safe since nothing of a replay
    but the copied output is read after it.
    """

    def __init__(self) -> None:
        self._captures: dict[tuple[Any, ...], _Capture] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[[Tensor], Tensor], version: Any, x: Tensor) -> Tensor:
        """What `function` gives for x, captured at the first call of each shape, dtype, device."""
        key = (x.shape, x.dtype, x.device)
        capture = self._captures.get(key)
        if capture is None or capture.version != version:
            self._captures.pop(key, None)
            capture = self._captures[key] = self._captured(function, version, x)
        with torch.cuda.device(x.device):
            capture.inputs.copy_(x)
            capture.graph.replay()
            return capture.outputs.clone()

    def _captured(self, function: Callable[[Tensor], Tensor], version: Any, x: Tensor) -> _Capture:
        with torch.cuda.device(x.device):
            inputs = x.detach().clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    function(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = function(inputs)
            self._pool = graph.pool()
        return _Capture(version, graph, inputs, outputs)
