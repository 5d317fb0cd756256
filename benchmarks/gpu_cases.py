"""The cases of the GPU benchmark: each op's inputs and contenders, on the device that is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import limits
import torch
import torch.nn.functional as F
from bench_fused_linear import eager as eager_fused_linear
from bench_fused_linear import head
from bench_rank import eager_spearman
from bench_sparse import zeroed, zeros
from gpu_harness import ROTATED_BYTES
from harness import Call, Case, dtype_text, forward_call, rotated
from torch import Tensor, nn

from r2kd_ext import (
    SparseConv2d,
    SparseLinear,
    TeacherEnsemble,
    correlation_kd,
    fused_linear_correlation_kd,
    models,
    ops_rank,
    prune,
    soft_rank,
    spearman,
)
from r2kd_ext.backends import choose

TEMPERATURE = 4.0
Loss = Callable[[Tensor, Tensor], Tensor]
ROLES = {
    "ours": "ours", "ours (triton)": "peer", "eager": "reference", "compiled": "peer",
    "kl_div": "peer", "liger kl_div": "peer", "liger jsd": "peer", "liger cosine": "peer",
    "torchsort": "peer", "dense": "reference", "torch.sparse": "peer", "four passes": "reference",
    "ours, CUDA graphs": "peer", "ours in bfloat16": "peer", "2 torch.sort": "unit",
    "3 torch.sort": "unit",
}  # fmt: skip


class Made(NamedTuple):
    """A case with its contenders; beside them goes a copy of `copied` elements of `dtype`."""

    case: Case
    contenders: Mapping[str, Call]
    copied: int
    dtype: torch.dtype


Make = Callable[[str], Made]  # from the device's name


def backends(device: str) -> dict[str, str]:
    """Contender -> backend, of those that run: "ours" the first of native and triton."""
    found: dict[str, str] = {}
    for backend in ("native", "triton"):
        try:
            choose(backend, torch.device(device))
        except ValueError as error:
            print(f"{backend} left out: {error}", file=sys.stderr)
            continue
        found["ours (triton)" if found else "ours"] = backend
    return found


def liger_losses() -> dict[str, Loss]:
    """Liger-Kernel's losses of two sets of logits, where it is installed."""
    if not find_spec("liger_kernel"):
        return {}
    from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss

    kl, jsd = LigerKLDIVLoss(reduction="batchmean"), LigerJSD()

    def log_softmax(logits: Tensor) -> Tensor:
        return F.log_softmax(logits / TEMPERATURE, dim=1)

    return {
        "liger kl_div": lambda z, y: kl(log_softmax(z), F.softmax(y / TEMPERATURE, dim=1)),
        "liger jsd": lambda z, y: jsd(log_softmax(z), log_softmax(y)),
    }


def eager_correlation(student: Tensor, teacher: Tensor, columns: bool) -> Tensor:
    """The formula of the docstring of `correlation_kd` as one would write it."""
    p = torch.softmax(student.float() / TEMPERATURE, dim=1)
    q = torch.softmax(teacher.float() / TEMPERATURE, dim=1)

    def distance(dim: int) -> Tensor:
        norms = p.norm(dim=dim) * q.norm(dim=dim)
        return 1 - ((p * q).sum(dim) / (norms + 1e-8)).mean()

    return 2 * TEMPERATURE**2 * (distance(1) + distance(0) if columns else distance(1))


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    log_p = F.log_softmax(student / TEMPERATURE, dim=1)
    return F.kl_div(log_p, F.softmax(teacher / TEMPERATURE, dim=1), reduction="batchmean")


def correlation(rows: int, classes: int, dtype: torch.dtype, columns: bool, device: str) -> Made:
    """Forward + backward of the value term."""

    def pair() -> tuple[Tensor, Tensor]:
        student, teacher = (
            torch.randn(rows, classes, device=device, dtype=dtype) for _ in range(2)
        )
        return student.requires_grad_(), teacher

    data = rotated(pair, 2 * rows * classes * dtype.itemsize, ROTATED_BYTES)

    def call_of(loss: Loss) -> Call:
        def run(call: int) -> Tensor:
            student, teacher = data[call % len(data)]
            return torch.autograd.grad(loss(student, teacher), student)[0]

        return run

    options: dict[str, Any] = {
        "temperature": TEMPERATURE,
        "intra_weight": 2.0 if columns else 0.0,
    }
    compiled = torch.compile(eager_correlation, dynamic=False)
    losses: dict[str, Loss] = {
        **{
            name: partial(correlation_kd, backend=backend, **options)
            for name, backend in backends(device).items()
        },
        "eager": lambda z, y: eager_correlation(z, y, columns),
        "compiled": lambda z, y: compiled(z, y, columns),
        "kl_div": kl_div,
        **liger_losses(),
    }
    work = limits.correlation(rows, classes, dtype, columns=columns)
    variant = "" if columns else "rows"
    case = Case("correlation", (rows, classes), dtype_text(dtype), work, ROLES, variant=variant)
    calls = {name: call_of(loss) for name, loss in losses.items()}
    return Made(case, calls, rows * classes, dtype)


def hard_spearman(rows: int, classes: int, dtype: torch.dtype, device: str) -> Made:
    """Hard ranks of both, forward."""
    data = rotated(
        lambda: [torch.randn(rows, classes, device=device).to(dtype) for _ in range(2)],
        2 * rows * classes * dtype.itemsize,
        ROTATED_BYTES,
    )

    def call_of(function: Callable[[Tensor, Tensor], object]) -> Call:
        return lambda call: function(*data[call % len(data)])

    calls = {
        "ours": call_of(spearman),
        "eager": call_of(eager_spearman),
        "compiled": call_of(torch.compile(eager_spearman, dynamic=False)),
        "2 torch.sort": call_of(lambda x, y: (torch.sort(x), torch.sort(y))),
    }
    if "ours (triton)" in backends(device):
        calls["ours (triton)"] = call_of(
            lambda x, y: ops_rank.spearman(x, y, None, False, 1.0, 1e-8, triton=True)
        )
    work = limits.hard_spearman(rows, classes, dtype)
    case = Case("spearman", (rows, classes), dtype_text(dtype), work, ROLES, "forward", "hard")
    return Made(case, calls, rows * classes, dtype)


def ranks(rows: int, classes: int, strength: float, device: str) -> Made:
    """Soft ranks in float32, forward + backward."""
    dtype = torch.float32

    def made() -> tuple[Tensor, Tensor]:
        x, weight = (torch.randn(rows, classes, device=device) for _ in range(2))
        return x.requires_grad_(), weight

    data = rotated(made, 2 * rows * classes * dtype.itemsize, ROTATED_BYTES)

    def call_of(function: Callable[..., Tensor], *options: float) -> Call:
        def run(call: int) -> Tensor:
            x, weight = data[call % len(data)]
            return torch.autograd.grad(function(x, *options), x, weight)[0]

        return run

    def triton(call: int) -> Tensor:
        x, weight = data[call % len(data)]
        found, order = ops_rank.soft_rank(x.detach(), strength, triton=True)
        gradient: Tensor = ops_rank.soft_rank_backward(
            weight if found.dtype == weight.dtype else weight.to(found.dtype), order, strength,
            dtype, triton=True,
        )  # fmt: skip
        return gradient

    def sorts(call: int) -> None:
        for _ in range(3):
            torch.sort(data[call % len(data)][0].detach())

    calls: dict[str, Call] = {"ours": call_of(soft_rank, strength), "3 torch.sort": sorts}
    if "ours (triton)" in backends(device):
        calls["ours (triton)"] = triton
    if find_spec("torchsort"):
        import torchsort

        calls["torchsort"] = call_of(
            lambda x: torchsort.soft_rank(x, regularization_strength=strength)
        )
    work = limits.soft_rank(rows, classes, dtype)
    variant = f"strength {strength:g}"
    case = Case("soft_rank", (rows, classes), "float32", work, ROLES, variant=variant)
    return Made(case, calls, rows * classes, dtype)


def fused_linear(rows: int, classes: int, hidden: int, dtype: torch.dtype, device: str) -> Made:
    """The loss from hidden states, forward + backward to states and weight."""
    student = [x.to(device).requires_grad_() for x in head(rows, classes, hidden, dtype)]
    teacher = [x.to(device) for x in head(rows, classes, hidden, dtype)]

    def call_of(loss: Callable[..., Tensor]) -> Call:
        return lambda call: torch.autograd.grad(loss(*student, *teacher), student)

    calls = {
        **{
            name: call_of(partial(fused_linear_correlation_kd, backend=backend))
            for name, backend in backends(device).items()
        },
        "eager": call_of(eager_fused_linear),
        "compiled": call_of(torch.compile(eager_fused_linear, dynamic=False)),
    }
    if find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import (
            LigerFusedLinearCosineSimilarityLoss,
            LigerFusedLinearJSDLoss,
        )

        labels = torch.randint(classes, (rows,), device=device)
        for name, kind in (
            ("liger jsd", LigerFusedLinearJSDLoss),
            ("liger cosine", LigerFusedLinearCosineSimilarityLoss),
        ):
            loss = kind(weight_hard_loss=0.0, weight_soft_loss=1.0)
            calls[name] = call_of(lambda *heads, loss=loss: loss(*heads, labels, None, None))
    work = limits.fused_linear(rows, classes, hidden, hidden, dtype)
    case = Case(
        "fused_linear_correlation", (rows, classes, hidden), dtype_text(dtype), work, ROLES,
        inputs="resident",
    )  # fmt: skip
    return Made(case, calls, rows * classes, dtype)


def csr_linear(
    rows: int, inputs: int, outputs: int, sparsity: float, dtype: torch.dtype, device: str
) -> Made:
    layer = zeroed(nn.Linear(inputs, outputs), sparsity).to(device, dtype)
    x = torch.randn(rows, inputs, device=device).to(dtype)
    sparse = SparseLinear.from_dense(layer)
    weight = layer.weight.detach().to_sparse_csr()
    calls = {
        "ours": forward_call(sparse, x),
        "dense": forward_call(layer, x),
        "compiled": forward_call(torch.compile(layer, dynamic=False), x),
        "torch.sparse": forward_call(F.linear, x, weight, layer.bias),
    }
    if "ours (triton)" in backends(device):
        from r2kd_ext.backends import triton as kernels

        entries = (weight.values(), weight.col_indices().int(), weight.crow_indices().int())
        calls["ours (triton)"] = forward_call(kernels.csr_linear, x, *entries, layer.bias.detach())
    work = limits.csr_linear(rows, inputs, outputs, weight.values().numel(), dtype)
    case = Case(
        "csr_linear", (rows, inputs, outputs), dtype_text(dtype), work, ROLES, "forward",
        zeros(sparsity), "resident",
    )  # fmt: skip
    return Made(case, calls, x.numel(), dtype)


def csr_conv2d(shape: tuple[int, int, int, int], sparsity: float, device: str) -> Made:
    dtype, channels = torch.float32, shape[1]
    layer = zeroed(nn.Conv2d(channels, channels, 3, padding=1), sparsity).to(device)
    x = torch.randn(shape, device=device)
    calls = {
        "ours": forward_call(SparseConv2d.from_dense(layer), x),
        "dense": forward_call(layer, x),
    }
    if "ours (triton)" in backends(device):
        from r2kd_ext.backends import triton as kernels

        weight = layer.weight.detach().flatten(1).to_sparse_csr()
        entries = (weight.values(), weight.col_indices().int(), weight.crow_indices().int())
        calls["ours (triton)"] = forward_call(
            kernels.csr_conv2d, x, *entries, layer.bias.detach(), [3, 3], [1, 1], [1, 1], [1, 1], 1
        )
    kept = int(layer.weight.count_nonzero())
    work = limits.csr_conv2d(shape[0], shape[1:], shape[1:], kept, dtype)
    case = Case("csr_conv2d", shape, "float32", work, ROLES, "forward", zeros(sparsity), "resident")
    return Made(case, calls, x.numel(), dtype)


def semi_structured(rows: int, inputs: int, outputs: int, device: str) -> Made:
    """A linear layer of which 2 of 4 neighbours are zero, in bfloat16."""
    dtype = torch.bfloat16
    layer: Any = prune(nn.Linear(inputs, outputs), 0.5, method="2:4").to(device, dtype)
    x = torch.randn(rows, inputs, device=device).to(dtype)
    calls = {
        "ours": forward_call(SparseLinear.from_dense(layer, "2:4"), x),
        "dense": forward_call(layer, x),
        "compiled": forward_call(torch.compile(layer, dynamic=False), x),
    }
    # Half of the weight, and 2 bits for each of its entries.
    kept = inputs * outputs // 2
    moved = (rows * (inputs + outputs) + kept) * dtype.itemsize + kept // 4
    case = Case(
        "2:4 linear", (rows, inputs, outputs), "bfloat16", limits.Work(moved, 2 * rows * kept),
        ROLES, "forward", zeros(0.5), "resident",
    )  # fmt: skip
    return Made(case, calls, x.numel(), dtype)


def ensemble(name: str, batch: int, size: int, classes: int, device: str) -> Made:
    """The teacher's forward passes of one step."""
    teacher = models.create(name, classes).eval()
    numbers = 3 * size * size
    work = limits.ensemble(
        2 * batch, numbers, classes, sum(weight.numel() for weight in teacher.parameters()),
        limits.multiplications(teacher, torch.zeros(1, 3, size, size)),
    )  # fmt: skip
    teacher = teacher.to(device)
    pruned = prune(teacher, 0.1)
    images = [torch.randn(batch, 3, size, size, device=device) for _ in range(2)]

    def four_passes() -> list[Tensor]:
        return [0.7 * teacher(x) + 0.3 * pruned(x) for x in images]

    calls = {
        "ours": forward_call(TeacherEnsemble(teacher).both, *images),
        "four passes": forward_call(four_passes),
        "ours in bfloat16": forward_call(
            TeacherEnsemble(teacher, dtype=torch.bfloat16).both, *images
        ),
    }
    if device == "cuda":
        calls["ours, CUDA graphs"] = forward_call(
            TeacherEnsemble(teacher, cuda_graphs=True).both, *images
        )
    case = Case(
        "ensemble", (2 * batch, 3, size, size), "float32", work, ROLES, "forward", name, "resident"
    )
    return Made(case, calls, 2 * batch * numbers, torch.float32)


_F32, _BF16 = torch.float32, torch.bfloat16
CORRELATION = [
    (64, 100, _F32, True), (64, 200, _F32, True), (1024, 1000, _F32, True),
    (1024, 1000, _BF16, True), (256, 21_841, _F32, True), (4096, 32_768, _BF16, False),
    (4096, 131_072, _BF16, False), (1024, 262_144, _BF16, False),
]  # fmt: skip
SPEARMAN = [(64, 100, _F32), (1024, 1000, _F32), (1024, 1000, _BF16), (128, 32_000, _F32)]
SOFT_RANK = [(64, 100, 1.0), (64, 1000, 3 / 1000), (1024, 1000, 3 / 1000), (64, 10_000, 3e-4)]
FUSED_LINEAR = [(1024, 32_768, 1024, _BF16), (1024, 32_768, 1024, _F32),
                (4096, 128_256, 2048, _BF16)]  # fmt: skip
CSR_LINEAR = [(256, 2048, 2048, share, _F32) for share in (0.9, 0.5, 0.95)]
CSR_CONV2D = [((64, 128, 16, 16), share) for share in (0.9, 0.95)]
SEMI_STRUCTURED = [(4096, 4096, 4096), (256, 2048, 2048)]
ENSEMBLE = [("resnet56", 64, 64, 200), ("wrn_40_2", 64, 64, 200)]


def _made(function: Callable[..., Made], cases: list[tuple[Any, ...]]) -> dict[str, Make]:
    return {" ".join(map(str, case)): partial(function, *case) for case in cases}


# Op -> name -> what makes the case.
CASES: dict[str, dict[str, Make]] = {
    "correlation": _made(correlation, CORRELATION),
    "spearman": _made(hard_spearman, SPEARMAN),
    "soft_rank": _made(ranks, SOFT_RANK),
    "fused_linear_correlation": _made(fused_linear, FUSED_LINEAR),
    "csr_linear": _made(csr_linear, CSR_LINEAR),
    "csr_conv2d": _made(csr_conv2d, CSR_CONV2D),
    "2:4 linear": _made(semi_structured, SEMI_STRUCTURED),
    "ensemble": _made(ensemble, ENSEMBLE),
}
