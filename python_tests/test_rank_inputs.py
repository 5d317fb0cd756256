"""Inputs of the rank functions: layouts, sizes, poison, errors, threads, saved memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, each_dtype, make_logits
from compare import assert_same_bits
from torch import Tensor

import r2kd_ext
from r2kd_ext import _core, reference

INF, NAN = torch.inf, torch.nan

hard = r2kd_ext.spearman
soft = partial(r2kd_ext.spearman, rank="soft", rank_strength=0.4)
HARD_ALONE: dict[str, Any] = {"inter_weight": 0.0, "intra_weight": 0.0, "rank_weight": 1.0}
SOFT_ALONE = {**HARD_ALONE, "rank": "soft", "rank_strength": 0.05}
both_ranks = pytest.mark.parametrize("spearman", [hard, soft], ids=["hard", "soft"])


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    result = function(x)
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
    return torch.autograd.grad((result * weight).sum(), x)[0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "every second row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "offset": lambda x: torch.cat([x[:, :1], x], dim=1)[:, 1:],
}


@each_dtype
@pytest.mark.parametrize("classes", [21, 600])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, classes: int, dtype: torch.dtype) -> None:
    """The bits do not depend on the strides."""
    x, y = make_logits(4, classes, dtype=dtype)
    other = LAYOUTS[layout](x)
    assert torch.equal(other, x)
    for function in (hard, soft):
        assert_same_bits(function(other, y), function(x, y))
        assert_same_bits(function(y, other), function(y, x))
    for rank in (partial(soft, y=y), lambda t: r2kd_ext.soft_rank(t, 0.4)):
        assert_same_bits(gradient(rank, other), gradient(rank, x))
    assert_same_bits(r2kd_ext.soft_rank(other, 0.4), r2kd_ext.soft_rank(x, 0.4))


def test_expanded() -> None:
    row, y = make_logits(1, 21)[0], make_logits(5, 21)[1]
    for function in (hard, soft):
        assert_same_bits(function(row.expand(5, 21), y), function(row.repeat(5, 1), y))
    column = torch.zeros(3, 1).expand(3, 7)
    assert (r2kd_ext.soft_rank(column) == 4).all()
    x = make_logits(3, 7)[0].requires_grad_()
    (grad,) = torch.autograd.grad(r2kd_ext.soft_rank(x, 0.4).sum(), x)  # an expanded gradient
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (2, 0, 7), (0, 7), (3, 1)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    y = torch.randn(shape)
    for module in (r2kd_ext, reference):
        assert module.spearman(x, y).shape == shape[:-1]
        assert module.spearman(x, y, rank="soft").shape == shape[:-1]
        assert module.soft_rank(x).shape == shape
        assert gradient(module.soft_rank, x).shape == shape
        assert gradient(partial(module.spearman, y=y, rank="soft"), x).shape == shape
    if x.numel():
        flat = hard(x.reshape(-1, shape[-1]), y.reshape(-1, shape[-1]))
        assert_same_bits(hard(x, y).reshape(-1), flat)


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("y_dtype", DTYPES)
def test_mixed_dtypes(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    x, y = make_logits(3, 40, dtype=x_dtype, teacher_dtype=y_dtype)
    for rank in ("hard", "soft"):
        got, expected = (m.spearman(x, y, rank=rank) for m in (r2kd_ext, reference))
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-7)
    got, expected = (
        gradient(partial(m.spearman, y=y, rank="soft"), x) for m in (r2kd_ext, reference)
    )
    assert got.dtype is x_dtype
    eps = torch.finfo(x_dtype).eps
    torch.testing.assert_close(
        got, expected, rtol=4 * eps, atol=4 * eps * float(expected.abs().max())
    )


# --- poison --------------------------------------------------------------------------------------


@each_dtype
@both_ranks
@pytest.mark.parametrize("classes", [30, 700])
@pytest.mark.parametrize("of", ["x", "y"])
def test_nan(of: str, classes: int, spearman: Any, dtype: torch.dtype) -> None:
    """A NaN in either makes rho of its row NaN, and nothing else."""
    x, y = make_logits(4, classes, dtype=dtype)
    clean = spearman(x, y)
    poisoned = x if of == "x" else y
    poisoned[1, 0], poisoned[2, classes - 1] = NAN, -NAN
    rho = spearman(x, y)
    assert rho.isnan().tolist() == [False, True, True, False]
    assert_same_bits(rho[::3], clean[::3])
    if spearman is soft:
        grads = [gradient(partial(f, y=y, rank="soft"), x) for f in (hard, reference.spearman)]
        assert torch.equal(grads[0].isnan(), grads[1].isnan())
        assert grads[0].isnan().any(dim=1).tolist() == [False, True, True, False]


POISON: dict[str, list[float]] = {
    "ruled out": [-INF],
    "both infinities": [INF, -INF],
    "all lowest": [-INF] * 33,
    "all highest": [INF] * 33,
    "NaN and infinities": [NAN, INF, -INF],
}


@each_dtype
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("of", ["x", "y"])
def test_poison_as_in_the_reference(of: str, poison: str, dtype: torch.dtype) -> None:
    x, y = make_logits(5, 33, dtype=dtype)
    y[:, 5] = -INF
    values = torch.tensor(POISON[poison], dtype=dtype)
    (x if of == "x" else y)[2, : len(values)] = values
    for rank in ("hard", "soft"):
        got, expected = (m.spearman(x, y, rank=rank) for m in (r2kd_ext, reference))
        torch.testing.assert_close(got, expected, rtol=0, atol=3e-7, equal_nan=True)
    for strength in (0.1, 5.0):
        got, expected = (
            gradient(partial(m.spearman, y=y, rank="soft", rank_strength=strength), x)
            for m in (r2kd_ext, reference)
        )
        eps = torch.finfo(dtype).eps
        atol = 8 * eps * float(expected.nan_to_num(0).abs().max())
        torch.testing.assert_close(got, expected, rtol=8 * eps, atol=atol, equal_nan=True)


@pytest.mark.parametrize("rank", ["hard", "soft"])
def test_nan_in_the_loss(rank: str) -> None:
    """In the loss all is NaN, unless the row is masked."""
    x, y = make_logits(5, 33)
    options: dict[str, Any] = {"inter_weight": 0.0, "intra_weight": 0.0}
    options |= {"rank_weight": 1.0, "rank": rank}
    clean = r2kd_ext.correlation_kd(x[1:], y[1:], **options)
    x[0, 3] = NAN
    for function in (r2kd_ext.correlation_kd, reference.correlation_kd):
        assert function(x, y, **options).isnan()
        mask = torch.tensor([False, True, True, True, True])
        assert function(x, y, **options, mask=mask).item() == pytest.approx(clean.item(), rel=1e-6)


def test_all_masked() -> None:
    x, y = make_logits(5, 33)
    x.requires_grad_()
    for rank in ("hard", "soft"):
        loss = r2kd_ext.correlation_kd(
            x, y, rank_weight=1.0, rank=rank, mask=torch.zeros(5, dtype=torch.bool)
        )
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()


@both_ranks
@pytest.mark.parametrize("fill", [0.0, 1.5, -INF])
def test_equal_rows(fill: float, spearman: Any) -> None:
    """Hard: the order of the indices, a permutation as any. Soft: no rank varies, rho is 0."""
    x, y = torch.full((2, 40), fill), make_logits(2, 40)[1]
    rho = spearman(x, y)
    if spearman is hard:
        assert_same_bits(rho, hard(torch.arange(40.0).expand(2, 40), y))
    else:
        assert (rho == 0).all()


# --- errors ---------------------------------------------------------------------------------------

Z = torch.zeros(4, 5)
SPEARMAN_ERRORS: dict[str, tuple[type[Exception], str, tuple[Any, Any], dict[str, Any]]] = {
    "x list": (TypeError, "x must be a Tensor.*list", ([1.0], Z), {}),
    "y integers": (TypeError, "y must have a dtype of .*float64.*int64", (Z, Z.long()), {}),
    "x sparse": (TypeError, "x must be a dense.*sparse", (Z.to_sparse(), Z), {}),
    "x scalar": (ValueError, r"x must have shape \(\.\.\., C\).*\(\)", (Z[0, 0], Z), {}),
    "shapes": (
        ValueError,
        r"y must have the shape of x, \(4, 5\), got \(4, 3\)",
        (Z, Z[:, :3]),
        {},
    ),
    "no class": (ValueError, r"x must have at least one class.*\(4, 0\)", (Z[:, :0], Z[:, :0]), {}),
    "devices": (ValueError, "y must be on the device of x, cpu, got meta", (Z, Z.to("meta")), {}),
    "rank": (
        ValueError,
        "rank must be one of 'hard', 'soft', got 'exact'",
        (Z, Z),
        {"rank": "exact"},
    ),
    "strength": (ValueError, "rank_strength must be .*> 0, got -1", (Z, Z), {"rank_strength": -1}),
}
SOFT_RANK_ERRORS: dict[str, tuple[type[Exception], str, Any, Any]] = {
    "x list": (TypeError, "x must be a Tensor.*list", [1.0], 1.0),
    "x integers": (TypeError, "x must have a dtype of .*int64", Z.long(), 1.0),
    "x scalar": (ValueError, r"x must have shape \(\.\.\., C\).*\(\)", Z[0, 0], 1.0),
    "no class": (ValueError, r"x must have at least one class.*\(4, 0\)", Z[:, :0], 1.0),
    "strength 0": (ValueError, "strength must be .*> 0, got 0", Z, 0),
    "strength inf": (ValueError, "strength must be .*finite.*inf", Z, INF),
    "strength Tensor": (TypeError, "strength must be .*Tensor", Z, torch.tensor(1.0)),
}


@pytest.mark.parametrize("module", [r2kd_ext, reference], ids=["fused", "reference"])
@pytest.mark.parametrize("case", SPEARMAN_ERRORS)
def test_refused_by_spearman(case: str, module: Any) -> None:
    error, message, tensors, options = SPEARMAN_ERRORS[case]
    with pytest.raises(error, match=message):
        module.spearman(*tensors, **options)


@pytest.mark.parametrize("module", [r2kd_ext, reference], ids=["fused", "reference"])
@pytest.mark.parametrize("case", SOFT_RANK_ERRORS)
def test_refused_by_soft_rank(case: str, module: Any) -> None:
    error, message, x, strength = SOFT_RANK_ERRORS[case]
    with pytest.raises(error, match=message):
        module.soft_rank(x, strength)


def test_row_too_long() -> None:
    """Expanded, so that it takes no memory; refused before any is allocated."""
    x = torch.zeros(1, 1).expand(1, 2**30)
    assert _core.MAX_RANK_COLS == 2**30 - 1
    for function in (partial(hard, y=x), partial(soft, y=x), r2kd_ext.soft_rank):
        with pytest.raises(ValueError, match="x must have at most 1073741823 classes"):
            function(x)
    no_rows = torch.empty(0, 2**30)
    for logits in (x, no_rows):
        with pytest.raises(ValueError, match="student_logits must have at most 1073741823 classes"):
            r2kd_ext.correlation_kd(logits, logits, rank_weight=1.0)


# --- threads and memory ---------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("classes", [90, 1500])
def test_bits_do_not_depend_on_threads(classes: int, dtype: torch.dtype) -> None:
    x, y = make_logits(37, classes, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            results.append(
                [
                    hard(x, y), soft(x, y), gradient(partial(soft, y=y), x),
                    r2kd_ext.soft_rank(x, 0.4), gradient(r2kd_ext.soft_rank, x),
                    r2kd_ext.correlation_kd(x, y, **HARD_ALONE),
                    gradient(partial(r2kd_ext.correlation_kd, teacher_logits=y, **SOFT_ALONE), x),
                ]
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b)


RESULTS = """
import torch, r2kd_ext
torch.manual_seed(0)
results = []
for classes in (1, 5, 100, 300, 600, 5000):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, y = (torch.randn(3, classes).to(dtype) for _ in range(2))
        z = x.clone().requires_grad_()
        ranks = r2kd_ext.soft_rank(z, 0.05)
        (grad,) = torch.autograd.grad((ranks * y.to(ranks)).sum(), z)
        results.append([r2kd_ext.spearman(x, y), ranks.detach(), grad])
"""


@pytest.mark.parametrize("simd", ["baseline", "avx2"])
def test_narrower_instruction_sets(simd: str, tmp_path: Path) -> None:
    """Other registers, other row lengths at which the sort changes: the same results."""
    script = f"{RESULTS}\ntorch.save(results, 'results.pt')\nprint(r2kd_ext.build_info()['simd'])"
    env = {**os.environ, "R2KD_SIMD": simd, "PYTHONPATH": str(Path(r2kd_ext.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    if done.stdout.strip() != simd:
        pytest.skip(f"this machine has no {simd}")
    here: dict[str, Any] = {}
    exec(RESULTS, here)
    there = torch.load(tmp_path / "results.pt")
    assert len(there) == 6 * 4
    for got, expected in zip(there, here["results"], strict=True):
        assert_same_bits(got[0], expected[0])  # integers until the last division
        for a, b in zip(got[1:], expected[1:], strict=True):
            torch.testing.assert_close(a, b)


def saved_bytes(function: Callable[[], Tensor]) -> int:
    """Bytes of the distinct tensors that autograd keeps, those that exist anyway not counted."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not x.is_leaf or x.grad_fn is None:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    del result
    gc.collect()
    return sum(kept.values())


def test_saved_memory() -> None:
    """Loss and rho: the inputs and O(B + C). Soft rank: one int32 per element."""
    x, y = make_logits(64, 1000)
    x.requires_grad_()
    inputs = 2 * x.numel() * 4
    loss = partial(r2kd_ext.correlation_kd, x, y, rank_weight=1.0, rank="soft")
    assert saved_bytes(loss) <= inputs + 16 * 64
    assert saved_bytes(partial(soft, x, y)) == inputs
    assert saved_bytes(partial(r2kd_ext.soft_rank, x)) == x.numel() * 4


def test_inference_teacher() -> None:
    x, y = make_logits(6, 20)
    with torch.inference_mode():
        inferred = y * 1
    assert inferred.is_inference()
    options: dict[str, Any] = {"rank_weight": 1.0, "rank": "soft"}
    got = gradient(lambda z: r2kd_ext.correlation_kd(z, inferred, **options), x)
    expected = gradient(lambda z: r2kd_ext.correlation_kd(z, y, **options), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("changed", ["x", "y"])
def test_in_place_change_before_backward(changed: str) -> None:
    leaf, y = make_logits(6, 20)
    x = leaf.requires_grad_() * 1
    rho = soft(x, y)
    with torch.no_grad():
        (x if changed == "x" else y).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rho.sum().backward()


def test_teacher_gets_no_gradient() -> None:
    x, y = (t.requires_grad_() for t in make_logits(6, 20))
    r2kd_ext.correlation_kd(x, y, rank_weight=1.0, rank="soft").backward()
    assert x.grad is not None
    assert y.grad is None
