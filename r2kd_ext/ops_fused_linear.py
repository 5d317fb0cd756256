"""Schema, fake kernel and the one kernel of the op `fused_linear_correlation`.

The kernel goes over chunks of rows: logits of student and teacher, the row term and its gradient by
the op `correlation` (on whatever device and backend), and from the gradient of the logits at once
that of hidden, weight and bias. Rows are independent of each other once their number is known, so
one pass does it, in forward; backward only multiplies.

Gradients are given in float32 (float64 where the student has it): that of a weight is a sum over
all chunks, and what backward multiplies it by may be a loss scale that a 16-bit number needs.
A gradient that is not asked for comes as an empty tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ops
from ._arguments_linear import LinearInputs, LinearOptions, check_places
from ._dtypes import accumulator
from .backends import is_interpreted, triton
from .backends.reference_rows import row_term
from .chunks import rows_per_chunk
from .linear_head import LinearHead

_library = torch.library.Library("r2kd", "FRAGMENT")
_library.define(
    "fused_linear_correlation(Tensor student_hidden, Tensor student_weight, Tensor? student_bias, "
    "Tensor? teacher_hidden, Tensor? teacher_weight, Tensor? teacher_bias, Tensor? vocab_map, "
    "Tensor? topk_values, Tensor? topk_indices, Tensor? mask, float temperature, bool centered, "
    "float weight, float eps, float student_scale, float teacher_scale, float student_softcap, "
    "float teacher_softcap, ScalarType? autocast, int? chunk_rows, bool[3] needs_grad, "
    "str backend) -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
_TENSORS = len(LinearInputs._fields)
_OPTIONS = len(LinearOptions._fields)


def _unpack(arguments: tuple[Any, ...]) -> tuple[LinearInputs, LinearOptions, tuple[Any, ...]]:
    inputs = LinearInputs(*arguments[:_TENSORS])
    options = LinearOptions(*arguments[_TENSORS : _TENSORS + _OPTIONS])
    return inputs, options, arguments[_TENSORS + _OPTIONS :]


def _dtypes(inputs: LinearInputs) -> tuple[torch.dtype, torch.dtype]:
    """Those of the student's gradients and of the loss."""
    student = [x.dtype for x in inputs[:3] if x is not None]
    teacher = [x.dtype for x in (*inputs[3:6], inputs.topk_values) if x is not None]
    return accumulator(*student), accumulator(*student, *teacher)


def _empty_gradients(inputs: LinearInputs, needs_grad: list[bool]) -> list[Tensor]:
    dtype, _ = _dtypes(inputs)
    new = inputs.student_hidden.new_empty
    return [
        new(x.shape if x is not None and needed else 0, dtype=dtype)
        for x, needed in zip(inputs[:3], needs_grad, strict=True)
    ]


@torch.library.register_fake("r2kd::fused_linear_correlation")
def _fused_linear_correlation_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, _, (_, _, needs_grad, _) = _unpack(arguments)
    loss = inputs.student_hidden.new_empty((), dtype=_dtypes(inputs)[1])
    return loss, *_empty_gradients(inputs, needs_grad)


class _Chunk(NamedTuple):
    """Some of the rows: those in `rows`, or the slice; of which `mask` keeps some or None all."""

    rows: Tensor | slice
    mask: Tensor | None  # [R] bool
    share: Tensor  # [], of the kept rows of all chunks

    def of(self, x: Tensor) -> Tensor:
        return x[self.rows] if isinstance(self.rows, slice) else x.index_select(0, self.rows)


def _chunks(count: int, mask: Tensor | None, size: int, like: Tensor) -> Iterator[_Chunk]:
    """The rows, `size` at a time. Shares have dtype and device of `like`.

    On the CPU dropped rows are left out and cost nothing. On a GPU their number is not known
    without waiting for it, so they are computed with the others.
    """
    indices, total = None, like.new_full((), count)  # [n], []
    if mask is not None:
        if mask.device.type == "cpu":
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
    mask: Tensor | None,  # [R]
    options: LinearOptions,
    backend: str,
    share: Tensor,  # []
    needs_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss of a chunk, and `share` times the gradient of its logits."""
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


def _fused_linear_correlation(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, options, (autocast, chunk_rows, needs_grad, backend) = _unpack(arguments)
    # Autocast would round the products of the chunks. What it asks for is in `autocast`.
    with torch.autocast(inputs.student_hidden.device.type, enabled=False):
        return _over_chunks(inputs, options, autocast, chunk_rows, needs_grad, backend)


def _over_chunks(
    inputs: LinearInputs,
    options: LinearOptions,
    autocast: torch.dtype | None,
    chunk_rows: int | None,
    needs_grad: list[bool],
    backend: str,
) -> tuple[Tensor, ...]:
    hidden, weight, bias = inputs[:3]
    head = LinearHead(
        hidden, weight, bias, options.student_scale, options.student_softcap, autocast
    )
    teacher = _Teacher(inputs, options, autocast)
    gradients = _empty_gradients(inputs, needs_grad)
    for gradient in gradients:
        gradient.zero_()
    grad_hidden, grad_weight, grad_bias = (
        x if needed else None for x, needed in zip(gradients, needs_grad, strict=True)
    )
    loss = hidden.new_zeros((), dtype=_dtypes(inputs)[1])  # []
    size = chunk_rows or rows_per_chunk(head.classes, loss.dtype, hidden.device)
    for chunk in _chunks(hidden.shape[0], inputs.mask, size, loss):
        rows = chunk.of(hidden)  # [R, H]
        if chunk.mask is not None:  # a NaN in a dropped row must not reach the sums over rows
            rows = rows.where(chunk.mask.unsqueeze(1), 0.0)
        rows = head.operand(rows)
        z = head.logits(rows)  # [R, V]
        y = teacher.logits(chunk)  # [R, V]
        part, grad = _row_term(z, y, chunk.mask, options, backend, chunk.share, any(needs_grad))
        loss += part * chunk.share
        if grad is None:
            continue
        head.uncap_(grad, z)
        if grad_hidden is None or isinstance(chunk.rows, slice):
            written = None if grad_hidden is None else grad_hidden[chunk.rows]
            head.add_gradients(grad, rows, written, grad_weight, grad_bias)
        else:
            written = grad_hidden.new_empty(rows.shape)
            head.add_gradients(grad, rows, written, grad_weight, grad_bias)
            grad_hidden.index_copy_(0, chunk.rows, written)
    return loss, *gradients


_library.impl("fused_linear_correlation", _fused_linear_correlation, "CompositeExplicitAutograd")

fused_linear_correlation = torch.ops.r2kd.fused_linear_correlation.default
