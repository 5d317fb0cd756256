"""The public functions: checked arguments in, one autograd node out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _arguments as arguments
from . import reference
from .autograd import CorrelationFunction
from .backends import choose

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def correlation_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    correlation: str = "cosine",
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
    rank_weight: float = 0.0,
    rank: str = "hard",
    rank_strength: float = 1.0,
    temperature_scaling: bool = True,
    mask: Tensor | None = None,
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Correlation-distance distillation loss between two sets of logits.

    With p = softmax(student / T) and q = softmax(teacher / T) over the last dimension, B rows kept
    by the mask and C classes,

    .. math::
        L = s w_{inter} \Bigl(1 - \frac1B \sum_i r(p_{i\cdot}, q_{i\cdot})\Bigr)
          + s w_{intra} \Bigl(1 - \frac1C \sum_j r(p_{\cdot j}, q_{\cdot j})\Bigr), \qquad
        r(a, b) = \frac{\sum a b}{\lVert a\rVert \lVert b\rVert + \epsilon},

    where s = T**2 with `temperature_scaling`, else 1. ``correlation="pearson"`` subtracts the mean
    from both arguments of r first. The defaults are the value term of R2KD (Kim et al.,
    *Robustness-Reinforced Knowledge Distillation With Correlation Distance and Network Pruning*,
    IEEE TKDE 36(12), 2024, doi 10.1109/TKDE.2024.3438074); ``temperature=1.0,
    correlation="pearson", inter_weight=1.0, intra_weight=1.0`` is DIST (Huang et al., *Knowledge
    Distillation from A Stronger Teacher*, NeurIPS 2022).

    Args:
        student_logits: (..., C), C >= 1, of dtype float16, bfloat16, float32 or float64. Leading
            dimensions are flattened to rows. -inf marks a class that is ruled out (p = 0).
        teacher_logits: the shape and device of `student_logits`, any of these dtypes. Never gets
            a gradient.
        temperature: T > 0, dimensionless.
        correlation: "cosine" (uncentred) or "pearson" (centred).
        inter_weight: weight >= 0 of the row term (between the classes of a sample).
        intra_weight: weight >= 0 of the column term (between the samples of a class).
        rank_weight: weight of the rank term; must be 0 in this version.
        rank: "hard" or "soft"; without effect while `rank_weight` is 0.
        rank_strength: regularisation of the soft rank; without effect while `rank_weight` is 0.
        temperature_scaling: whether both terms are multiplied by T**2.
        mask: bool, one per row (leading shape of the logits, or flat). Rows that are False count
            nowhere: not in the mean, not in the columns; their gradient is 0.
        eps: >= 0, added to the product of the norms.
        group: process group over which the loss is exact; must be None in this version.
        backend: None chooses (`build_info()["ops"]` says what and why); "native" or "reference".

    Returns:
        Scalar of dtype float32, or float64 where either input is float64. Sums are accumulated in
        that type or a wider one. 0 where no row is kept. Differentiable with respect to
        `student_logits`, in whose dtype the gradient comes; what is kept for backward besides the
        logits is O(B + C). A second derivative (``create_graph=True``) is computed by the plain
        PyTorch reference.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and
            what is accepted.
        NotImplementedError: `rank_weight` > 0, `group` or `backend="triton"`.
    """
    compiling = torch.compiler.is_compiling()
    check = arguments.check_options if compiling else arguments.cached_options
    options = check(
        temperature, correlation, inter_weight, intra_weight,
        rank_weight, rank, rank_strength, temperature_scaling, eps,
    )  # fmt: skip
    if group is not None:
        arguments.check_group(group)
    arguments.check_logits(student_logits, teacher_logits)
    if mask is not None:
        arguments.check_mask(mask, student_logits)
        mask = mask.reshape(-1)
    if student_logits.dim() != 2:
        classes = student_logits.shape[-1]
        student_logits = student_logits.reshape(-1, classes)  # [B, C]
        teacher_logits = teacher_logits.reshape(-1, classes)  # [B, C]
    if teacher_logits.requires_grad:
        teacher_logits = teacher_logits.detach()
    chosen = choose(backend, student_logits.device)
    if chosen.backend == "reference":
        return reference.correlation_from_options(student_logits, teacher_logits, mask, options)
    return CorrelationFunction.apply(student_logits, teacher_logits, mask, *options)
