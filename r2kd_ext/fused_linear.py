"""The correlation loss of hidden states: head and loss in one, without the logits in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _arguments_linear as linear
from . import ops_fused_linear
from .autograd_fused_linear import FusedLinearCorrelationFunction
from .backends import choose


def fused_linear_correlation_kd(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    temperature: float = 1.0,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    correlation: str = "pearson",
    weight: float = 1.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    ignore_index: int = -100,
    logit_scale: float | tuple[float, float] = 1.0,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
    vocab_map: Tensor | None = None,
    teacher_topk: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-8,
    chunk_rows: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Correlation distance between the rows of two language models' logits, from hidden states.

    With z = student_hidden student_weight^T + student_bias, y likewise of the teacher, and the n
    rows that are kept,

    .. math::
        L = s\,w \Bigl(1 - \frac1n \sum_i r(p_{i\cdot}, q_{i\cdot})\Bigr), \qquad
        p = \mathrm{softmax}(f(z) / T),\ q = \mathrm{softmax}(f(y) / T),

    r and s as in `correlation_kd`, whose row term on the logits this is. f is the scale, then the
    soft-cap: f(z) = c tanh(a z / c), or a z without a cap. The N x V logits never exist: chunks of
    rows are multiplied, compared and taken back to the gradients at once.

    Args:
        student_hidden: (..., H), of dtype float16, bfloat16, float32 or float64. Leading dimensions
            are flattened to N rows.
        student_weight: (V, H), V >= 1, any of these dtypes. An ordinary tensor: under FSDP, call
            the loss in the forward of the wrapped module.
        teacher_hidden: (..., H_t), the leading shape of `student_hidden`; None with `teacher_topk`.
        teacher_weight: (V, H_t), or (V_t, H_t) with `vocab_map`; None with `teacher_topk`. The
            teacher never gets a gradient.
        temperature: T > 0, dimensionless.
        student_bias, teacher_bias: (V,) and (V,) or (V_t,). -inf rules a class out (p = 0), unless
            there is a soft-cap, which makes it -c.
        correlation: "pearson" (centred) or "cosine" (uncentred).
        weight: w >= 0.
        temperature_scaling: whether s = T**2, else 1.
        mask: bool, one per row (leading shape of the hidden states, or flat). Rows that are False
            count nowhere, and may hold anything.
        labels: integers, one per row; those equal to `ignore_index` drop their row as the mask
            does. Nothing else is read from them, and nothing is shifted.
        logit_scale: a > 0, or a pair (student, teacher).
        logit_softcap: c > 0 or None, or a pair (student, teacher).
        vocab_map: (V,) integers: the teacher's class for each class of the student, or -1 for one
            that the teacher does not have (q = 0). The teacher's other classes are left out of its
            softmax. Vocabularies of different sizes need it.
        teacher_topk: (values, indices), both (..., k), 1 <= k <= V: natural log-probabilities
            (T = 1) of k distinct classes of the student's vocabulary, in place of the teacher's
            head. What is left of their sum to 1 is spread evenly over the other V - k classes,
            and the temperature is applied to that (docs/fused_linear.md measures the bias).
        eps: >= 0, added to the product of the norms.
        chunk_rows: how many rows of logits exist at a time; None: the largest power of two from 16
            to 1024 whose 3 V numbers per row fit into an eighth of the free memory, on the CPU
            into 128 MiB at most.
        backend: as in `correlation_kd`, for what happens to a chunk's logits.

    Returns:
        Scalar of dtype float32, or float64 where an input is. 0 where no row is kept. It is
        differentiable once, with respect to the student's hidden states, weight and bias, each
        where it requires a gradient. Products are accumulated and the logits held in float32
        (float64 where an operand is). Gradients are accumulated in that type and rounded to the
        parameter's dtype in backward. Under autocast, hidden states, weights and biases are rounded
        to its dtype first, as `torch.nn.functional.linear` does.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and
            what is accepted. Integers out of range are found on the CPU only.
        NotImplementedError: in a backward with ``create_graph=True``.
    """
    options = linear.check_options(
        temperature, correlation, weight, temperature_scaling, eps, logit_scale, logit_softcap
    )
    if chunk_rows is not None:
        arguments.check_count("chunk_rows", chunk_rows)
    inputs = linear.check_inputs(
        student_hidden, student_weight, teacher_hidden, teacher_weight, student_bias, teacher_bias,
        mask, labels, ignore_index, vocab_map, teacher_topk,
    )  # fmt: skip
    device = student_hidden.device
    chosen = choose(backend, device, student_weight.shape[0]).backend
    records = torch.is_grad_enabled()
    needs_grad = (
        records and inputs.student_hidden.requires_grad,
        records and student_weight.requires_grad,
        records and student_bias is not None and student_bias.requires_grad,
    )
    rest = (*inputs[3:], *options, linear.autocast_dtype(device), chunk_rows)
    if any(needs_grad):
        loss: Tensor = FusedLinearCorrelationFunction.apply(*inputs[:3], needs_grad, chosen, *rest)
        return loss
    return ops_fused_linear.fused_linear_correlation(*inputs[:3], *rest, needs_grad, chosen)[0]
