"""The fused linear loss, chunk by chunk of rows: the kernel of the op `fused_linear_correlation`.

Logits of student and teacher, the row term and its gradient by the op `correlation` (on whatever
device and backend), and from the gradient of the logits at once that of hidden, weight and bias.
Rows are independent of each other once their number is known, so one pass does it, in forward;
backward only multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from ._arguments_linear import LinearInputs, LinearOptions, check_places
from ._dtypes import accumulator
from .backends import is_interpreted, triton
from .backends.reference_rows import row_term
from .chunks import rows_per_chunk
from .linear_head import LinearHead


def gradient_and_loss_dtypes(inputs: LinearInputs) -> tuple[torch.dtype, torch.dtype]:
    """Those of the student's gradients and of the loss."""
    student = [x.dtype for x in inputs[:3] if x is not None]
    teacher = [x.dtype for x in (*inputs[3:6], inputs.topk_values) if x is not None]
    return accumulator(*student), accumulator(*student, *teacher)


def empty_gradients(inputs: LinearInputs, needs_grad: list[bool]) -> list[Tensor]:
    dtype, _ = gradient_and_loss_dtypes(inputs)
    new = inputs.student_hidden.new_empty
    return [
        new(x.shape if x is not None and needed else 0, dtype=dtype)
        for x, needed in zip(inputs[:3], needs_grad, strict=True)
    ]


class _Chunk(NamedTuple):
    """Some of the rows: those in `rows`, or the slice; of which `mask` keeps some or None all."""

    rows: Tensor | slice
    mask: Tensor | None  # [R] bool
    share: Tensor  # [], of the kept rows of all chunks

    def of(self, x: Tensor) -> Tensor:
        """The chunk's rows of x [N, ...]."""
        return x[self.rows] if isinstance(self.rows, slice) else x.index_select(0, self.rows)

    def place_for(self, x: Tensor) -> Tensor:
        """Where to write the chunk's rows of x [N, H], before `put`."""
        if isinstance(self.rows, slice):
            return x[self.rows]
        return x.new_empty(self.rows.shape[0], x.shape[1])

    def put(self, written: Tensor, x: Tensor) -> None:
        """Bring what was written there to x."""
        if not isinstance(self.rows, slice):
            x.index_copy_(0, self.rows, written)


def _knows_kept_rows(mask: Tensor) -> bool:
    """Whether the number of kept rows can be had without waiting for the device."""
    return mask.device.type == "cpu"


def _chunks(count: int, mask: Tensor | None, size: int, like: Tensor) -> Iterator[_Chunk]:
    """The rows, `size` at a time. Shares have dtype and device of `like`.

    On the CPU dropped rows are left out and cost nothing. On a GPU, which would have to be waited
    for, they are computed with the others.
    """
    indices, total = None, like.new_full((), count)  # [n], []
    if mask is not None:
        if _knows_kept_rows(mask):
            indices, mask = mask.nonzero().squeeze(1), None
            count = indices.shape[0]
            total.fill_(count)
        else:
            total = mask.sum().to(like.dtype).clamp(min=1)
    for first in range(0, count, size):
        rows = slice(first, min(first + size, count))
        kept = None if mask is None else mask[rows]
        number = (rows.stop - first) if kept is None else kept.sum()
        yield _Chunk(rows if indices is None else indices[rows], kept, number / total)


class _Teacher:
    """The teacher's logits [R, V] of a chunk, from its head or from its largest probabilities."""

    def __init__(
        self, inputs: LinearInputs, options: LinearOptions, autocast: torch.dtype | None
    ) -> None:
        self._inputs, self._head = inputs, None
        self._classes = inputs.student_weight.shape[0]
        if inputs.topk_indices is not None:
            check_places("teacher_topk indices", inputs.topk_indices, 0, self._classes)
            return
        hidden, weight, bias = inputs.teacher_hidden, inputs.teacher_weight, inputs.teacher_bias
        assert hidden is not None
        assert weight is not None
        if inputs.vocab_map is not None:
            check_places("vocab_map", inputs.vocab_map, -1, weight.shape[0])
        self._head = LinearHead(
            hidden, weight, bias, options.teacher_scale, options.teacher_softcap, autocast,
            inputs.vocab_map,
        )  # fmt: skip

    def logits(self, chunk: _Chunk) -> Tensor:
        inputs = self._inputs
        if self._head is not None:
            assert inputs.teacher_hidden is not None
            return self._head.logits(self._head.operand(chunk.of(inputs.teacher_hidden)))
        assert inputs.topk_values is not None
        assert inputs.topk_indices is not None
        return spread_topk(
            chunk.of(inputs.topk_values), chunk.of(inputs.topk_indices), self._classes
        )


def spread_topk(values: Tensor, indices: Tensor, classes: int) -> Tensor:
    """Log-probabilities [R, k] of some classes -> of all [R, V]: what is left, spread evenly."""
    dtype = accumulator(values.dtype)
    rest = (1 - values.double().exp().sum(1, keepdim=True)).clamp(min=0)  # [R, 1]
    others = max(1, classes - values.shape[1])
    rest = (rest / others).log().to(dtype)  # [R, 1]
    return rest.expand(-1, classes).scatter(1, indices.long(), values.to(dtype))  # [R, V]


def _row_term(
    student: Tensor,  # [R, V]
    teacher: Tensor,  # [R, V]
    chunk: _Chunk,
    options: LinearOptions,
    backend: str,
    needs_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss of a chunk, and the gradient of its logits times the chunk's share."""
    mask, share = chunk.mask, chunk.share
    values = (options.temperature, options.centered, options.weight)
    if backend == "reference":
        return row_term(student, teacher, mask, *values, options.eps, share if needs_grad else None)
    if is_interpreted(backend, student.device):
        loss, stats = triton.correlation(student, teacher, mask, *values, 0.0, options.eps)
        if not needs_grad:
            return loss, None
        arguments = (share.to(loss.dtype), student, teacher, mask, stats, *values, 0.0)
        return loss, triton.correlation_backward(*arguments)
    kernels = {"triton": backend == "triton"}
    loss, stats = ops.correlation(student, teacher, mask, *values, 0.0, options.eps, **kernels)
    if not needs_grad:
        return loss, None
    arguments = (share.to(loss.dtype), student, teacher, mask, stats, *values, 0.0)
    return loss, ops.correlation_backward(*arguments, **kernels)


def fused_linear_correlation(
    inputs: LinearInputs,
    options: LinearOptions,
    autocast: torch.dtype | None,
    chunk_rows: int | None,
    needs_grad: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    """The loss and three gradients, empty where not needed; see the op's schema."""
    hidden, weight, bias = inputs[:3]
    head = LinearHead(
        hidden, weight, bias, options.student_scale, options.student_softcap, autocast
    )
    teacher = _Teacher(inputs, options, autocast)
    gradients = empty_gradients(inputs, needs_grad)
    for gradient in gradients:
        gradient.zero_()
    grad_hidden, grad_weight, grad_bias = (
        x if needed else None for x, needed in zip(gradients, needs_grad, strict=True)
    )
    loss = hidden.new_zeros((), dtype=gradient_and_loss_dtypes(inputs)[1])  # []
    size = chunk_rows or rows_per_chunk(head.classes, loss.dtype, hidden.device)
    for chunk in _chunks(hidden.shape[0], inputs.mask, size, loss):
        rows = chunk.of(hidden)  # [R, H]
        if chunk.mask is not None:  # a NaN in a dropped row must not reach the sums over rows
            rows = rows.where(chunk.mask.unsqueeze(1), 0.0)
        rows = head.operand(rows)
        z = head.logits(rows)  # [R, V]
        y = teacher.logits(chunk)  # [R, V]
        part, grad = _row_term(z, y, chunk, options, backend, any(needs_grad))
        loss += part * chunk.share
        if grad is not None:
            head.uncap_(grad, z)
            written = None if grad_hidden is None else chunk.place_for(grad_hidden)
            head.add_gradients(grad, rows, written, grad_weight, grad_bias)
            if grad_hidden is not None and written is not None:
                chunk.put(written, grad_hidden)
        del z, y, grad  # or the next chunk's would be the fourth and fifth
    return loss, *gradients
