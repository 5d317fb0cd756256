"""The public functions: checked arguments in, one autograd node out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _arguments as arguments
from . import reference
from .autograd import CorrelationFunction, apply_contiguous
from .autograd_rank import (
    SoftRankFunction,
    SoftSpearmanFunction,
    apply_contiguous_soft_rank,
    hard_spearman,
)
from .backends import WISH, choose, choose_ranks, native, native_rank
from .collectives import scale_gradient
from .distributed import GroupCorrelationFunction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Values of `backend` that name the compiled kernels on the CPU.
_NATIVE = (None, "native") if WISH in (None, "native") else ("native",)


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
    sample_weight: Tensor | None = None,
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Correlation-distance distillation loss between two sets of logits.

    With p = softmax(student / T) and q = softmax(teacher / T) over the last dimension, B rows kept
    by the mask and C classes,

    .. math::
        L = s w_{inter} \Bigl(1 - \frac1B \sum_i r(p_{i\cdot}, q_{i\cdot})\Bigr)
          + s w_{intra} \Bigl(1 - \frac1C \sum_j r(p_{\cdot j}, q_{\cdot j})\Bigr)
          + w_{rank} \Bigl(1 - \frac1B \sum_i \rho_i\Bigr), \qquad
        r(a, b) = \frac{\sum a b}{\lVert a\rVert \lVert b\rVert + \epsilon},

    where s = T**2 with `temperature_scaling`, else 1, and rho_i is Spearman's correlation of the
    logits of row i (`spearman`, with this `eps`). ``correlation="pearson"`` subtracts the mean from
    both arguments of r first. With `sample_weight` w, both means over i become
    sum_i w_i (...) / sum_i w_i; the columns are not weighted.

    The defaults are the value term of R2KD (Kim et al., *Robustness-Reinforced Knowledge
    Distillation With Correlation Distance and Network Pruning*, IEEE TKDE 36(12), 2024, doi
    10.1109/TKDE.2024.3438074); with ``rank_weight=2.0`` they are its whole loss. Per-sample weights
    are those of CMKD. ``temperature=1.0, correlation="pearson", inter_weight=1.0,
    intra_weight=1.0`` is DIST (Huang et al., *Knowledge Distillation from A Stronger Teacher*,
    NeurIPS 2022).

    Args:
        student_logits: (..., C), C >= 1, of dtype float16, bfloat16, float32 or float64. Leading
            dimensions are flattened to rows. -inf marks a class that is ruled out (p = 0).
        teacher_logits: the shape and device of `student_logits`, any of these dtypes. Never gets
            a gradient.
        temperature: T > 0, dimensionless.
        correlation: "cosine" (uncentred) or "pearson" (centred).
        inter_weight: weight >= 0 of the row term (between the classes of a sample).
        intra_weight: weight >= 0 of the column term (between the samples of a class).
        rank_weight: weight >= 0 of the rank term, which neither T nor T**2 enters.
        rank: "hard", the published form: a constant for autograd, since ranks are integers. It
            shifts the loss and teaches nothing. Or "soft", which has a gradient (`soft_rank`).
        rank_strength: regularisation > 0 of the soft rank, in units of the logits; without effect
            for hard ranks. At 1.0, every row of logits that span at most C / 2 is one pool, and the
            term is Pearson's correlation of the logits: for 100 classes or more take less, about
            the logits' standard deviation over C and up (docs/rank.md).
        temperature_scaling: whether the value terms are multiplied by T**2.
        mask: bool, one per row (leading shape of the logits, or flat). Rows that are False count
            nowhere: not in the mean, not in the columns; their gradient is 0.
        sample_weight: floating point, one per row, as for `mask`: weights of the rows in the row
            term and in the rank term. They should be >= 0 (not checked), need not sum to anything,
            and get no gradient. Both terms are 0 where the weights of the kept rows sum to 0.
        eps: >= 0, added to the product of the norms.
        group: process group of torch.distributed over whose rows the loss is taken: as if one
            process had the concatenated batch. Batches, masks and weights may differ between
            ranks, also in size; a rank may have no row. Every rank of the group must call, with
            the same options, classes and dtypes; see Note.
        backend: None chooses (`build_info()["ops"]` says what and why): the environment variable
            R2KD_BACKEND as it is at import, else "native" on the CPU and "reference" on a GPU; or
            "native" (the compiled kernels: CPU, and CUDA where built with it), "triton" (GPU; CPU
            tensors where TRITON_INTERPRET=1), "reference". It holds for the rank term, too.

    Returns:
        Scalar of dtype float32, or float64 where either input is float64. Sums are accumulated in
        that type or a wider one. 0 where no row is kept. Differentiable with respect to
        `student_logits`, in whose dtype the gradient comes; what is kept for backward besides the
        logits is O(B + C), also with soft ranks, which are sorted again in backward. A second
        derivative (``create_graph=True``) is computed by the plain PyTorch reference.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and
            what is accepted.
        NotImplementedError: `group` inside of ``torch.compile(fullgraph=True)``; without
            `fullgraph` the graph breaks there.

    Note:
        With `group`, every rank returns the same loss L of the global batch, and its gradient is W
        dL/dz for its own logits z, where W is the number of ranks of the group: DDP and FSDP
        average the gradients of the parameters over W ranks, after which they are those of one
        process. Where gradients are summed over the ranks instead, divide the loss by W first.
        Forward sends O(C) numbers (docs/scaling.md), backward none; no second derivative. Ranks
        that disagree in an option raise ValueError on the CPU and get NaN on a GPU, where forward
        does not wait for the device. A rank that does not call, or has another number of classes,
        is an error of torch.distributed on the others within the time-out of the group.
    """
    compiling = torch.compiler.is_compiling()
    check = arguments.check_options if compiling else arguments.cached_options
    options = check(
        temperature, correlation, inter_weight, intra_weight,
        rank_weight, rank, rank_strength, temperature_scaling, eps,
    )  # fmt: skip
    rank_options = None
    if rank_weight != 0:
        rank_options = arguments.RankOptions(rank_weight, rank == "soft", rank_strength, eps)
    if (
        mask is None
        and sample_weight is None
        and group is None
        and not compiling
        and backend in _NATIVE
        and (call := native.contiguous_call(student_logits, teacher_logits)) is not None
        and not teacher_logits.requires_grad
    ):
        if rank_options is not None:
            arguments.check_sortable("student_logits", student_logits)
        return apply_contiguous(student_logits, teacher_logits, None, options, call, rank_options)

    arguments.check_group(group)
    arguments.check_logits(student_logits, teacher_logits)
    arguments.check_mask(mask, student_logits)
    arguments.check_sample_weight(sample_weight, student_logits)
    chosen = choose(backend, student_logits.device, student_logits.shape[-1]).backend
    rank_backend = None
    if rank_options is not None:
        rank_backend = choose_ranks(
            backend, student_logits.device, student_logits.shape[-1]
        ).backend
        if rank_backend != "reference":
            arguments.check_sortable("student_logits", student_logits)
    teacher = teacher_logits.detach()
    weight = None if sample_weight is None else sample_weight.detach().double().reshape(-1)
    if group is not None:
        return _group_loss(
            student_logits, teacher, mask, options, rank_options, weight,
            chosen, rank_backend, group,
        )  # fmt: skip
    if (
        chosen == "native"
        and not compiling
        and weight is None
        and (call := native.contiguous_call(student_logits, teacher)) is not None
    ):
        return apply_contiguous(student_logits, teacher, mask, options, call, rank_options)
    if chosen == "reference":
        rows = arguments.flatten_rows(student_logits, teacher, mask)
        loss = reference.correlation_from_options(*rows, options, weight)
    else:
        loss = CorrelationFunction.apply(student_logits, teacher, mask, options, weight, chosen)
    if rank_backend is None or rank_options is None:
        return loss
    return loss + _rank_loss(student_logits, teacher, mask, rank_options, weight, rank_backend)


def _group_loss(
    student: Tensor,  # [..., C]
    teacher: Tensor,  # [..., C]
    mask: Tensor | None,  # one bool per row
    options: arguments.CorrelationOptions,
    rank_options: arguments.RankOptions | None,
    sample_weight: Tensor | None,  # [B]
    backend: str,
    rank_backend: str | None,
    group: ProcessGroup,
) -> Tensor:
    rows = arguments.flatten_rows(student, teacher, mask)
    if backend == "reference":
        loss = reference.correlation_from_options(*rows, options, sample_weight, group)
        if rank_options is not None:
            loss = loss + reference.rank_loss(*rows, rank_options, sample_weight, group)
        return scale_gradient(loss, group.size())
    rho = None
    if rank_options is not None:
        soft, strength, eps = rank_options[1:]
        if rank_backend is None or rank_backend == "reference":
            rho = reference.spearman_from_options(*rows, soft, strength, eps)
        else:
            rho = _rho(student, teacher, mask, soft, strength, eps, rank_backend)
    return GroupCorrelationFunction.apply(
        student, teacher, rho, mask, options, rank_options, sample_weight, backend, group
    )


def _rank_loss(
    student: Tensor,  # [..., C]
    teacher: Tensor,  # [..., C]
    mask: Tensor | None,  # one bool per row
    options: arguments.RankOptions,
    sample_weight: Tensor | None,  # [B]
    backend: str,
) -> Tensor:
    if backend == "reference":
        rows = arguments.flatten_rows(student, teacher, mask)
        return reference.rank_loss(*rows, options, sample_weight)
    rho = _rho(student, teacher, mask, options.soft, options.strength, options.eps, backend)
    flat_mask = None if mask is None else mask.reshape(-1)
    return options.weight * reference.row_distance(rho, flat_mask, sample_weight)


def _rho(
    x: Tensor,  # [..., C]
    y: Tensor,  # [..., C]
    mask: Tensor | None,  # one bool per row
    soft: bool,
    strength: float,
    eps: float,
    backend: str,
) -> Tensor:
    """rho [B] by the kernels of `backend`, which is not the reference."""
    if soft:
        rho: Tensor = SoftSpearmanFunction.apply(x, y, mask, strength, eps, backend)
        return rho
    return hard_spearman(x, y, mask, eps, backend)


def spearman(x: Tensor, y: Tensor, *, rank: str = "hard", rank_strength: float = 1.0) -> Tensor:
    r"""Spearman's rank correlation of the rows of two tensors.

    .. math::
        \rho = \frac{\sum_j a_j b_j}{\lVert a\rVert \lVert b\rVert + 10^{-8}}, \qquad
        a = \frac{\mathrm{rank}(x) - (C + 1) / 2}{C (C + 1) / 2}, \quad b \text{ likewise of } y,

    the form that R2KD's rank term is published in (Kim et al., IEEE TKDE 36(12), 2024, doi
    10.1109/TKDE.2024.3438074). As |a| |b| is about 1 / (3 C), the summand in the denominator
    takes about 3e-8 C of the correlation.

    Args:
        x, y: (..., C), C >= 1, of one shape and device and of dtype float16, bfloat16, float32 or
            float64.
        rank: "hard": integers 1, ..., C, the earlier of two equal elements first. The result has no
            gradient (``requires_grad`` is False), since that of a rank is zero wherever it exists.
            "soft": `soft_rank`, differentiable in both x and y; backward keeps the inputs alone
            and sorts again.
        rank_strength: the strength of `soft_rank`, > 0; without effect for hard ranks.

    Returns:
        (...), float32, or float64 where either input is float64. A row with a NaN gives NaN; -inf
        and inf rank as numbers do. 0 for C = 1, where nothing varies.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and
            what is accepted.
    """
    soft, strength = arguments.check_rank_options(rank, rank_strength)
    eps = arguments.SPEARMAN_EPS
    if (
        not soft
        and not torch.compiler.is_compiling()
        and None in _NATIVE
        and native.contiguous_call(x, y) is not None
    ):
        arguments.check_sortable("x", x)
        return native_rank.spearman(x, y, None, False, strength, eps)
    arguments.check_pair(("x", "y"), x, y, 1)
    backend = choose_ranks(None, x.device, x.shape[-1]).backend
    if backend == "reference":
        a, b = (t.reshape(-1, t.shape[-1]) for t in (x, y))
        rho = reference.spearman_from_options(a, b, None, soft, strength, eps)
    else:
        arguments.check_sortable("x", x)
        rho = _rho(x, y, None, soft, strength, eps, backend)
    return rho.reshape(x.shape[:-1])


def soft_rank(x: Tensor, strength: float = 1.0) -> Tensor:
    r"""Differentiable ranks along the last dimension.

    The Euclidean projection of x / strength onto the permutahedron, the convex hull of all
    permutations of (1, ..., C), as in Blondel et al., *Fast Differentiable Sorting and Ranking*,
    ICML 2020, in ascending order: the smallest element gets the smallest rank. As strength tends to
    0, the ranks tend to the hard ones (equal elements share their mean rank); where x spans at most
    strength C / 2, if not before, all elements are in one pool and rank = (C + 1) / 2 +
    (x - mean(x)) / strength, which tends to the mean rank. At strength 1 that is the case of most
    rows of 100 elements or more; docs/rank.md says which strength to take.

    Args:
        x: (..., C), C >= 1, of dtype float16, bfloat16, float32 or float64.
        strength: regularisation > 0, in units of x.

    Returns:
        (..., C), float64 for float64, else float32, since a 16-bit number cannot tell the ranks of
        many classes apart. A NaN makes its row NaN. Equal infinite elements share the mean of
        their places and have no gradient. The gradient costs O(C) per row; for it one int32 per
        element is kept. It can be differentiated again.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and
            what is accepted.
    """
    compiling = torch.compiler.is_compiling()
    check = arguments.check_strength if compiling else arguments.cached_strength
    strength = check("strength", strength)
    if not compiling and None in _NATIVE and (call := native_rank.contiguous_rows(x)) is not None:
        return apply_contiguous_soft_rank(x, strength, call)
    arguments.check_rows("x", x)
    arguments.check_classes("x", x)
    backend = choose_ranks(None, x.device, x.shape[-1]).backend
    if backend == "reference":
        return reference.soft_rank(x, strength)
    arguments.check_sortable("x", x)
    return SoftRankFunction.apply(x, strength, backend)
