"""A language model's head on a chunk of rows: logits, and the way back to hidden, weight and bias.

    logits = cap tanh(scale (hidden weight^T + bias) / cap),  or without the cap

Products are accumulated and given in float32 (float64 where an operand has it). A GPU multiplies
16-bit operands as they are; elsewhere they are converted, the weight in blocks of classes, so that
no copy of the whole weight exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._dtypes import accumulator

_HALVES = (torch.float16, torch.bfloat16)
# A block of converted or gathered weights. Several of them fit the last-level cache of a server;
# larger ones were not faster.
BLOCK_BYTES = 16 * 2**20


def _multiplies_halves(device: torch.device) -> bool:
    """Whether torch.mm takes 16-bit operands and gives float32 there."""
    return device.type == "cuda" and "dtype" in torch.ops.aten.mm.overloads()


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b of 16-bit operands, accumulated and given in `dtype`."""
    return torch.mm(a, b, out_dtype=dtype)


class LinearHead:
    """Weight, bias and what comes after them, ready for the products of many chunks.

    Args:
        hidden: [N, H], of which chunks will be taken.
        weight: [V, H].
        bias: [V] or None.
        scale: factor of the logits.
        softcap: the cap, 0 for none.
        rounded: the dtype that autocast rounds operands to, or None.
        columns: [V'] integers, the classes to compute in their order, -1 for one that has no
            logit (-inf); None for all.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float,
        rounded: torch.dtype | None = None,
        columns: Tensor | None = None,
    ) -> None:
        dtypes = [x.dtype for x in (hidden, weight, bias) if x is not None]
        self.dtype = accumulator(*dtypes)
        self._rounded = None if self.dtype == torch.float64 else rounded
        self._operand = self.dtype
        narrow = self._rounded or (hidden.dtype if hidden.dtype == weight.dtype else self.dtype)
        self._narrow = narrow in _HALVES and _multiplies_halves(weight.device)
        if self._narrow:
            self._operand = narrow
            weight = weight.to(narrow)
        self._weight = weight
        self._absent, self._columns = None, columns
        if columns is not None:
            self._absent, self._columns = columns < 0, columns.clamp(min=0).long()
        self.classes = weight.shape[0] if columns is None else columns.shape[0]
        self._bias = None if bias is None else self._rounded_to(bias, self.dtype)
        if self._bias is not None and self._columns is not None:
            self._bias = self._bias[self._columns]
        self._scale, self._softcap = scale, softcap

    def _rounded_to(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) if self._rounded is None else x.to(self._rounded).to(dtype)

    def operand(self, hidden: Tensor) -> Tensor:
        """A chunk of hidden [R, H] as the products take it."""
        return self._rounded_to(hidden, self._operand)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Classes and their rows of the weight as an operand, one block after another."""
        weight, columns = self._weight, self._columns
        converts = weight.dtype != self._operand or (self._rounded and not self._narrow)
        if columns is None and not converts:
            yield slice(0, self.classes), weight
            return
        row_bytes = max(1, weight.shape[1]) * self._operand.itemsize
        size = max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, self.classes, size):
            block = slice(first, min(first + size, self.classes))
            rows = weight[block] if columns is None else weight.index_select(0, columns[block])
            yield block, self._rounded_to(rows, self._operand)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H], an operand -> [R, V]."""
        if self._narrow and self._columns is None:
            logits = _product(hidden, self._weight.t(), self.dtype)  # [R, V]
        else:
            logits = hidden.new_empty(hidden.shape[0], self.classes, dtype=self.dtype)  # [R, V]
            for block, weight in self._blocks():
                self._multiply(hidden, weight.t(), block, logits[:, block])
        if self._narrow:
            if self._bias is not None:
                logits.add_(self._bias)
            if self._scale != 1:
                logits.mul_(self._scale)
        if self._softcap:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        if self._absent is not None:
            logits.masked_fill_(self._absent, -torch.inf)
        return logits

    def _multiply(self, hidden: Tensor, weight: Tensor, block: slice, logits: Tensor) -> None:
        """hidden [R, H] weight [H, V_b] -> logits [R, V_b]; with bias and scale unless narrow."""
        if self._narrow:
            logits.copy_(_product(hidden, weight, self.dtype))
        elif self._bias is None:
            torch.addmm(logits, hidden, weight, beta=0, alpha=self._scale, out=logits)
        else:
            factors: Any = {"beta": self._scale, "alpha": self._scale}
            torch.addmm(self._bias[block], hidden, weight, **factors, out=logits)

    def uncap_(self, grad: Tensor, logits: Tensor) -> None:
        """Take the gradient of the logits [R, V] back through the soft-cap. Both are overwritten.

        d logits / d uncapped = 1 - (logits / cap)^2
        """
        if self._softcap:
            grad.mul_(logits.div_(self._softcap).square_().neg_().add_(1))

    def add_gradients(
        self,
        grad: Tensor,  # [R, V], of the logits before scale and cap
        hidden: Tensor,  # [R, H], an operand
        grad_hidden: Tensor | None,  # [R, H], to be written
        grad_weight: Tensor | None,  # [V, H], to be added to
        grad_bias: Tensor | None,  # [V], to be added to
    ) -> None:
        """The chunk's share of the gradients, in `dtype`; for a head with all its columns."""
        scale = self._scale
        if grad_bias is not None:
            grad_bias.add_(grad.sum(0), alpha=scale)
        if grad_hidden is None and grad_weight is None:
            return
        if self._narrow:
            self._add_narrow(grad, hidden, grad_hidden, grad_weight)
            return
        if grad_hidden is not None:
            for block, weight in self._blocks():
                grad_hidden.addmm_(grad[:, block], weight, beta=int(block.start > 0), alpha=scale)
        if grad_weight is not None:
            grad_weight.addmm_(grad.t(), hidden, alpha=scale)

    def _add_narrow(
        self, grad: Tensor, hidden: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        factor = grad.new_full((), self._scale)  # []
        if self._operand == torch.float16:
            # The gradient of a mean over thousands of rows lies below what float16 can hold. The
            # power of two that brings its largest element near 1 costs no digit.
            largest = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)
            shift = torch.exp2(largest.log2().floor())
            grad, factor = grad / shift, factor * shift
        rounded = grad.to(self._operand)  # [R, V]
        if grad_hidden is not None:
            grad_hidden.copy_(_product(rounded, self._weight, self.dtype))
            grad_hidden.mul_(factor)
        if grad_weight is None:
            return
        size = max(1, BLOCK_BYTES // (max(1, hidden.shape[1]) * self.dtype.itemsize))
        for first in range(0, self.classes, size):
            block = slice(first, first + size)
            product = _product(rounded[:, block].t(), hidden, self.dtype)
            grad_weight[block].add_(product.mul_(factor))
